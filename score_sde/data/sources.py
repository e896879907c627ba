"""Where training items come from: `ArrayData` in memory, `StreamData` read as they are needed.

Both give the same endless batches, see `batches`; a set of either kind is a `Data`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from score_sde.checks import check_count
from score_sde.data.batches import Batch, EndlessSampler, check_rows, flipped, most_items
from score_sde.data.fingerprint import fingerprint
from score_sde.data.spec import DataError, DataSpec
from score_sde.devices import moved

STOPS = {signal.SIGINT, signal.SIGTERM}
VALUE_KEYS = ("x0", "image")  # of the value itself in an item that is a dictionary
LABEL_KEYS = ("class_labels", "label")


@dataclass
class ArrayData:
    """A set small enough for memory.

    raw: (N, *shape) as it is stored. condition: what is known of each item, by name, each a tensor
    with N rows; {} for nothing. captions: a sentence for each item, None without. split: which part
    of the set this is: "train", "test", or "all" where it has no parts.
    """

    raw: Tensor
    condition: dict[str, Tensor]
    spec: DataSpec
    flip: bool = False
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    split: str = "all"

    def __post_init__(self) -> None:
        check_rows(self.condition, len(self.raw))
        if self.captions is not None:
            check_count(len(self.captions), len(self.raw), "captions", DataError)

    def __len__(self) -> int:
        return len(self.raw)

    def name_of(self, i: int) -> str:
        """What people call item i: its file, or its number."""
        return self.names[i] if self.names else f"item {i}"

    def reference(self, n: int) -> Tensor:
        """The first n items in the model's range, for statistics; fewer where items are large."""
        return self.spec.to_model(self.raw[: min(n, most_items(self.spec))])

    def raw_items(self, rows: range) -> Tensor:
        """These items as they are stored, (len(rows), *shape)."""
        return self.raw[rows.start : rows.stop : rows.step]

    def condition_items(self, rows: range) -> dict[str, Tensor]:
        """What is known of these items, by name, each a tensor with len(rows) rows."""
        return {
            name: value[rows.start : rows.stop : rows.step]
            for name, value in self.condition.items()
        }

    def with_condition(self, **condition: Tensor) -> ArrayData:
        """These items with more known of each: for each name a tensor with a row an item."""
        return replace(self, condition={**self.condition, **condition})

    def fingerprint(self) -> str:
        """A checksum of the items and of what is known of them; see `data.fingerprint`."""
        facts = (*self.spec.classes, *(self.captions or ()))
        item_bytes = self.raw[0].nbytes
        return fingerprint(len(self), self.raw_items, self.condition, facts, item_bytes)

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        device: torch.device | str = "cpu",
        rows: range | None = None,
    ) -> Iterator[Batch]:
        """Endless batches on device, x0 float32 in the model's range.

        rows: of each batch, if not all; what they hold does not depend on how it is divided.
        """
        raw = self.raw.to(device)
        condition = {name: value.to(device) for name, value in self.condition.items()}
        sampler = EndlessSampler(len(self), batch_size, seed, start, rows)
        for step, indices in enumerate(sampler, start):
            chosen = moved(torch.tensor(indices), raw.device)
            known = {name: value[chosen] for name, value in condition.items()}
            batch = Batch(self.spec.to_model(raw[chosen]), known)
            yield flipped(batch, seed, step, sampler.rows) if self.flip else batch


