"""Endless training batches whose order is a function of (seed, step) alone.

A `Batch` is x_0 and what is known of each item beside it, its condition: classes, captions as the
vectors of a text encoder, other vectors, pictures. Each is a tensor with a row for each item.

Batch k takes positions kB .. kB + B - 1 of an endless sequence that runs through a fresh
permutation of the data in every epoch. A resumed run therefore sees what the uninterrupted one
would have seen, and nothing about the order has to be saved. Of many processes each takes its
``rows`` of every batch, so that together they see what one would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import check_count, check_finite, check_varies
from score_sde.data.spec import DataError, DataSpec
from score_sde.devices import moved

REFERENCE_BYTES = 1 << 27


class Batch(NamedTuple):
    """x0 (B, *shape) in the model's range, and its condition: a tensor with B rows for each name.

    Names that are settled: class_labels (B,) int64; text (B, L, D), text_mask (B, L) and pooled
    (B, D) of a text encoder.
    """

    x0: Tensor
    condition: dict[str, Tensor]


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


def flipped(batch: Batch, seed: int, step: int, rows: range) -> Batch:
    """Half of the images mirrored, with the pictures (B, C, H, W) of their conditions.

    Which ones is a function of (seed, step, row of the batch).
    """
    drawn = np.random.default_rng([seed, step, 1]).random(rows.stop)[rows.start :]
    chosen = moved(torch.from_numpy(drawn < 0.5), batch.x0.device)[:, None, None, None]

    def mirrored(x: Tensor) -> Tensor:
        return torch.where(chosen, x.flip(-1), x) if x.ndim == 4 else x

    return Batch(
        mirrored(batch.x0), {name: mirrored(value) for name, value in batch.condition.items()}
    )


def most_items(spec: DataSpec) -> int:
    """How many items may be looked at at once: 128 MiB of them as float32."""
    return max(1, REFERENCE_BYTES // (4 * math.prod(spec.shape)))


def check_rows(condition: Mapping[str, Tensor], n: int) -> None:
    """Raises DataError unless each part of a condition has a row for each of n items."""
    for name, value in condition.items():
        check_count(len(value), n, f"rows of {name}", DataError)


def check_batch(x: Tensor, spec: DataSpec) -> None:
    """Raises DataError if the first batch (in the model's range) is not what the spec says."""
    check_finite(x, "batch 0", DataError)
    if tuple(x.shape[1:]) != spec.shape:
        raise DataError(f"Items have shape {tuple(x.shape[1:])} but the spec says {spec.shape}.")
    if len(x) > 1:
        check_varies(x.std(), DataError)
    if spec.low is not None and spec.high is not None:
        raw = x * spec.scale + spec.shift  # data with bounds have one of each
        slack = 1e-3 * (spec.high - spec.low)
        low, high = float(raw.min()), float(raw.max())
        if low < spec.low - slack or high > spec.high + slack:
            raise DataError(
                f"First batch is in [{low:.4g}, {high:.4g}] but data.range says "
                f"[{spec.low:g}, {spec.high:g}]. Set data.range=({low:g}, {high:g}) or wider."
            )
