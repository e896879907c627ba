"""The levels of U-Nets: how an encoder, a middle and a decoder are made of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from score_sde.checks import UserError
from score_sde.nets.blocks import (
    BlockOptions,
    InputPyramid,
    Output,
    ResampleConv,
    ResidualBlock,
)
from score_sde.nets.text import CrossAttention

SIDES = ("Depth", "Height", "Width")


class Level(nn.Module):
    """Residual blocks at one resolution, on the way down or up.

    resample: what leads here from the level before. pyramid: the image that joins after it.
    output: what is read off the last features. cross: after each block, of a network of captions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resample: nn.Module | None = None
        self.pyramid: InputPyramid | None = None
        self.blocks = nn.ModuleList()
        self.cross = nn.ModuleList()
        self.output: Output | None = None


@dataclass(frozen=True)
class Levels:
    """What the levels of one network are made of, from the first to the last of the encoder.

    widths: channels; attended: whether blocks have attention; looking: whether they look at tokens
    of text_channels, in heads of text_head_channels. resample: what lies between levels, a residual
    "block" or see `ResampleConv`.
    """

    options: BlockOptions
    widths: Sequence[int]
    attended: Sequence[bool]
    looking: Sequence[bool]
    resample: str
    text_channels: int
    text_head_channels: int

    def between(self, channels: int, direction: str) -> nn.Module:
        """What leads "down" or "up" from one level to the next."""
        if self.resample == "block":
            return ResidualBlock(channels, channels, self.options, direction)
        return ResampleConv(channels, direction, self.resample, self.options)

    def cross(self, channels: int) -> CrossAttention:
        """Features of so many channels that look at tokens."""
        heads = max(1, channels // self.text_head_channels)
        return CrossAttention(channels, self.text_channels, heads, self.options)

    def add_block(self, level: Level, i: int, channels: int, attention: bool) -> None:
        """One more block of level i, which takes so many channels."""
        width = self.widths[i]
        level.blocks.append(ResidualBlock(channels, width, self.options, attention=attention))
        if self.looking[i]:
            level.cross.append(self.cross(width))

    def encoder(
        self, channels: int, image: int, blocks: int, pyramid: str, combine: str
    ) -> tuple[nn.ModuleList, list[list[int]]]:
        """The levels down, and the channels of the features that each hands over.

        channels, image: of the features and the image at the start. pyramid, combine: see
        `InputPyramid`.
        """
        h, kept = channels, []  # h: channels as the features go on
        levels = [Level() for _ in self.widths]
        for i, level in enumerate(levels):
            if i > 0:
                level.resample = self.between(h, "down")
                if pyramid != "none":
                    level.pyramid = InputPyramid(image, h, pyramid, combine, self.options)
                    image = h if pyramid == "residual" else image
                    h = 2 * h if (pyramid, combine) == ("skip", "cat") else h
            kept.append([h])
            for _ in range(blocks):
                self.add_block(level, i, h, self.attended[i])
                h = self.widths[i]
                kept[i].append(h)
        return nn.ModuleList(levels), kept

    def middle(self, parts: Sequence[str]) -> nn.ModuleList:
        """What lies between, of "block" and "attention", which follows a block."""
        blocks, h = nn.ModuleList(), self.widths[-1]
        for j, part in enumerate(parts):
            follows = tuple(parts[j + 1 : j + 2]) == ("attention",)
            if part == "block":
                blocks.append(ResidualBlock(h, h, self.options, attention=follows))
            elif part != "attention" or j == 0 or parts[j - 1] != "block":
                raise UserError(f"middle {list(parts)}: 'block', each with 'attention' or not.")
        return blocks

    def decoder(
        self, kept: list[list[int]], blocks: int, attention: str, outputs: int, progressive: str
    ) -> nn.ModuleList:
        """The levels up, in the encoder's order; kept: the channels that it hands over.

        attention: after the "last" block of a level or after "every". outputs: channels read off
        the first level, and off all for progressive "skip".
        """
        h, levels = self.widths[-1], [Level() for _ in self.widths]
        for i, level in reversed(list(enumerate(levels))):
            if i < len(levels) - 1:
                level.resample = self.between(h, "up")
            for j in range(blocks):
                here = attention == "every" or j == blocks - 1
                self.add_block(level, i, h + kept[i].pop(), self.attended[i] and here)
                h = self.widths[i]
            if i == 0 or progressive == "skip":
                level.output = Output(h, outputs, self.options)
        return nn.ModuleList(levels)


def level_heights(
    size: tuple[int, ...], patch: int, levels: int, attention: tuple[int, ...]
) -> list[int]:
    """Height of each level; UserError when a size does not divide or no level is attended."""
    divisor = patch * 2 ** (levels - 1)
    for name, value in zip(
        SIDES[-len(size) :] if len(size) > 1 else ("Length",), size, strict=True
    ):
        if value % divisor:
            below, above = value // divisor * divisor, -(-value // divisor) * divisor
            nearest = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"{name} {value} is not divisible by {divisor} ({levels} levels, patch {patch}). "
                f"Use {nearest} (data.size with data.resize=pad), or fewer levels "
                "(net.multipliers)."
            )
    heights = [size[0] // patch // 2**level for level in range(levels)]
    if attention and not set(attention) & set(heights):
        raise UserError(
            f"attention={list(attention)}: the levels of this network have heights {heights}. "
            "None matches; choose among them, or () for none but the middle."
        )
    return heights


def check_depths(size: tuple[int, ...], picture: int, blocks: int, decoder_blocks: int) -> None:
    """UserError for shapes and depths that no U-Net has."""
    dims = len(size)
    if dims not in (1, 2, 3) or (dims != 2 and picture):
        raise UserError(
            f"a U-Net is of signals (L,), images (H, W) or volumes (D, H, W), and is told "
            f"pictures only of images (got size {tuple(size)}, picture={picture})."
        )
    if not 1 <= decoder_blocks <= blocks + 1:
        raise UserError(
            f"decoder_blocks must lie in 1..blocks + 1 = {blocks + 1} (got {decoder_blocks})."
        )
