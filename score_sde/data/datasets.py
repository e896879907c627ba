"""A user's torch `Dataset`, whatever its items look like, as items that training takes.

An item is a value, a tuple (value, label, ...) or a dictionary; a value is a tensor, an array, or a
picture of Pillow's, channels first or last; a label is a number, one-hot or text; text that is no
label is a caption. What they are is settled from the first items and said in the notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from score_sde.checks import lookup
from score_sde.data.arrays import check_numbers, native_values, reshape_images
from score_sde.data.decoding import GREY_MODES, Bounds, Size, to_array
from score_sde.data.labels import classes_of_labels
from score_sde.data.layout import arranged, check_fits, layout_of
from score_sde.data.sources import StreamData
from score_sde.data.spec import DataError, DataSpec, make_spec

VALUE_KEYS = (
    "x0", "image", "images", "img", "pixel_values", "x", "data", "input", "signal", "vector",
)  # fmt: skip
LABEL_KEYS = ("class_labels", "label", "labels", "class", "target", "y")
CAPTION_KEYS = ("caption", "captions", "text", "prompt")
LOOKED_AT = 64  # items from which value, range and layout are settled
MOST_PASSED = 50_000  # items that are read to learn all labels or captions


class Parts(NamedTuple):
    """An item taken apart; extra: the names or places of what is not used."""

    value: Any
    label: Any
    caption: str | None
    condition: dict[str, Any]
    extra: tuple[str, ...]


def parts_of(item: Any) -> Parts:
    """Value, label, caption and conditions of an item; DataError if it has no value."""
    if isinstance(item, Mapping):
        rest = {str(key): value for key, value in item.items()}
        found = next((key for key in VALUE_KEYS if key in rest), None)
        if found is None:
            raise DataError(
                f"an item has the keys {list(rest)}; its value must be one of {list(VALUE_KEYS)}"
            )
        value = rest.pop(found)
        named = next((key for key in LABEL_KEYS if key in rest), None)
        label = rest.pop(named) if named else None
        texts = [key for key in CAPTION_KEYS if isinstance(rest.get(key), str)]
        caption = rest.pop(texts[0]) if texts else None
        known = {k: v for k, v in rest.items() if isinstance(v, Tensor | np.ndarray)}
        return Parts(value, label, caption, known, tuple(k for k in rest if k not in known))
    if isinstance(item, tuple | list) and len(item) and not np.isscalar(item[0]):
        label = item[1] if len(item) > 1 and _is_label(item[1]) else None
        used = 1 if label is None else 2
        extra = tuple(f"number {i + 1}" for i in range(used, len(item)))
        return Parts(item[0], label, None, {}, extra)
    return Parts(item, None, None, {}, ())


def _is_label(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return True
    try:
        return np.asarray(value).ndim <= 1 and np.asarray(value).dtype.kind in "iubf"
    except (ValueError, TypeError):
        return False


@dataclass
class UniformItems(Dataset):
    """A dataset whose items are {"x0": (C, ...) array, "class_labels": int, ...}.

    dataset: the user's. layout: of its values; None for pictures of Pillow's. mode: of these.
    numbers: the class of each item (N,), None without classes. conditions: names of what is passed
    on as it is.
    """

    dataset: Any
    name: str
    layout: str | None
    mode: str
    size: Size | None
    resize: str | None
    convert: str
    numbers: np.ndarray | None = None
    conditions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.dataset)

    def parts(self, i: int) -> Parts:
        """Item i taken apart; DataError, with its number, if the dataset cannot give it."""
        try:
            return parts_of(self.dataset[i])
        except Exception as error:  # the user's code, in which anything may happen
            reason = error if isinstance(error, DataError) else repr(error)
            raise DataError(f"item {i} of {self.name} cannot be used: {reason}.") from error

    def value(self, parts: Parts, i: int) -> np.ndarray:
        """The value (C, ...), of its own number type, brought to size if it is a picture."""
        what = f"item {i} of {self.name}"
        if isinstance(parts.value, Image.Image):
            array = to_array(parts.value, what, self.mode, None, None)
        else:
            array = as_array(parts.value, what)
            layout = self.layout or layout_of(array.shape)[0]
            check_fits(layout, array.shape)
            array = arranged(array[None], layout)[0]
        if array.dtype == np.uint8 and array.ndim == 3:
            array = reshape_images(array[None], self.size, self.resize, self.convert)[0]
        kept = array.dtype == np.uint8
        return np.ascontiguousarray(array if kept else array.astype(np.float32))

    def __getitem__(self, i: int) -> dict[str, Any]:
        parts = self.parts(i)
        known = {name: torch.as_tensor(parts.condition[name]) for name in self.conditions}
        item = {"x0": torch.from_numpy(self.value(parts, i)), **known}
        return item if self.numbers is None else item | {"class_labels": int(self.numbers[i])}


def as_array(value: Any, what: str) -> np.ndarray:
    """A value as numbers, in the machine's order of bytes; DataError if it is none."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} is no array of numbers ({error}).") from error
    array = array[None] if array.ndim == 0 else array
    check_numbers(array[None], what)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def from_dataset(
    dotted: str,
    options: dict[str, Any],
    layout: str = "auto",
    size: Size | None = None,
    resize: str | None = None,
    convert: str = "auto",
    bounds: Bounds | None = None,
    scaling: str = "symmetric",
    workers: int = 0,
) -> StreamData:
    """The dataset of a dotted path, made with options; its own ``spec``, or one from its items."""
    dataset = _made(dotted, options)
    return from_items(dataset, dotted, layout, size, resize, convert, bounds, scaling, workers)


