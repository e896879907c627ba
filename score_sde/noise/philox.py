r"""Philox 4x32-10, random numbers as a function of a key and a counter (Salmon et al. 2011).

There is no state to go through, so the numbers of all samples come from one call, on whatever
device, and are the same on each: a few products of whole numbers, ten times,

    c0, c1, c2, c3 <- hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)

with k0, k1 raised by constants after each round. Box and Muller's method makes two of them two
normal ones, in float32: equal between devices up to the rounding of their log, sin and cos.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLY = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def _halves(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of factor x, both below 2^32; int64 wraps without harm."""
    product = x * factor
    return (product >> 32) & MASK, product & MASK


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words below 2^32, int64, of a counter of four and a key of two that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _halves(MULTIPLY[0], c0)
        high1, low1 = _halves(MULTIPLY[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def normal(seeds: Tensor, draws: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal numbers (B, *shape), float32: row i is of (seeds[i], draws[i], stream) alone.

    seeds: (B,) int64, all bits count. draws: (B,) or () int64, at least 0, which draw it is.
    """
    numel = math.prod(shape)
    blocks = torch.arange(-(-numel // 4), device=seeds.device)[None]
    key = (seeds & MASK)[:, None], ((seeds >> 32) & MASK)[:, None]
    zero = torch.zeros_like(blocks)
    draw = draws.expand(len(seeds))[:, None]
    words = philox((blocks, zero, draw, zero + stream), key)
    unit = [(w.expand(len(seeds), -1).float() + 0.5) * 2.0**-32 for w in words]
    parts = []
    for u, v in (unit[:2], unit[2:]):
        radius, angle = (-2 * u.log()).clamp_min(0).sqrt(), 2 * math.pi * v
        parts += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(parts, 2).flatten(1)[:, :numel].reshape(len(seeds), *shape)
