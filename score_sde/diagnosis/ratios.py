"""Ratios and slopes with their standard errors: what is said of errors is said of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SURE = 4.0  # standard errors by which a figure must pass a bound before it is called so


def errors_of(x0: Tensor, found: Tensor, variance: float = 1.0) -> Tensor:
    """(n,): mean square a dimension over the variance; what is not finite is huge."""
    squares = (x0.double() - found.double()).square().flatten(1).mean(1) / variance
    return torch.nan_to_num(squares, nan=1e12, posinf=1e12).clamp_max(1e12)


class Slope(NamedTuple):
    """Of a least-squares line through the origin, and its standard error."""

    value: float
    stderr: float

    def off(self, by: float) -> bool:
        """Whether it is further from 1 than ``by``, by more than chance explains."""
        return abs(self.value - 1) > by + SURE * self.stderr


def slope(y: Tensor, x: Tensor) -> Slope:
    """Of y on x, (n, D) each: E y.x / E|x|^2, with the error over items."""
    products, squares = (y * x).sum(1), x.square().sum(1)
    total = float(squares.sum())
    if not total > 0:
        return Slope(math.nan, math.inf)
    value = float(products.sum()) / total
    residual = products - value * squares
    return Slope(value, math.sqrt(float(residual.square().sum())) / total)


class Ratio(NamedTuple):
    """The logarithm of a ratio of errors, and its standard error."""

    log: float
    stderr: float

    @classmethod
    def of(cls, a: float, b: float, stderr: float) -> Ratio:
        """a / b with the standard error of its logarithm."""
        return cls(math.log(max(a, 1e-12) / max(b, 1e-12)), stderr)

    @property
    def value(self) -> float:
        """The ratio."""
        return math.exp(min(self.log, 700.0))

    def above(self, bound: float) -> bool:
        """Whether it is, by more than chance explains."""
        return self.log - SURE * self.stderr > math.log(bound)

    def below(self, bound: float) -> bool:
        """Whether it is, by more than chance explains."""
        return self.log + SURE * self.stderr < math.log(bound)


def ratio(a: Tensor, b: Tensor, paired: bool = True) -> Ratio:
    """Of the means of errors (n,) of the same items, or of others if not paired."""
    mean_a, mean_b = (float(v.mean().clamp_min(1e-12)) for v in (a, b))
    log = math.log(mean_a / mean_b)
    if paired:
        variance = float((a / mean_a - b / mean_b).var()) / len(a)
    else:
        variance = float((a / mean_a).var()) / len(a) + float((b / mean_b).var()) / len(b)
    return Ratio(log, math.sqrt(variance))


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """The geometric mean of independent ratios; 1 of none."""
    n = max(len(ratios), 1)
    return Ratio(sum(r.log for r in ratios) / n, math.sqrt(sum(r.stderr**2 for r in ratios)) / n)
