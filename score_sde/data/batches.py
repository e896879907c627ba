"""Endless training batches whose order is a function of (seed, step) alone.

Batch k takes positions kB .. kB + B - 1 of an endless sequence that runs through a fresh
permutation of the data in every epoch. A resumed run therefore sees what the uninterrupted one
would have seen, and nothing about the order has to be saved. Of many processes each takes its
``rows`` of every batch, so that together they see what one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from score_sde.data.spec import DataError, DataSpec

Batch = tuple[Tensor, Tensor | None]


class EndlessSampler:
    """Index lists of a batch each, or of its ``rows``, from step ``start`` on."""

    def __init__(
        self, n: int, batch_size: int, seed: int, start: int = 0, rows: range | None = None
    ):
        self.n, self.batch_size, self.seed, self.start = n, batch_size, seed, start
        self.rows = range(batch_size) if rows is None else rows

    def _epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.n)

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.batch_size
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            indices = []
            for row in self.rows:
                p = position + row
                if p // self.n != epoch:
                    epoch = p // self.n
                    order = self._epoch(epoch)
                indices.append(int(order[p % self.n]))
            yield indices
            position += self.batch_size


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The items of one batch."""
    return next(islice(EndlessSampler(n, batch_size, seed, step), 1))


def _flip(x: Tensor, seed: int, step: int, rows: range) -> Tensor:
    """Half of the images mirrored: which ones is a function of (seed, step, row of the batch)."""
    drawn = np.random.default_rng([seed, step, 1]).random(rows.stop)[rows.start :]
    mirrored = torch.from_numpy(drawn < 0.5)
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)


@dataclass
class ArrayData:
    """A set small enough for memory: raw (N, *shape) as it is stored, labels (N,) or None."""

    raw: Tensor
    labels: Tensor | None
    spec: DataSpec
    flip: bool = False
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.raw)

    def name_of(self, i: int) -> str:
        """What people call item i: its file, or its number."""
        return self.names[i] if self.names else f"item {i}"

    def reference(self, n: int) -> Tensor:
        """The first n items in the model's range, for statistics and pictures."""
        return self.spec.to_model(self.raw[:n])

    def raw_items(self, rows: range) -> Tensor:
        """These items as they are stored, (len(rows), *shape)."""
        return self.raw[rows.start : rows.stop]

    def label_items(self, rows: range) -> Tensor | None:
        """The classes of these items, (len(rows),) int64; None if they have none."""
        return None if self.labels is None else self.labels[rows.start : rows.stop]

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        device: torch.device | str = "cpu",
        rows: range | None = None,
    ) -> Iterator[Batch]:
        """Endless (x0 (B, *shape) float32 in the model's range, labels (B,) or None) on device.

        rows: of each batch, if not all; what they hold does not depend on how it is divided.
        """
        raw = self.raw.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        sampler = EndlessSampler(len(self), batch_size, seed, start, rows)
        for step, indices in enumerate(sampler, start):
            chosen = torch.tensor(indices, device=raw.device)
            x = self.spec.to_model(raw[chosen])
            x = _flip(x, seed, step, sampler.rows) if self.flip else x
            yield x, None if labels is None else labels[chosen]


class SizedDataset(Protocol):
    """A map-style torch Dataset: a length, and items that are a value or (value, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


class _Items(Dataset):
    """A dataset's items as (tensor, label): labels may be missing. Survives spawned workers."""

    def __init__(self, dataset: SizedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        item = self.dataset[i]
        value, label = item if isinstance(item, tuple | list) else (item, -1)
        return torch.as_tensor(np.asarray(value)), int(label)


@dataclass
class StreamData:
    """A set that is read item by item through a `DataLoader`: folders, a user's Dataset."""

    dataset: SizedDataset
    spec: DataSpec
    flip: bool = False
    workers: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.dataset)

    def name_of(self, i: int) -> str:
        """What people call item i: its file, or its number."""
        names = getattr(self.dataset, "names", ())
        return str(names[i]) if names else f"item {i}"

    def reference(self, n: int) -> Tensor:
        """The first n items in the model's range, for statistics and pictures."""
        items = _Items(self.dataset)
        return self.spec.to_model(torch.stack([items[i][0] for i in range(min(n, len(self)))]))

    def raw_items(self, rows: range) -> Tensor:
        """These items as they are stored, (len(rows), *shape)."""
        items = _Items(self.dataset)
        return torch.stack([items[i][0] for i in rows])

    def label_items(self, rows: range) -> Tensor | None:
        """The classes of these items, (len(rows),) int64; None if they have none."""
        items = _Items(self.dataset)
        return torch.tensor([items[i][1] for i in rows]) if self.spec.classes else None

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        device: torch.device | str = "cpu",
        rows: range | None = None,
    ) -> Iterator[Batch]:
        """As `ArrayData.batches`; the loader's workers read ahead."""
        sampler = EndlessSampler(len(self), batch_size, seed, start, rows)
        loader = DataLoader(
            _Items(self.dataset),
            batch_sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.device(device).type == "cuda",
            persistent_workers=False,
        )
        labelled = bool(self.spec.classes)
        for step, (raw, labels) in enumerate(loader, start):
            x = self.spec.to_model(raw.to(device, non_blocking=True))
            x = _flip(x, seed, step, sampler.rows) if self.flip else x
            yield x, labels.to(device) if labelled else None


Data = ArrayData | StreamData


def check_batch(x: Tensor, spec: DataSpec) -> None:
    """Raises DataError if the first batch (in the model's range) is not what the spec says."""
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise DataError(f"Batch 0 contains {bad} values that are not finite.")
    if tuple(x.shape[1:]) != spec.shape:
        raise DataError(f"Items have shape {tuple(x.shape[1:])} but the spec says {spec.shape}.")
    if len(x) > 1 and float(x.std()) == 0:
        raise DataError("Data variance is 0: every value of batch 0 is the same.")
    if spec.low is not None and spec.high is not None:
        raw = x * spec.scale + spec.shift
        slack = 1e-3 * (spec.high - spec.low)
        low, high = float(raw.min()), float(raw.max())
        if low < spec.low - slack or high > spec.high + slack:
            raise DataError(
                f"First batch is in [{low:.4g}, {high:.4g}] but data.range says "
                f"[{spec.low:g}, {spec.high:g}]. Set data.range=({low:g}, {high:g}) or wider."
            )
