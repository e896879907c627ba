r"""The U-Net of this field, one class with named blocks; DDPM++ is one setting of its options.

    x --(space to depth)-- conv -- level 0 blocks -- down -- level 1 blocks -- ... -- middle
                                        |                        |                       |
    y --(depth to space)-- conv -- level 0 blocks --  up  -- level 1 blocks -- ... ------+

Every encoder block's output is kept and concatenated to the input of its mirror image in the
decoder. The noise label enters each residual block through one embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.nets.layers import (
    EMBEDDINGS,
    AttentionBlock,
    ResampleConv,
    ResidualBlock,
    conv,
    group_norm,
    linear,
)

PRESETS: dict[str, dict[str, Any]] = {
    # 61 804 419 parameters on 3 x 32 x 32 (2011.13456, appendix H).
    "ddpmpp": dict(
        width=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(16,), dropout=0.1,
        skip_scale=math.sqrt(0.5),
    ),
    "ddpmpp_deep": dict(
        width=128, multipliers=(1, 2, 2, 2), blocks=8, attention=(16,), dropout=0.1,
        skip_scale=math.sqrt(0.5),
    ),
    # For CPUs: all arithmetic on a quarter of the pixels.
    "small": dict(
        width=48, multipliers=(1, 2), blocks=2, decoder_blocks=2, middle=("block",),
        resample="conv", attention=(8, 7), patch=2, modulation="scale_shift", group_channels=16,
    ),
}  # fmt: skip


class UNet(nn.Module):
    """`net(x, label)`: images x (B, channels, H, W) and labels (B,) to (B, out_channels, H, W).

    channels, size: what the images are; size is (H, W).
    out_channels: channels of the result, as many as go in unless given.
    width, multipliers: channels of level i are width * multipliers[i]; each level halves H and W.
    blocks: residual blocks a level of the encoder.
    decoder_blocks: residual blocks a level of the decoder; one more than the encoder's if None.
    middle: what lies between, of "block" and "attention".
    resample: between levels, a residual "block" (BigGAN, DDPM++) or a "conv" (DDPM).
    attention: attention at levels whose height is listed.
    heads: attention heads.
    dropout: inside residual blocks, in training.
    patch: space to depth by this factor before the first convolution, and back after the last:
        the arithmetic runs on H/patch x W/patch.
    modulation, skip_scale, group_channels: see `ResidualBlock`.
    embedding: "positional" for labels of DDPM's size, "fourier" for labels like log sigma.

    Raises ValueError when H or W does not divide by patch * 2^(levels - 1), or when no level has
    a listed attention height.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        out_channels: int | None = None,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 4,
        decoder_blocks: int | None = None,
        middle: tuple[str, ...] = ("block", "attention", "block"),
        resample: str = "block",
        attention: tuple[int, ...] = (16,),
        heads: int = 1,
        dropout: float = 0.0,
        patch: int = 1,
        modulation: str = "shift",
        skip_scale: float = 1.0,
        group_channels: int = 4,
        embedding: str = "positional",
    ):
        super().__init__()
        heights = _level_heights(size, patch, len(multipliers), attention)
        decoder_blocks = blocks + 1 if decoder_blocks is None else decoder_blocks
        for name, value, choices in (
            ("modulation", modulation, ("shift", "scale_shift")),
            ("resample", resample, ("block", "conv")),
            ("embedding", embedding, tuple(EMBEDDINGS)),
            *(("middle", part, ("block", "attention")) for part in middle),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} is unknown; choose from {list(choices)}.")
        if not 1 <= decoder_blocks <= blocks + 1:
            raise ValueError(
                f"decoder_blocks must lie in 1..blocks + 1 = {blocks + 1} (got {decoder_blocks})."
            )
        self.channels, self.size, self.patch = channels, tuple(size), patch
        outputs = (channels if out_channels is None else out_channels) * patch**2
        emb = 4 * width
        self.embedding = EMBEDDINGS[embedding](width)
        self.embed0, self.embed1 = linear(width, emb), linear(emb, emb)

        common: dict[str, Any] = dict(skip_scale=skip_scale, group_channels=group_channels)

        def block(inputs: int, outputs: int, direction: str | None = None) -> nn.Module:
            if direction is not None and resample == "conv":
                return ResampleConv(inputs, direction)
            return ResidualBlock(inputs, outputs, emb, dropout, direction, modulation, **common)

        inputs = width
        kept: list[list[int]] = []  # channels that each level of the encoder hands over
        self.conv_in = conv(channels * patch**2, width)
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        for level, multiplier in enumerate(multipliers):
            kept.append([inputs])
            for i in range(blocks):
                name = f"level{level}_block{i}"
                self.encoder[name] = block(inputs, width * multiplier)
                inputs = width * multiplier
                if heights[level] in attention:
                    self.encoder[f"{name}_attention"] = AttentionBlock(inputs, heads, **common)
                kept[-1].append(inputs)
            if level < len(multipliers) - 1:
                self.encoder[f"level{level}_down"] = block(inputs, inputs, "down")

        self.middle = nn.ModuleDict()
        for i, part in enumerate(middle):
            self.middle[f"{part}{i}"] = (
                block(inputs, inputs)
                if part == "block"
                else AttentionBlock(inputs, heads, **common)
            )
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(decoder_blocks):
                name = f"level{level}_block{i}"
                self.decoder[name] = block(inputs + kept[level].pop(), width * multiplier)
                inputs = width * multiplier
            if heights[level] in attention:
                self.decoder[f"level{level}_attention"] = AttentionBlock(inputs, heads, **common)
            if level > 0:
                self.decoder[f"level{level}_up"] = block(inputs, inputs, "up")
        self.norm_out = group_norm(inputs, group_channels)
        self.conv_out = conv(inputs, outputs, scale=0.0)

    @classmethod
    def preset(cls, name: str, channels: int, size: tuple[int, int], **changes: Any) -> UNet:
        """A published (or proven) setting by name, a key of `PRESETS`, with changes."""
        if name not in PRESETS:
            raise ValueError(f"unknown U-Net preset {name!r}; choose from {list(PRESETS)}.")
        return cls(channels, size, **{**PRESETS[name], **changes})

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if x.shape[1:] != (self.channels, *self.size):
            raise ValueError(
                f"this U-Net was built for states (B, {self.channels}, {self.size[0]}, "
                f"{self.size[1]}); got {tuple(x.shape)}."
            )
        embedding = self.embed1(F.silu(self.embed0(self.embedding(label))))

        h = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        kept = [[h]]  # by level
        for name, block in self.encoder.items():
            if name.endswith("attention"):
                h = kept[-1][-1] = block(h)
            else:
                h = block(h, embedding)
                if name.endswith("down"):
                    kept.append([h])
                else:
                    kept[-1].append(h)
        for name, block in self.middle.items():
            h = block(h) if name.startswith("attention") else block(h, embedding)
        for name, block in self.decoder.items():
            if name.endswith("attention"):
                h = block(h)
            elif name.endswith("up"):
                h = block(h, embedding)
                kept.pop()
            else:
                h = block(torch.cat([h, kept[-1].pop()], dim=1), embedding)
        h = F.silu(self.norm_out(h))
        y = self.conv_out(h)
        return F.pixel_shuffle(y, self.patch) if self.patch > 1 else y


def _level_heights(
    size: tuple[int, int], patch: int, levels: int, attention: tuple[int, ...]
) -> list[int]:
    """Height of each level; ValueError when a size does not divide or no level is attended."""
    divisor = patch * 2 ** (levels - 1)
    for name, value in zip(("Height", "Width"), size, strict=True):
        if value % divisor:
            below, above = value // divisor * divisor, -(-value // divisor) * divisor
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"{name} {value} is not divisible by {divisor} ({levels} levels, patch {patch}). "
                f"Use {nearest} (data.size with data.resize=pad), or fewer levels "
                "(net.multipliers)."
            )
    heights = [size[0] // patch // 2**level for level in range(levels)]
    if attention and not set(attention) & set(heights):
        raise ValueError(
            f"attention={list(attention)}: the levels of this network have heights {heights}. "
            "None matches; choose among them, or () for none but the middle."
        )
    return heights
