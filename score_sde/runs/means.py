"""The means of a set of data by class, for networks about what these leave (`model.center`)."""

from __future__ import annotations

import torch
from torch import Tensor

from score_sde.data import Data
from score_sde.runs.watching import MOST_REAL, spread_items


def means_of(data: Data, classes: int) -> Tensor:
    """Of each class and, last, of all, (classes + 1, ...); a class without items has the last."""
    sums = torch.zeros(classes + 1, *data.spec.shape, dtype=torch.float64)
    counts = torch.zeros(classes + 1, dtype=torch.float64)
    for x, known in spread_items(data, MOST_REAL):
        rows, every = x.double().cpu(), torch.full((len(x),), classes)
        for kinds in (every, known["class_labels"].cpu()) if classes else (every,):
            sums.index_add_(0, kinds, rows)
            counts.index_add_(0, kinds, torch.ones(len(x), dtype=torch.float64))
    sums[counts == 0], counts[counts == 0] = sums[-1].clone(), counts[-1].clone()
    return sums / counts.reshape(-1, *[1] * len(data.spec.shape))
