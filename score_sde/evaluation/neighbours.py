r"""What is covered: balls around items that reach to their k-th neighbour in their own set.

precision   share of samples in some ball of a real item                (1904.06991)
recall      share of real items in some ball of a sample                (1904.06991)
density     mean number of real balls around a sample, over k           (2002.09797, eq. 4)
coverage    share of real items whose ball holds a sample               (2002.09797, eq. 5)

The first two count the rim of a ball (<=), the others do not (<), as the papers define them. All
depend on n and k: the yardstick is what real items score against others at the same n.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.evaluation.distances import ROWS, squared_distances
from score_sde.evaluation.jackknife import Estimate


class Cover(NamedTuple):
    """See the module."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def squared_radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each of x (n, d) to its k-th neighbour among the others, (n,)."""
    parts = [squared_distances(x[i : i + ROWS], x) for i in range(0, len(x), ROWS)]
    return torch.cat([p.kthvalue(k + 1, dim=1).values for p in parts])


def _radii_without(x: Tensor, block: Tensor, k: int) -> Tensor:
    """`squared_radii` within the items outside of each block in turn, (g, n).

    Of an item in the block itself it is what it would be if it alone were added.
    """
    columns = [(block == j).nonzero().flatten() for j in range(int(block.max()) + 1)]
    rows = []
    for start in range(0, len(x), ROWS):
        # The k + 1 smallest of every block are enough to know them without any one.
        d = squared_distances(x[start : start + ROWS], x)
        d[:, start : start + ROWS].diagonal().fill_(torch.inf)  # nobody is his own neighbour
        least = [d[:, c].topk(min(k, len(c)), dim=1, largest=False).values for c in columns]
        kept = [torch.cat(least[:j] + least[j + 1 :], dim=1) for j in range(len(columns))]
        rows.append(torch.stack([part.kthvalue(k, dim=1).values for part in kept]))
    return torch.cat(rows, dim=1)


def _mean_without(values: Tensor, block: Tensor) -> Estimate:
    """The mean of values (n,), which is the same for any n."""
    value = float(values.mean())
    g = int(block.max()) + 1
    return Estimate(value, tuple(float(values[block != j].mean()) for j in range(g)), value)


def cover(samples: Tensor, block: Tensor, real: Tensor, k: int = 3, k_density: int = 5) -> Cover:
    """Precision, recall, density and coverage of samples (n, d) against real items (m, d)."""
    samples, real = samples.double(), real.double()
    g, m = int(block.max()) + 1, len(real)
    real_radii, real_radii_density = squared_radii(real, k), squared_radii(real, k_density)
    own_radii = squared_radii(samples, k)
    radii_without = _radii_without(samples, block, k)
    inside = torch.zeros(len(samples), dtype=torch.bool)
    count = torch.zeros(len(samples), dtype=torch.float64)
    recalled, recalled_without = 0, torch.zeros(g, dtype=torch.float64)
    holds = torch.zeros(m, g, dtype=torch.bool)
    for start in range(0, m, ROWS):
        rows = slice(start, start + ROWS)
        d = squared_distances(real[rows], samples)
        inside |= (d <= real_radii[rows, None]).any(0)
        in_density = d < real_radii_density[rows, None]
        count += in_density.sum(0)
        recalled += int((d <= own_radii).any(1).sum())
        for j in range(g):
            kept = block != j
            holds[rows, j] = in_density[:, ~kept].any(1)
            recalled_without[j] += (d <= radii_without[j])[:, kept].any(1).sum()
    held = holds.sum(1)
    held_without = [float(((held - holds[:, j].long()) > 0).double().mean()) for j in range(g)]
    return Cover(
        precision=_mean_without(inside.double(), block),
        recall=Estimate(recalled / m, tuple((recalled_without / m).tolist())),
        density=_mean_without(count / k_density, block),
        coverage=Estimate(float((held > 0).double().mean()), tuple(held_without)),
    )
