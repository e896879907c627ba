"""The parts of `Transformer`: what modulates its blocks, and a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.nets.attention import MLP, Attention, RMSNorm
from score_sde.nets.layers import SinusoidalEmbedding


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a transformer share; see `Transformer`."""

    width: int
    heads: int
    hidden: int
    mlp: str
    modulation: str
    norm: str
    norm_eps: float
    mlp_norm_eps: float
    affine: bool
    qk_norm: bool
    qkv_bias: bool
    dropout: float
    crossed: bool


class Embedding(nn.Module):
    """What modulates: the noise label (B,), a class (B,) and a pooled text as one vector (B, D).

    The class table has a row more than there are classes: the last stands for any class.
    """

    def __init__(self, width: int, features: int, classes: int, pooled_dim: int, endpoint: bool):
        super().__init__()
        self.features = SinusoidalEmbedding(features, endpoint=endpoint, divide_last=True)
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)
        self.classes = nn.Embedding(classes + 1, width) if classes else None
        self.pooled = nn.Linear(pooled_dim, width) if pooled_dim else None

    def time(self, noise_label: Tensor) -> Tensor:
        """Of the noise label alone."""
        features = self.features(noise_label).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(features)))

    def forward(self, noise_label: Tensor, row: Tensor | None, pooled: Tensor | None) -> Tensor:
        """row: of the class table, (B,)."""
        out = self.time(noise_label)
        if self.classes is not None and row is not None:
            out = out + self.classes(row)
        if self.pooled is not None and pooled is not None:
            out = out + self.pooled(pooled.to(out.dtype))
        return out


class Block(nn.Module):
    """Attention, cross-attention to a text, MLP; each added to the tokens (B, N, width)."""

    def __init__(self, o: BlockOptions, skip: bool):
        super().__init__()
        self.norm1 = make_norm(o.norm, o.width, o.norm_eps, o.affine)
        self.attention = Attention(o.width, o.heads, qk_norm=o.qk_norm, bias=o.qkv_bias)
        self.cross = Attention(o.width, o.heads, o.width) if o.crossed else None
        self.norm2 = make_norm(o.norm, o.width, o.mlp_norm_eps, o.affine)
        self.mlp = MLP(o.width, o.hidden, o.mlp, o.dropout)
        self.modulation = nn.Linear(o.width, 6 * o.width) if o.modulation == "each" else None
        table = torch.randn(6, o.width) / o.width**0.5
        self.table = nn.Parameter(table) if o.modulation == "shared" else None
        self.skip = nn.Linear(2 * o.width, o.width) if skip else None

    def forward(
        self,
        x: Tensor,
        c: Tensor | None,
        text: Tensor | None,
        text_mask: Tensor | None,
        mask: Tensor | None,
        angles: Tensor | None,
    ) -> Tensor:
        """c: the embedding (B, width) for a layer of its own, or (B, 6, width) for a table."""
        if self.modulation is not None and c is not None:
            c = self.modulation(F.silu(c)).unflatten(-1, (6, -1))
        elif self.table is not None and c is not None:
            c = self.table + c
        if c is None:
            x = x + self.attention(self.norm1(x), mask=mask, angles=angles)
            x = x if self.cross is None else x + self.cross(x, text, text_mask)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = c[:, :, None].unbind(1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(h, mask=mask, angles=angles)
        x = x if self.cross is None else x + self.cross(x, text, text_mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def small(count: int, width: int) -> nn.Parameter:
    """A learned table (count, width), small at first."""
    return nn.Parameter(0.02 * torch.randn(count, width))


def make_norm(kind: str, width: int, eps: float, affine: bool) -> nn.Module:
    """A norm over the last axis: "rms", or "layer" with or without weights of its own."""
    return RMSNorm(width, eps) if kind == "rms" else nn.LayerNorm(width, eps, affine)
