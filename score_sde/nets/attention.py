"""What transformers are made of: positions, attention over tokens, and what follows it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError
from score_sde.nets.layers import check_divides


def sincos_positions(rows: int, columns: int, dim: int, spacing: float = 1.0) -> Tensor:
    """Fixed embeddings (rows * columns, dim) of a grid's places, row by row (2212.09748).

    The first half of the channels tells the column, the second the row, each as [sin, cos] at
    dim/4 geometric frequencies from 1 to 1/10000. spacing: distance of neighbours.
    """
    frequencies = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def along(places: Tensor) -> Tensor:
        angles = places[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns) * spacing
    column = torch.arange(columns, dtype=torch.float64).repeat(rows) * spacing
    return torch.cat([along(column), along(row)], 1).float()


def axial_angles(rows: int, columns: int, dim: int) -> Tensor:
    """Angles (rows * columns, dim / 2) of rotary positions: half by the row, half by the column.

    A head of ``dim`` channels has dim / 2 pairs to rotate (2104.09864); a pair of frequency w at
    row i turns by w i, so that scores depend on differences of rows and of columns alone.
    """
    frequencies = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    return torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], 1).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Heads x (B, heads, N, dim) with pair j of token i turned by angles[i, j] (N, dim / 2)."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) over the last axis, times a weight (1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        square = x.float().square().mean(-1, keepdim=True)
        return x * torch.rsqrt(square + self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Attention of tokens (B, N, dim) to themselves, or to a context (B, L, context_dim).

    qk_norm: root mean square norms of queries and keys, which keep low precision from blowing up.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        qk_norm: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        check_divides(dim, heads, "heads")
        self.heads, self.crossed = heads, context_dim is not None
        if context_dim is None:
            self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        else:
            self.q, self.kv = nn.Linear(dim, dim, bias), nn.Linear(context_dim, 2 * dim, bias)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> Tensor:
        """mask: (B, keys) bool, False for tokens that are not there. angles: see `rotate`."""
        if self.crossed:
            q, (k, v) = self.q(x), self.kv(context).chunk(2, -1)
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (u.unflatten(-1, (self.heads, -1)).transpose(1, 2) for u in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        seen = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The layers after attention: "gelu" (exact), "gelu_tanh", or "swiglu" (2002.05202)."""

    def __init__(self, dim: int, hidden: int, kind: str, dropout: float = 0.0):
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(dim, 2 * hidden if kind == "swiglu" else hidden)
        self.second = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "swiglu":
            gate, value = h.chunk(2, -1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return self.second(self.dropout(h))


def small_normal(module: nn.Module) -> None:
    """Xavier weights and zero biases of all linear layers of a module, in place (2212.09748)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Weights and bias 0, in place: what the layer adds to begins as it is."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def patches_per_side(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(rows, columns) of patches; UserError for a size that patches do not divide."""
    height, width = size
    if patch < 1 or height % patch or width % patch:
        raise UserError(
            f"images of {height}x{width} do not divide into patches of {patch}x{patch}; "
            f"take a patch that divides {math.gcd(height, width)}."
        )
    return height // patch, width // patch
