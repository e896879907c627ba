"""What can end a run from below, as sentences: memory that is lacking, processes that are lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from score_sde import distributed
from score_sde.checks import UserError
from score_sde.training.settings import TrainingSettings


class TrainingError(UserError):
    """Training cannot go on; the message says why and what to try."""


@contextmanager
def explained(settings: TrainingSettings) -> Iterator[None]:
    """While in use, what torch says of memory and of other processes becomes a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
            words in text for words in ("out of memory", "not enough memory", "can't allocate")
        ):
            raise TrainingError(out_of_memory(settings)) from error
        if isinstance(error, RuntimeError) and distributed.size() > 1 and any(
            word in text for word in ("gloo", "nccl", "connection", "timed out")
        ):  # fmt: skip
            raise distributed.lost(error) from error
        raise


def out_of_memory(settings: TrainingSettings) -> str:
    """What to do when a pass does not fit."""
    share = -(-settings.batch_size // distributed.size())
    rows = min(settings.batch_per_device or share, share)
    there = ""
    if torch.cuda.is_available():
        there = f" on {torch.cuda.get_device_properties().total_memory / 2**30:.0f} GB"
    if rows == 1:
        advice = "Use model.precision=bf16, a smaller network or smaller images."
    else:
        fits = rows // 2
        advice = (
            f"Try training.batch_per_device={fits}: the same result from {-(-share // fits)} "
            "passes an update."
        )
    return f"Out of memory at {rows} items a pass{there}. {advice}"
