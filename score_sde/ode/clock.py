r"""The time in which the probability flow is integrated: a clock of noise levels s = sigma/alpha.

    u = log((s + k) / (1 + s/c))

is log s around the data's scale, linear in s below k and saturating above c: far above the data and
far below them the flow hardly turns, and steps grow. Equal steps in u do nearly as well as adaptive
ones, for every process: processes differ most in how far down they go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """u = log((s + k)/(1 + s/c)) of a noise level s, k < c."""

    k: float
    c: float

    def u(self, s: float) -> float:
        """Time at a level."""
        return math.log((s + self.k) / (1 + s / self.c))

    def level(self, u: Tensor) -> Tensor:
        """The level at a time, like u."""
        return (u.exp() - self.k) / (1 - u.exp() / self.c)

    def speed(self, s: Tensor) -> Tensor:
        """ds/du at a level, like s."""
        return (s + self.k) * (s + self.c) / (self.c - self.k)
