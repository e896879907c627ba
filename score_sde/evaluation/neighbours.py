r"""What is covered: balls around items that reach to their k-th neighbour in their own set.

precision   share of samples in some ball of a real item                (1904.06991)
recall      share of real items in some ball of a sample                (1904.06991)
density     mean number of real balls around a sample, over k           (2002.09797, eq. 4)
coverage    share of real items whose ball holds a sample               (2002.09797, eq. 5)

The first two count the rim of a ball (<=), the others do not (<), as the papers define them. All
depend on n and k: the yardstick is what real items score against others at the same n.

Balls are small: of all pairs of a sample and a real item few are in one. These few are picked out
of the matrix of distances once, and all numbers and their jackknife come from them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.evaluation.distances import squared_distances
from score_sde.evaluation.jackknife import Estimate

ROWS = 128  # of a matrix of distances at a time: a cache holds them
REMEMBERED = 16  # nearest of each sample: enough to know k of them without any of ten blocks


class Cover(NamedTuple):
    """See the module."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


class Near(NamedTuple):
    """Of each of n items the k nearest others: squared distances (n, k), rising, and places."""

    squared: Tensor
    places: Tensor


def nearest_others(x: Tensor, k: int) -> Near:
    """Of each of x (n, d) its k nearest among the others, all n - 1 if they are fewer."""
    squared, places = [], []
    for start in range(0, len(x), ROWS):
        d = squared_distances(x[start : start + ROWS], x)
        d[:, start : start + ROWS].diagonal().fill_(torch.inf)  # nobody is his own neighbour
        found = d.topk(min(k, len(x) - 1), dim=1, largest=False)
        squared.append(found.values)
        places.append(found.indices)
    return Near(torch.cat(squared), torch.cat(places))


def _radii_without(x: Tensor, near: Near, block: Tensor, k: int) -> Tensor:
    """Squared distances to the k-th neighbours outside of each block in turn, (g, n).

    Of an item in the block itself it is what it would be if it alone were added.
    """
    owner, radii = block[near.places], []
    for j in range(int(block.max()) + 1):
        kept = near.squared.masked_fill(owner == j, torch.inf)
        radius = kept.kthvalue(k, dim=1).values
        others = x[block != j]
        for i in radius.isinf().nonzero().flatten().tolist():  # more than was remembered is gone
            d = squared_distances(x[i : i + 1], others)[0]
            own = int(block[i] != j)  # then it is among the others
            radius[i] = d.kthvalue(k + own).values
        radii.append(radius)
    return torch.stack(radii)


def _mean_without(values: Tensor, block: Tensor) -> Estimate:
    """The mean of values (n,), which is the same for any n."""
    value = float(values.mean())
    g = int(block.max()) + 1
    return Estimate(value, tuple(float(values[block != j].mean()) for j in range(g)), value)


def cover(samples: Tensor, block: Tensor, real: Tensor, k: int = 3, k_density: int = 5) -> Cover:
    """Precision, recall, density and coverage of samples (n, d) against real items (m, d)."""
    samples, real = samples.double(), real.double()
    n, m, g = len(samples), len(real), int(block.max()) + 1
    of_real = nearest_others(real, max(k, k_density)).squared
    ball, ball_density = of_real[:, k - 1], of_real[:, k_density - 1]
    near = nearest_others(samples, max(REMEMBERED, k))
    own, without = near.squared[:, k - 1], _radii_without(samples, near, block, k)
    reach, reach_back = torch.maximum(ball, ball_density), without.amax(0)  # the largest balls

    inside, count = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.float64)
    recalled, recalled_without = torch.zeros(m, dtype=torch.bool), torch.zeros(g, m).bool()
    holds = torch.zeros(m, g, dtype=torch.bool)
    for start in range(0, m, ROWS):
        d = squared_distances(real[start : start + ROWS], samples)
        some = (d <= reach_back).logical_or_(d <= reach[start : start + ROWS, None])
        rows, columns = some.nonzero(as_tuple=True)
        d, rows, of = d[rows, columns], rows + start, block[columns]
        inside[columns[d <= ball[rows]]] = True
        dense = d < ball_density[rows]
        count += torch.bincount(columns[dense], minlength=n)
        holds[rows[dense], of[dense]] = True
        recalled[rows[d <= own[columns]]] = True
        for j in range(g):
            recalled_without[j, rows[(d <= without[j, columns]) & (of != j)]] = True
    held = holds.sum(1)
    held_without = [float(((held - holds[:, j].long()) > 0).double().mean()) for j in range(g)]
    return Cover(
        precision=_mean_without(inside.double(), block),
        recall=Estimate(
            float(recalled.double().mean()), tuple(recalled_without.double().mean(1).tolist())
        ),
        density=_mean_without(count / k_density, block),
        coverage=Estimate(float((held > 0).double().mean()), tuple(held_without)),
    )
