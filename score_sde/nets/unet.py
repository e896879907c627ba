r"""The U-Net of this field: one class, whose options give each of its published forms.

    x --(space to depth)-- conv -- level 0 -- down -- level 1 -- ... -- down -- last level
                                      |                  |                          |    \
                                      |                  |                          |   middle
                                      |                  |                          |    /
    y --(depth to space)-- conv -- level 0 --  up  -- level 1 -- ... --  up  -- last level

A level is a list of residual blocks, some with attention. The output of every block of the
encoder is kept and concatenated to the input of its mirror image in the decoder. NCSN++ also has
pyramids: resampled images that enter the encoder at each level, and that the decoder adds up.
The noise label, class and augmentation labels enter each block through one embedding, as does the
vector of a caption; its tokens are looked at after each block of the levels that say so. A picture
that is to be continued or enlarged joins the input as more channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import (
    Depth,
    Few,
    Fraction,
    NonNegative,
    Positive,
    Size,
    Sizes,
    UserError,
    checked,
    memory_for,
    named,
)
from score_sde.nets.blocks import BlockOptions
from score_sde.nets.embedding import LabelEmbedding
from score_sde.nets.layers import (
    check_states,
    check_untold,
    depth_to_space,
    initialize_rows,
    space_to_depth,
    spread,
)
from score_sde.nets.levels import Levels, check_depths, level_heights
from score_sde.nets.presets import PRESETS
from score_sde.nets.text import TextInput, Words


class UNet(LabelEmbedding):
    """`net(x, noise_label)`: images x (B, channels, H, W), labels (B,) to (B, out_channels, H, W).

    channels, size: what the states are; size is (H, W) of images, (L,) of signals (B, channels, L)
        and (D, H, W) of volumes (B, channels, D, H, W): all layers are then of so many dimensions.
    out_channels: channels of the result, as many as go in unless given.
    width, multipliers: channels of level i are width * multipliers[i]; each level halves H and W.
    blocks: residual blocks a level of the encoder.
    decoder_blocks: residual blocks a level of the decoder; one more than the encoder's if None.
    middle: what lies between, of "block" and "attention", which follows a block.
    resample: between levels, a residual "block" (BigGAN, DDPM++), or see `ResampleConv`.
    attention: attention at levels whose height is listed, after each block of the encoder.
    decoder_attention: there in the decoder after the "last" block of the level, or after "every".
    patch: space to depth by this factor before the first convolution, and back after the last:
        the arithmetic runs on H/patch x W/patch.
    embedding: "positional" for labels of DDPM's size ("positional_adm" and "positional_edm" with
        the frequencies of these codes, see `SinusoidalEmbedding`), "fourier" for log sigma.
    classes, augment: number of classes, of augmentation labels.
    class_dropout: share of the classes that training has replaced by the row of zeros, which then
        stands for any class (2207.12598); see `conditioning.told`. A fact: nothing is dropped here.
    class_embedding: a class enters the "input" of the embedding's two layers, or their "output".
    text, text_table: width of a text encoder's states, and rows of a learned table of words, of a
        network that is told captions; see `TextInput`. text_channels: of a token in here.
    text_attention: heights of the levels that look at tokens, all if None, and the middle.
    text_head_channels: of an attention head there, or the level's channels if these are fewer.
    picture: channels of a picture that the network is told, enlarged to (H, W) if it is smaller
        (2104.07636); picture_level: of its noise, 0 for none (2106.15282), is embedded.
    picture_noise: training adds noise to it, of a level between 0 and this, drawn for each row.
    progressive_input, progressive_combine: see `InputPyramid`.
    progressive_output: "skip" reads an image off every level of the decoder and adds them up.
    norm_groups: groups of single group norms, by their names in the network, that are to have
        others than the rule gives them.
    second_time: whether it is told of a second time, see `models.FlowMap`.
    dropout, modulation, skip_scale, skip_conv, group_channels, groups, norm_eps, heads,
        head_channels, taps: see `BlockOptions`.

    Raises UserError when H or W does not divide by patch * 2^(levels - 1), or when no level has
    a listed attention height.
    """

    knows_nothing = True  # rows of `nothing_like` are no condition
    encoder: Any  # ModuleLists of Level, and of ResidualBlock in the middle
    middle: Any
    decoder: Any

    @checked("net")
    @memory_for("net")
    def __init__(
        self,
        channels: Size,
        size: tuple[Size, ...],
        out_channels: Size | None = None,
        width: Size = 128,
        multipliers: Sizes = (1, 2, 2, 2),
        blocks: Depth = 4,
        decoder_blocks: Depth | None = None,
        middle: tuple[Literal["block", "attention"], ...] = ("block", "attention", "block"),
        resample: Literal["block", "conv", "conv_symmetric", "plain"] = "block",
        attention: tuple[Size, ...] = (16,),
        decoder_attention: Literal["last", "every"] = "last",
        heads: Size = 1,
        head_channels: Size | None = None,
        dropout: Fraction = 0.0,
        patch: Size = 1,
        modulation: Literal["shift", "scale_shift"] = "shift",
        skip_scale: Positive = 1.0,
        skip_conv: bool = True,
        group_channels: Size = 4,
        groups: Size = 32,
        norm_eps: Positive = 1e-6,
        embedding: Literal[
            "positional", "positional_adm", "positional_edm", "fourier"
        ] = "positional",
        classes: Few = 0,
        class_dropout: Fraction = 0.0,
        class_embedding: Literal["input", "output"] = "input",
        augment: Few = 0,
        taps: tuple[int, ...] = (1, 1),
        text: Few = 0,
        text_table: Few = 0,
        text_channels: Size = 128,
        text_attention: tuple[Size, ...] | None = None,
        text_head_channels: Size = 32,
        picture: Few = 0,
        picture_noise: NonNegative = 0.0,
        progressive_input: Literal["none", "skip", "residual"] = "none",
        progressive_combine: Literal["sum", "cat"] = "sum",
        progressive_output: Literal["none", "skip"] = "none",
        norm_groups: Mapping[str, int] | None = None,
        second_time: bool = False,
    ):
        super().__init__()
        dims = len(size)
        decoder_blocks = blocks + 1 if decoder_blocks is None else decoder_blocks
        check_depths(size, picture, blocks, decoder_blocks)
        heights = level_heights(size, patch, len(multipliers), attention)
        self.channels, self.size, self.patch = channels, tuple(size), patch
        self.out_channels = channels if out_channels is None else out_channels
        self.classes, self.class_dropout = classes, class_dropout
        self.augment, self.class_embedding = augment, class_embedding
        options = BlockOptions(
            dropout, modulation, skip_scale, skip_conv, group_channels, groups, norm_eps,
            heads, head_channels, tuple(taps), dims,
        )  # fmt: skip
        self.text, self.text_table, self.picture = text, text_table, picture
        self.picture_noise = picture_noise
        image, outputs = (channels + picture) * patch**dims, self.out_channels * patch**dims
        told = text > 0 or text_table > 0
        looking = heights if text_attention is None else text_attention
        levels = Levels(
            options, [width * multiplier for multiplier in multipliers],
            [height in attention for height in heights],
            [told and height in looking for height in heights],
            resample, text_channels, text_head_channels,
        )  # fmt: skip
        self.words = TextInput(text, text_table, text_channels, 4 * width) if told else None
        self._make_embedding(width, embedding, picture > 0, second_time)
        self.conv_in = options.conv(image, width)
        self.encoder, kept = levels.encoder(
            width, image, blocks, progressive_input, progressive_combine
        )
        self.middle = levels.middle(middle)
        looks = told and len(middle) > 0
        self.middle_cross = levels.cross(levels.widths[-1]) if looks else None
        self.decoder = levels.decoder(
            kept, decoder_blocks, decoder_attention, outputs, progressive_output
        )
        self.enlarge = options.resample("up") if progressive_output == "skip" else None

        self.shares = [block.modulation_channels for _, block in self.modulated()]
        self.modulation = nn.Linear(4 * width, sum(self.shares))
        initialize_rows(self.modulation, self.shares)
        self._regroup(norm_groups or {})

    def _regroup(self, groups: Mapping[str, int]) -> None:
        known = {name: m for name, m in self.named_modules() if isinstance(m, nn.GroupNorm)}
        for name, count in groups.items():
            if name not in known or count < 1 or known[name].num_channels % count:
                what = f"has {known[name].num_channels} channels" if name in known else "is unknown"
                raise UserError(f"norm_groups: {name} {what}; it cannot have {count} groups.")
            known[name].num_groups = count

    @classmethod
    def preset(cls, name: str, channels: int, size: tuple[int, ...], **changes: Any) -> UNet:
        """A published (or proven) setting by name, a key of `PRESETS`, with changes."""
        return cls(channels, size, **{**named(PRESETS, name, "the preset"), **changes})

    def modulated(self) -> Iterator[tuple[str, Any]]:
        """Names and modules of what takes a share of the modulation, in order of execution."""
        for part, levels in (("encoder", self.encoder), ("decoder", self.decoder)):
            order = range(len(levels)) if part == "encoder" else reversed(range(len(levels)))
            if part == "decoder":
                yield from ((f"middle.{j}", block) for j, block in enumerate(self.middle))
            for i in order:
                if levels[i].resample is not None:
                    yield f"{part}.{i}.resample", levels[i].resample
                for j, block in enumerate(levels[i].blocks):
                    yield f"{part}.{i}.blocks.{j}", block

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        text_ids: Tensor | None = None,
        picture: Tensor | None = None,
        picture_level: Tensor | None = None,
        second_label: Tensor | None = None,
    ) -> Tensor:
        """See the class. class_labels: integers (B,), or rows (B, classes) of weights; None is
        the row of zeros, as is -1 among integers. augment_labels: (B, augment), or None. text (B,
        L, D), text_mask (B, L), pooled (B, D), text_ids (B, L): see `TextInput`. picture: (B, C,
        h, w), in the range of x; picture_level: (B,), the noise in it, 0 (None) to 1. second_label:
        (B,), of DDPM's size, of a network with second_time."""
        check_states(self, x, (self.channels, *self.size))
        if not self.classes:
            check_untold(self, class_labels=class_labels)
        if picture is not None and self.training and self.picture_noise:
            picture_level = self.picture_noise * torch.rand_like(noise_label)
            noise = torch.randn_like(picture)
            picture = picture + spread(picture_level[:, None], picture).to(picture.dtype) * noise
        embedding = self.embed(
            noise_label, class_labels, augment_labels, picture_level, second_label
        )
        words = None
        if self.words is not None:
            words = self.words(len(x), text, text_mask, pooled, text_ids)
            embedding = embedding + words.vector
        else:
            check_untold(self, text=text, text_ids=text_ids)
        x = self._with_picture(x, picture)
        shares = iter(self.modulation(F.silu(embedding)).split(self.shares, dim=1))

        h, kept = self._encode(space_to_depth(x, self.patch), shares, words)
        for block in self.middle:
            h = block(h, next(shares))
        h = h if self.middle_cross is None else self.middle_cross(h, words)
        return depth_to_space(self._decode(h, kept, shares, words), self.patch)

    def _encode(
        self, image: Tensor, shares: Iterator[Tensor], words: Words | None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """The features of the last level, and what each level keeps for its mirror image."""
        h = self.conv_in(image)
        kept: list[list[Tensor]] = []
        for level in self.encoder:
            if level.resample is not None:
                h = level.resample(h, next(shares))
            if level.pyramid is not None:
                image, h = level.pyramid(image, h)
            kept.append([h])
            for i, block in enumerate(level.blocks):
                h = _told(level, i, block(h, next(shares)), words)
                kept[-1].append(h)
        return h, kept

    def _decode(
        self, h: Tensor, kept: list[list[Tensor]], shares: Iterator[Tensor], words: Words | None
    ) -> Tensor:
        """The output at the first level, from the last one's features and all that was kept."""
        y: Tensor | None = None
        for level in reversed(self.decoder):
            skips = kept.pop()
            if level.resample is not None:
                h = level.resample(h, next(shares))
            for i, block in enumerate(level.blocks):
                h = block(torch.cat([h, skips.pop()], dim=1), next(shares))
                h = _told(level, i, h, words)
            if level.output is not None:
                part = level.output(h)
                y = part if y is None or self.enlarge is None else self.enlarge(y) + part
        assert y is not None
        return y

    def _with_picture(self, x: Tensor, picture: Tensor | None) -> Tensor:
        """x and, as more channels, the picture at its size; zeros without one."""
        if not self.picture:
            check_untold(self, picture=picture)
            return x
        if picture is None:
            return torch.cat([x, x.new_zeros(len(x), self.picture, *self.size)], 1)
        if picture.shape[2:] != x.shape[2:]:
            picture = F.interpolate(picture, x.shape[2:], mode="bicubic", antialias=True)
        return torch.cat([x, picture.to(x.dtype)], 1)


def _told(level: Any, i: int, h: Tensor, words: Words | None) -> Tensor:
    """The features after block i of a level, having looked at the words where it does."""
    return level.cross[i](h, words) if i < len(level.cross) else h
