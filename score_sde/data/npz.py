"""Arrays in .npy and .npz files: which of them are the items and which the labels of a split.

An .npz may be laid out as MedMNIST's (train_images, train_labels, val_images, ...), as Keras'
(x_train, y_train, x_test, y_test), by split (train, train_labels, test, ...) or hold one set (x, y
and the like). What is read is bounded by the size of the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from score_sde.checks import check_members, check_names, read_member, reading
from score_sde.data.spec import DataError
from score_sde.data.splits import TEST, TRAIN, names_of

ITEM_FORMS = ("{}_images", "x_{}", "{}", "{}_x", "{}_data", "images_{}", "data_{}")
LABEL_FORMS = ("{}_labels", "y_{}", "{}_label", "{}_y", "{}_targets", "labels_{}")
ITEM_KEYS = ("x", "images", "data", "samples", "features", "arr_0")
LABEL_KEYS = ("y", "labels", "label", "targets", "target", "classes")
MAPPED_BYTES = 1 << 29  # an .npy of more is left on the disk and read as it is needed


class FileArrays(NamedTuple):
    """Items (N, ...), labels (N, ...) or None, those of all splits together, and the split."""

    items: np.ndarray
    labels: np.ndarray | None
    every_label: np.ndarray | None
    split: str
    notes: tuple[str, ...]


def read_arrays(path: Path, split: str, options: Mapping[str, str]) -> FileArrays:
    """The arrays of a split. options: the keys ``items`` and ``labels`` of an .npz, if not usual.

    Raises DataError for a file that cannot be read, and for keys that say nothing.
    """
    check_names(options, ("items", "labels"), "data.options of an .npz:", DataError)
    with reading(path, "a readable array file", DataError):
        if path.suffix == ".npy":
            array: np.ndarray = np.lib.format.open_memmap(path, mode="c")
            array = array if array.nbytes > MAPPED_BYTES else np.array(array)
            note = f"{path} has no parts: the {split} split is all of it"
            return FileArrays(array, None, None, "all", (note,) if split == "test" else ())
        with zipfile.ZipFile(path) as archive:
            return _read_npz(archive, path, split, options)


def _read_npz(
    archive: zipfile.ZipFile, path: Path, split: str, options: Mapping[str, str]
) -> FileArrays:
    members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
    check_members(archive, path.stat().st_size)

    def read(key: str) -> np.ndarray:
        if key not in members:
            raise DataError(f"{path} holds no {key!r}; its keys are {list(members)}.")
        return read_member(archive, members[key])

    if "items" in options:
        labels = options.get("labels")
        return FileArrays(read(options["items"]), read(labels) if labels else None, None, "all", ())
    keys = {key.lower(): key for key in members}
    found = _key_of_split(keys, ITEM_FORMS, names_of(split))
    if found is not None:
        labels = _key_of_split(keys, LABEL_FORMS, names_of(split))
        alone = {_key_of_split(keys, ITEM_FORMS, names) for names in (TRAIN, TEST)} <= {found, None}
        if labels is None and alone:  # one split, and labels without a name of a split
            labels = next((keys[k] for k in LABEL_KEYS if k in keys), None)
        every = [_key_of_split(keys, LABEL_FORMS, (name,)) for name in TRAIN + TEST]
        others = [_first_axis(read(key)) for key in every if key is not None]
        notes = () if labels or not others else (f"{path}: the {split} split has no labels",)
        of_split = read(labels) if labels else None
        same = of_split is not None and len({o.shape[1:] for o in others}) == 1
        joined = np.concatenate(others) if same else None
        return FileArrays(read(found), of_split, joined, split, notes)
    other = _key_of_split(keys, ITEM_FORMS, TRAIN + TEST)
    if other is not None:
        raise DataError(f"{path} holds no {split} split; its keys are {list(members)}.")
    return _whole_set(read, keys, path, split)


def _whole_set(read, keys: Mapping[str, str], path: Path, split: str) -> FileArrays:  # type: ignore[no-untyped-def]
    items = next((keys[k] for k in ITEM_KEYS if k in keys), None)
    labels = next((keys[k] for k in LABEL_KEYS if k in keys), None)
    rest = [key for key in keys.values() if key not in (items, labels)]
    if items is None and len(rest) == 1:
        items = rest[0]
    if items is None:
        raise DataError(
            f"{path} holds the arrays {list(keys.values())}: none of them is x, images or data. "
            "Name them with data.options.items=KEY and data.options.labels=KEY."
        )
    note = f"{path} has no parts: the {split} split is all of it"
    array = read(items)
    if labels is None and items == "arr_0" and "arr_1" in keys.values():
        second = read("arr_1")
        labelled = second.dtype.kind in "iu" and second.shape in ((len(array),), (len(array), 1))
        labels = "arr_1" if labelled else None
    notes = (note,) if split == "test" else ()
    return FileArrays(array, read(labels) if labels else None, None, "all", notes)


def _first_axis(labels: np.ndarray) -> np.ndarray:
    return labels if labels.ndim else labels[None]


def _key_of_split(
    keys: Mapping[str, str], forms: tuple[str, ...], splits: tuple[str, ...]
) -> str | None:
    named = (form.format(name) for name in splits for form in forms)
    return next((keys[key] for key in named if key in keys), None)
