"""Labels of any kind as class numbers 0..K-1 with names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST_CLASSES = 20_000
DENSE = 1000  # labels 0..999 are class numbers already


class Classes(NamedTuple):
    """numbers (N,) int64 of N labels and the K names; numbers None if these are no classes."""

    numbers: np.ndarray | None
    names: tuple[str, ...]
    note: str = ""


def classes_of_labels(labels: np.ndarray, every: np.ndarray | None = None) -> Classes:
    """Class numbers of labels (N,) or (N, 1), one-hot (N, K), whole numbers, text or bool.

    Small numbers stay what they are; others, such as 20230101, are counted in the order of their
    values. every: the labels of all splits, so that a class has one number in all. What are not
    classes (values of a scale, several of a kind at once, gaps) is left out, with a note that says
    why.
    """
    values, note = _one_each(np.asarray(labels))
    if values is None:
        return Classes(None, (), note)
    other = values if every is None else _one_each(np.asarray(every))[0]
    other = values if other is None else other
    if values.dtype.kind in "iub" and other.dtype.kind in "iub":
        low, high = int(other.min()), int(other.max())
        if low >= 0 and high < DENSE:
            return Classes(values.astype(np.int64), tuple(str(i) for i in range(high + 1)))
    names, numbers = np.unique(np.concatenate([other, values]), return_inverse=True)
    if len(names) > MOST_CLASSES or len(names) > max(DENSE, len(other) // 2):
        return Classes(
            None, (), f"labels are not used: {len(names)} different values are no classes"
        )
    kept = numbers[len(other) :].astype(np.int64)
    return Classes(kept, tuple(_text(n) for n in names), f"labels became {len(names)} classes")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _one_each(labels: np.ndarray) -> tuple[np.ndarray | None, str]:
    """One value for each item, (N,); or None and why there is none."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "O":
        labels = labels.astype(str)
    if labels.dtype.kind not in "iubfUS":
        return None, f"labels are not used: they are {labels.dtype}"
    if labels.ndim == 2 and labels.dtype.kind in "iubf":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            return None, f"labels are not used: {labels.shape[1]} values each are not one class"
        labels = labels.argmax(1)
    if labels.ndim != 1:
        return None, f"labels are not used: their shape is {labels.shape}"
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            return None, "labels are not used: some of them are missing (NaN)"
        if (labels != np.rint(labels)).any():
            return None, "labels are not used: they are not whole numbers"
        labels = labels.astype(np.int64)
    return labels, ""
