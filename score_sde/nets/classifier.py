"""Networks that tell the class of a noisy sample: `net(x, noise_label)` -> logits (B, classes)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import Momentum, Size, Sizes, UserError, checked
from score_sde.nets.blocks import BlockOptions, ResidualBlock
from score_sde.nets.layers import SinusoidalEmbedding, check_states, conv
from score_sde.nets.mlp import MLP


class ImageClassifier(nn.Module):
    """The encoder of a U-Net, the mean of its features over the pixels, and a linear layer.

    The classifier of 2105.05233 (section 4) in small, its attention pooling a mean. x (B, channels,
    *size), noise_label (B,) -> (B, classes). width, multipliers, blocks, patch, dropout: as of
    `UNet`.
    """

    @checked("net")
    def __init__(
        self,
        channels: Size,
        size: tuple[Size, Size],
        classes: Size,
        width: Size = 32,
        multipliers: Sizes = (1, 2),
        blocks: Size = 1,
        patch: Size = 1,
        dropout: Momentum = 0.1,
    ):
        super().__init__()
        whole = patch * 2 ** (len(multipliers) - 1)
        if size[0] % whole or size[1] % whole:
            raise UserError(
                f"images of {size[0]} x {size[1]} are not divisible by {whole} "
                f"({len(multipliers)} levels, patch {patch}): take fewer levels (net.multipliers)."
            )
        self.classes, self.patch, self.shape = classes, patch, (channels, *size)
        options = BlockOptions(dropout, "scale_shift", group_channels=8)
        self.waves = SinusoidalEmbedding(width)
        self.embedding = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(),
                                       nn.Linear(4 * width, 4 * width), nn.SiLU())  # fmt: skip
        self.conv_in = conv(channels * patch**2, width)
        self.body, h = nn.ModuleList(), width
        for i, multiplier in enumerate(multipliers):
            if i > 0:
                self.body.append(ResidualBlock(h, h, options, "down"))
            for _ in range(blocks):
                self.body.append(ResidualBlock(h, width * multiplier, options))
                h = width * multiplier
        self.modulation = nn.ModuleList(
            nn.Linear(4 * width, block.modulation_channels)  # type: ignore[arg-type]
            for block in self.body
        )
        self.norm, self.head = options.norm(h), nn.Linear(h, classes)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """See the class."""
        check_states(self, x, self.shape)
        told = self.embedding(self.waves(noise_label).to(self.head.weight.dtype))
        h = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for block, modulation in zip(self.body, self.modulation, strict=True):
            h = block(h, modulation(told))
        return self.head(F.silu(self.norm(h)).mean((2, 3)))


class VectorClassifier(MLP):
    """An `MLP` with a logit for each class: x (B, dim), noise_label (B,) -> (B, classes)."""

    @checked("net")
    def __init__(self, dim: Size, classes: Size, width: Size = 128, depth: Size = 3):
        super().__init__(dim, width, depth)
        self.classes, self.last = classes, nn.Linear(width, classes)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:  # type: ignore[override]
        """See the class; a classifier is told nothing beside the noise."""
        return self.last(self.features(x, noise_label))