def _leave_signals(worker: int) -> None:
    """In a worker: what stops a run is sent to all of its processes, and is for the one they serve.

    SIGINT is ignored, and so is the first SIGTERM; the second, of a loader that cleans up, ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first_stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _first_stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """While in use, signals wait; so they do in processes that are started, until these say so."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SizedDataset(Protocol):
    """A map-style torch Dataset: a length, and items as `item_parts` takes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


def item_parts(item: Any) -> tuple[Any, dict[str, Any]]:
    """The value of a dataset's item and its condition, by name.

    An item is a value, (value, label), or a dictionary with the value as "x0" or "image" and all
    else under the names of conditions, where "label" is short for "class_labels". Raises DataError
    for a dictionary without a value.
    """
    if isinstance(item, tuple | list):
        value, *label = item
        return value, ({"class_labels": label[0]} if label else {})
    if not isinstance(item, Mapping):
        return item, {}
    found = [key for key in VALUE_KEYS if key in item]
    if not found:
        raise DataError(f"An item has the keys {list(item)}; its value must be x0 or image.")
    rest = {key: value for key, value in item.items() if key not in VALUE_KEYS}
    return item[found[0]], {
        "class_labels" if key in LABEL_KEYS else key: value for key, value in rest.items()
    }


class _Items(Dataset):
    """A dataset's items as (tensor, condition). Survives spawned workers.

    labelled: classes are known; a label of data without classes is not a condition. added: more
    that is known of all items, by name.
    """

    def __init__(self, dataset: SizedDataset, labelled: bool, added: Mapping[str, Tensor]):
        self.dataset, self.labelled, self.added = dataset, labelled, added

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, condition = item_parts(self.dataset[i])
        label = condition.pop("class_labels", None)
        known = {name: torch.as_tensor(np.asarray(v)) for name, v in condition.items()}
        if self.labelled and label is not None:
            known["class_labels"] = torch.tensor(int(label))
        known |= {name: rows[i] for name, rows in self.added.items()}
        return torch.as_tensor(np.asarray(value)), known


@dataclass
class StreamData:
    """A set that is read item by item through a `DataLoader`: folders, a user's Dataset.

    added: what is known of all items beside what they bring, by name, each a tensor with N rows.
    captions, split: as of `ArrayData`.
    """

    dataset: SizedDataset
    spec: DataSpec
    flip: bool = False
    workers: int = 0
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    split: str = "all"
    added: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_rows(self.added, len(self.dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def name_of(self, i: int) -> str:
        """What people call item i: its file, or its number."""
        names = getattr(self.dataset, "names", ())
        return str(names[i]) if names else f"item {i}"

    def _items(self) -> _Items:
        return _Items(self.dataset, bool(self.spec.classes), self.added)

    def with_condition(self, **condition: Tensor) -> StreamData:
        """As `ArrayData.with_condition`."""
        return replace(self, added={**self.added, **condition})

    def fingerprint(self) -> str:
        """As `ArrayData.fingerprint`, from some of the items where all of them are many bytes."""
        names = [str(name) for name in getattr(self.dataset, "names", ())]
        facts = (*names, *self.spec.classes, *(self.captions or ()))
        item_bytes = self.raw_items(range(1)).nbytes
        return fingerprint(len(self), self.raw_items, self.added, facts, item_bytes)

    def reference(self, n: int) -> Tensor:
        """As `ArrayData.reference`."""
        return self.spec.to_model(self.raw_items(range(min(n, len(self), most_items(self.spec)))))

    def raw_items(self, rows: range) -> Tensor:
        """These items as they are stored, (len(rows), *shape)."""
        items = self._items()
        return torch.stack([items[i][0] for i in rows])

    def condition_items(self, rows: range) -> dict[str, Tensor]:
        """What is known of these items, by name, each a tensor with len(rows) rows."""
        items = self._items()
        return default_collate([items[i][1] for i in rows])

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
            self._items(),
            batch_sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.device(device).type == "cuda",
            persistent_workers=False,
            worker_init_fn=_leave_signals,
        )
        with _signals_wait():
            batches = iter(loader)
        for step, (raw, condition) in enumerate(batches, start):
            known = {name: v.to(device, non_blocking=True) for name, v in condition.items()}
            batch = Batch(self.spec.to_model(raw.to(device, non_blocking=True)), known)
            yield flipped(batch, seed, step, sampler.rows) if self.flip else batch


Data = ArrayData | StreamData