def from_items(
    dataset: Any,
    dotted: str,
    layout: str = "auto",
    size: Size | None = None,
    resize: str | None = None,
    convert: str = "auto",
    bounds: Bounds | None = None,
    scaling: str = "symmetric",
    workers: int = 0,
) -> StreamData:
    """A dataset with a length and items by number, which people know as ``dotted``."""
    if isinstance(spec := getattr(dataset, "spec", None), DataSpec):
        return StreamData(dataset, spec, workers=workers)
    items = UniformItems(dataset, dotted, None, "RGB", size, resize, convert)
    first = [items.parts(i) for i in range(min(len(items), LOOKED_AT))]
    notes = []
    pictures = [p.value for p in first if isinstance(p.value, Image.Image)]
    if pictures:
        items.mode = "L" if all(p.mode in GREY_MODES for p in pictures) else "RGB"
    else:
        shape = as_array(first[0].value, f"item 0 of {dotted}").shape
        found, certain = layout_of(shape, layout)
        items.layout = found
        if not certain:
            notes.append(f"items {shape} are read as {found}; data.layout says otherwise")
    values = [items.value(parts, i) for i, parts in enumerate(first)]
    if len(shapes := {v.shape for v in values}) > 1:
        raise DataError(
            f"Items of {dotted} differ in shape: {sorted(shapes)}. Pictures of 8 bits are brought "
            "to one by data.size=(H, W) and data.resize=center_crop."
        )
    if len(kinds := {str(v.dtype) for v in values}) > 1:
        raise DataError(f"Items of {dotted} differ in their numbers: {sorted(kinds)}.")
    whole = not pictures and as_array(first[0].value, dotted).dtype.kind in "iu"
    stacked = np.stack(values)
    kind = np.int64 if whole and values[0].dtype != np.uint8 else values[0].dtype
    _, (low, high), levels, note = native_values(stacked.astype(kind), dotted, bounds)
    classes, captions = _labels(items, first, notes)
    raw = torch.from_numpy(stacked)
    spec = make_spec(raw, dotted, low, high, levels, scaling, classes)
    items.conditions = _uniform(first)
    extra = sorted({n for p in first for n in (*p.extra, *p.condition)} - set(items.conditions))
    notes += [f"not used of an item: {', '.join(extra)}"] if extra else []
    notes = [f"{dotted}: {len(items)} items of shape {spec.shape}", *([note] if note else []),
             *(f"{dotted}: {n}" for n in notes)]  # fmt: skip
    return StreamData(items, spec, workers=workers, notes=tuple(notes), captions=captions)


def _made(dotted: str, options: dict[str, Any]) -> Any:
    make = lookup({}, dotted, "data.name", kind=Dataset)
    try:
        dataset = make(**options)
    except TypeError as error:
        raise DataError(f"data.name={dotted!r} cannot be made: {error}.") from error
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{dotted} has no length or no items by number; a Dataset needs __len__ and "
            "__getitem__, so that a batch is a function of seed and step."
        )
    if len(dataset) == 0:
        raise DataError(f"{dotted} has no items.")
    return dataset


def _uniform(first: Sequence[Parts]) -> tuple[str, ...]:
    """Names of the arrays that every item has, in one shape: only these can be put in a batch."""
    shapes = [
        {name: np.shape(v) for name, v in p.condition.items() if _is_numeric(v)} for p in first
    ]
    return tuple(n for n, shape in shapes[0].items() if all(s.get(n) == shape for s in shapes))


def _is_numeric(value: Tensor | np.ndarray) -> bool:
    return isinstance(value, Tensor) or value.dtype.kind in "iufb"


def _labels(
    items: UniformItems, first: Sequence[Parts], notes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Names of the classes and captions; sets the numbers of the classes of all items."""
    named = tuple(str(c) for c in getattr(items.dataset, "classes", ()) or ())
    labelled = any(p.label is not None for p in first)
    captioned = any(p.caption is not None for p in first)
    if not (labelled or captioned):
        return (), None
    labels: Any = getattr(items.dataset, "targets", None) if labelled else ()
    captions: Any = getattr(items.dataset, "captions", None) if captioned else ()
    known = zip((labelled, captioned), (labels, captions), strict=True)
    if any(asked and (of is None or len(of) != len(items)) for asked, of in known):
        if len(items) > MOST_PASSED:
            notes.append(
                f"labels are not used: to know those of {len(items)} items give the dataset an "
                "attribute targets"
            )
            return (), None
        parts = [items.parts(i) for i in range(len(items))]
        labels, captions = [p.label for p in parts], [p.caption for p in parts]
    _check_complete(items.name, "labels", labels if labelled else [])
    _check_complete(items.name, "captions", captions if captioned else [])
    given = tuple(c for c in captions if c is not None) if captioned else None
    if not labelled:
        return (), given
    if _are_captions(labels):
        notes.append("its texts are captions")
        return (), tuple(labels)
    found = classes_of_labels(np.asarray([np.asarray(label) for label in labels]))
    if found.numbers is None:
        notes.append(found.note)
        return (), given
    items.numbers = found.numbers
    if named and isinstance(labels[0], str) and set(found.names) <= set(named):
        places = np.array([named.index(name) for name in found.names])
        items.numbers = places[found.numbers]
        return named, given
    if named and len(named) > int(found.numbers.max()):
        return named, given
    notes += [found.note] if found.note else []
    return found.names, given


def _are_captions(labels: Sequence[Any]) -> bool:
    """Whether labels are sentences: texts of several words, most of them different."""
    if not all(isinstance(label, str) for label in labels):
        return False
    return 2 * len(set(labels)) > len(labels) and any(" " in label for label in labels)


def _check_complete(name: str, what: str, values: Sequence[Any]) -> None:
    missing = [i for i, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(values)} items of {name} have no {what}, the first: item "
            f"{missing[0]}."
        )
