"""What is random in an update, as a function of (seed, step, place in the batch) alone.

Nothing random has to be saved, a resumed run goes on exactly, and a batch that is divided over
passes and processes has the noise of the whole one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_NUMBERS = 4096  # drawn per seeding, at least: small states would pay for the seeding alone


class StepRandomness:
    """The seeds of one update of ``batch_size`` items."""

    def __init__(self, seed: int, step: int, batch_size: int):
        states = np.random.SeedSequence([seed, step]).generate_state(1 + 2 * batch_size).tolist()
        self._times, self._noise = states[0], states[1 : 1 + batch_size]
        self._layers = states[1 + batch_size :]

    def for_times(self) -> None:
        """Seed torch's generators for the times of the whole batch."""
        torch.manual_seed(self._times)

    def for_layers(self, first: int) -> None:
        """Seed torch's generators for the dropout of a pass that begins at row ``first``."""
        torch.manual_seed(self._layers[first])

    def noise(self, like: Tensor, rows: range) -> Tensor:
        """Standard normal values like x (len(rows), ...), for these rows of the batch."""
        block = max(1, _NUMBERS // max(like[0].numel(), 1))  # rows that share a seed
        first, last = rows.start // block, -(-rows.stop // block)
        drawn = like.new_empty((last - first) * block, *like.shape[1:])
        generator = torch.Generator(like.device)
        for seed, part in zip(self._noise[first:last], drawn.split(block), strict=True):
            part.normal_(generator=generator.manual_seed(seed))
        return drawn[rows.start - first * block :][: len(rows)]
