"""Data sets of Hugging Face's `datasets`: a folder that it saved, or a name on its hub.

They are tables of Arrow, mapped into memory and read by place, so that batches stay a function of
seed and step however large the set is, and nothing of it is copied but the items of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from score_sde.checks import check_names, library, reading
from score_sde.data.datasets import CAPTION_KEYS, LABEL_KEYS, VALUE_KEYS, from_items
from score_sde.data.decoding import Bounds, Size
from score_sde.data.files import listed
from score_sde.data.sources import StreamData
from score_sde.data.spec import DataError

HUB = "hf:"
MARKS = ("dataset_dict.json", "dataset_info.json")  # in a folder that `save_to_disk` has written
TEST_SPLITS = ("test", "validation", "valid", "val")


def is_huggingface(name: str) -> bool:
    """Whether this is a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    try:
        return any((Path(name).expanduser() / mark).is_file() for mark in MARKS)
    except (OSError, RuntimeError):  # no name of a file, or of no home
        return False


class TableItems(Dataset):
    """A table's rows as dictionaries, with what is known of its columns.

    classes: names of the values of its label. targets, captions: a column each, None without.
    """

    def __init__(self, table: Any):
        self.table = table
        names = list(table.column_names)
        label = next((key for key in LABEL_KEYS if key in names), None)
        text = next((key for key in CAPTION_KEYS if key in names), None)
        self.targets = None if label is None else list(table[label])
        self.captions = None if text is None else list(table[text])
        feature = table.features[label] if label else None
        self.classes: Sequence[str] = getattr(feature, "names", None) or ()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.table[i]


def from_huggingface(
    name: str,
    split: str,
    options: Mapping[str, Any],
    layout: str = "auto",
    bounds: Bounds | None = None,
    workers: int = 0,
    size: Size | None = None,
    resize: str | None = None,
    convert: str = "auto",
    scaling: str = "symmetric",
) -> StreamData:
    """The items of a table: image, label, caption or the like, by the names of its columns.

    name: a folder, or hf:NAME of the hub, of which ``options`` may say ``subset``. Raises DataError
    where `datasets` is not installed, nothing is found, or no column is a value.
    """
    check_names(options, ("subset",), "data.options of a Hugging Face data set:", DataError)
    tables = _tables(name, options.get("subset"))
    part, found = _part(name, tables, split)
    table = tables[part]
    if not len(table):
        raise DataError(f"{name} has no items in its split {part!r}.")
    if not any(key in table.column_names for key in VALUE_KEYS):
        raise DataError(
            f"{name} has the columns {listed(table.column_names, 20)}; its value must be one of "
            f"{', '.join(VALUE_KEYS)} (Dataset.rename_column gives a column another name)."
        )
    data = from_items(
        TableItems(table), name, layout, size, resize, convert, bounds, scaling, workers
    )
    data.split = found
    return data


def _tables(name: str, subset: Any) -> Mapping[str, Any]:
    """The tables of a data set by their splits; one that has no splits is "all"."""
    datasets: Any = library("datasets", "datasets", f"{name} needs Hugging Face's", DataError)
    with reading(name, "a data set that its library loads", DataError):
        if name.startswith(HUB):
            found: Any = datasets.load_dataset(name.removeprefix(HUB), subset)
        else:
            found = datasets.load_from_disk(str(Path(name).expanduser()))
    return found if isinstance(found, Mapping) else {"all": found}


def _part(name: str, tables: Mapping[str, Any], split: str) -> tuple[str, str]:
    """Which table is a split, and what the split is called; DataError if none is it."""
    if len(tables) == 1 and split not in tables:
        return next(iter(tables)), "all"
    names = ("train",) if split == "train" else TEST_SPLITS
    part = next((part for part in names if part in tables), None)
    if part is None:
        raise DataError(f"{name} has no split {split!r}; its splits are {', '.join(tables)}.")
    return part, split
