"""Two-dimensional sets that show what a model has learned; each (n, 2) float32, from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def ring8(n: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians on a circle of radius 1.5."""
    angle = torch.randint(0, 8, (n,), generator=generator) * (2 * math.pi / 8)
    centres = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.1 * torch.randn(n, 2, generator=generator)


def moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles."""
    angle = math.pi * torch.rand(n, generator=generator)
    lower = torch.randint(0, 2, (n,), generator=generator).bool()
    x = torch.where(lower, 1 - angle.cos(), angle.cos()) - 0.5
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin()) - 0.25
    return torch.stack([x, y], 1) + 0.05 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """The dark squares of a 4 x 4 board on [-2, 2]^2."""
    x = 4 * torch.rand(n, generator=generator) - 2
    row = torch.randint(0, 2, (n,), generator=generator) * 2 + torch.floor(x).remainder(2)
    y = row + torch.rand(n, generator=generator) - 2
    return torch.stack([x, y], 1)


def swissroll(n: int, generator: torch.Generator) -> Tensor:
    """A spiral with a little noise."""
    turn = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    spiral = torch.stack([turn * turn.cos(), turn * turn.sin()], 1) / 7.5
    return spiral + 0.05 * torch.randn(n, 2, generator=generator)


TOYS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "ring8": ring8,
    "moons": moons,
    "checkerboard": checkerboard,
    "swissroll": swissroll,
}
