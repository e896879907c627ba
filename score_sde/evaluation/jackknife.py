r"""How far a number of n samples is from that of infinitely many: the block jackknife.

The samples are divided at random into g blocks, and the statistic is computed again without each:
theta_1 ... theta_g. Then (Quenouille 1956, Tukey 1958)

    stderr^2 = (g - 1)/g sum_j (theta_j - mean)^2,    corrected = g theta - (g - 1) mean,

the second of which removes a bias in 1/n. A bootstrap would not do: it repeats samples, which adds
the bias of a Frechet distance once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.noise import generator_of


class Estimate(NamedTuple):
    """A statistic, its values without each block in turn, and its value without the bias in 1/n.

    corrected: None where a statistic has no limit that it could be corrected to.
    """

    value: float
    without: tuple[float, ...] = ()
    corrected: float | None = None

    @property
    def stderr(self) -> float:
        """The standard error by the jackknife; NaN without blocks."""
        g = len(self.without)
        if g < 2:
            return math.nan
        mean = sum(self.without) / g
        return math.sqrt((g - 1) / g * sum((w - mean) ** 2 for w in self.without))


def bias(value: float, without: Sequence[float]) -> float:
    """The part of ``value`` that falls like 1/n, by its values without each block."""
    return (len(without) - 1) * (sum(without) / len(without) - value)


def block_of(n: int, blocks: int, seed: int = 0) -> Tensor:
    """The block of each of n samples, (n,) int64, at random and of sizes that differ by one."""
    if not 2 <= blocks <= n:
        raise UserError(f"blocks must be between 2 and the number of samples {n} (got {blocks}).")
    order = torch.randperm(n, generator=generator_of(seed))
    return torch.arange(n).remainder(blocks)[order]
