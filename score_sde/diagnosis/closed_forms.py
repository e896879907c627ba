"""Denoisers of training items that need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from score_sde.evaluation import distances

MOST_DIMS = 1500  # up to which covariances are formed


class Linear:
    """E[x_0 | x_t] of a Gaussian with the moments of items (N, ...): of x (n, D), like x.

    Above 1500 coordinates they are taken to be uncorrelated.
    """

    def __init__(self, items: Tensor):
        x = items.flatten(1).double()
        self.mean, self.axes = x.mean(0), None
        if x.shape[1] > MOST_DIMS:
            self.values = (x - self.mean).square().mean(0)
        else:
            covariance = torch.cov(x[:5000].T).reshape(x.shape[1], -1)
            self.values, self.axes = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The guess behind x = alpha x_0 + sigma eps."""
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        off = x - alpha * self.mean
        return self.mean + (
            off * gain if self.axes is None else (off @ self.axes * gain) @ self.axes.T
        )


def posterior_mean(whole: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] if x_0 is one of the training items."""
    parts = []
    for rows in x.split(64):
        squared = distances.squared_distances(rows, alpha * whole)
        parts.append(torch.softmax(-squared / (2 * sigma**2), 1) @ whole)
    return torch.cat(parts)


def leave_one_out(
    whole: Tensor, own: Tensor, x: Tensor, alpha: float, sigma: float, widths: Sequence[float]
) -> list[Tensor]:
    """The same of the other items, without the one (own, (n,)) behind each x (n, D), smoothed.

    Around each item the law is N(item, width^2): nothing that is learned of a smooth law from so
    few items is much better than the best width. One guess (n, D) for each.
    """
    found: list[list[Tensor]] = [[] for _ in widths]
    for rows, mine in zip(x.split(64), own.split(64), strict=True):
        squared = distances.squared_distances(rows, alpha * whole)
        squared.scatter_(1, mine[:, None], torch.inf)
        for parts, width in zip(found, widths, strict=True):
            variance = sigma**2 + (alpha * width) ** 2
            mean = torch.softmax(-squared / (2 * variance), 1) @ whole
            parts.append((sigma**2 * mean + alpha * width**2 * rows) / variance)
    return [torch.cat(parts) for parts in found]


def usual_gap(whole: Tensor, most: int = 1000) -> float:
    """The median distance of an item to its nearest other."""
    some = whole[:: max(1, len(whole) // most)]
    squared = distances.squared_distances(some, whole)
    return float(squared.kthvalue(min(2, len(whole)), dim=1).values.median().sqrt())
