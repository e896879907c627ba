"""Latents of pictures as data: moments that an encoder found once, drawn from anew at every visit.

    z = mean + std * noise,    noise a function of (seed, step of training, place in the batch)

so that a run which is stopped and resumed sees what the uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_sde.data.batches import Batch
from score_sde.data.sources import ArrayData
from score_sde.devices import moved


@dataclass
class LatentData(ArrayData):
    """A set of latents in memory; `ArrayData` whose items are drawn from their moments.

    raw: (N, 2, *shape), mean and standard deviation of each item's latent in the model's range.
    source: the fingerprint of the pictures and of their autoencoder.
    """

    source: str = ""

    def reference(self, n: int) -> Tensor:
        """The first n items, (n, *shape), drawn by their places."""
        return self.raw_items(range(min(n, len(self))))

    def raw_items(self, rows: range) -> Tensor:
        """These items, (len(rows), *shape), drawn by their places: the same ones at every call."""
        mean, std = self.raw[rows.start : rows.stop : rows.step].unbind(1)
        noise = [_normal(self.spec.shape, i) for i in rows]
        return mean + std * torch.stack(noise) if noise else mean

    def fingerprint(self) -> str:
        """Of the pictures and of the autoencoder."""
        return self.source

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        device: torch.device | str = "cpu",
        rows: range | None = None,
    ) -> Iterator[Batch]:
        """As `ArrayData.batches`, each visit of an item with noise of its own."""
        moments = super().batches(batch_size, seed, start, device, rows)
        places = range(batch_size) if rows is None else rows
        for step, (both, condition) in enumerate(moments, start):
            noise = [_normal(self.spec.shape, seed, step, place) for place in places]
            mean, std = both.unbind(1)
            yield Batch(mean + std * moved(torch.stack(noise), mean.device), condition)


def _normal(shape: tuple[int, ...], *key: int) -> Tensor:
    """Standard normal numbers that belong to a key of whole numbers."""
    drawn = np.random.default_rng([*key, 3]).standard_normal(shape, np.float32)
    return torch.from_numpy(drawn)
