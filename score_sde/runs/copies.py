"""Whether a run's samples are copies of its training items, and the picture that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.data import Data, DataError
from score_sde.evaluation.measures import MOST
from score_sde.evaluation.memorisation import FEWEST, Memorisation, memorisation
from score_sde.plotting.pictures import enlarged, grid_array
from score_sde.runs.directory import RunError
from score_sde.runs.features import stored_items
from score_sde.runs.items import items_of
from score_sde.runs.run import Run


class Copies(NamedTuple):
    """What was found, and the training items, stored, that samples were held against."""

    found: Memorisation
    train: Tensor


def copies_of(run: Run | None, real: Data | None, split: str, items: Tensor) -> Copies | None:
    """Samples against the training items, beside held-out ones if there are any; None if neither.

    real: the reference, of this split; the other split is that of the run's own data.
    """
    train = real if split == "train" else (_split_of(run, "train") if run else None)
    if train is None or min(len(train), len(items)) < FEWEST:
        return None
    held_out = real if split == "test" else (_split_of(run, "test") if run else None)
    if held_out is not None and held_out.fingerprint() == train.fingerprint():
        held_out = None  # data without splits
    known = stored_items(train)
    other = None if held_out is None else stored_items(held_out)
    return Copies(memorisation(items[:MOST], known, other), known)


def _split_of(run: Run, split: str) -> Data | None:
    try:
        return items_of(run, split, None, None)[0]
    except (DataError, RunError):
        return None  # this run's data are not there, or have no such split


def neighbour_grid(items: Tensor, copies: Copies, pairs: int = 32) -> Any:
    """Samples with the smallest ratios, each joined to its nearest training item on the right.

    Gaps are between the pairs.
    """
    shown: Sequence[Tensor] = [
        torch.cat([items[place], copies.train[source]], dim=2)
        for place, source in zip(copies.found.suspects[:pairs], copies.found.sources, strict=False)
    ]
    return enlarged(grid_array(torch.stack(list(shown)), columns=4))
