"""Arrays as people have them, of any number type and layout, as `ArrayData`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from score_sde.data.decoding import CONVERTS, RESIZES, Bounds, Size, fit_image, usual_bounds
from score_sde.data.labels import Classes, classes_of_labels
from score_sde.data.layout import arranged, check_fits, layout_of
from score_sde.data.sources import ArrayData
from score_sde.data.spec import DataError, make_spec


def from_arrays(
    items: np.ndarray,
    labels: np.ndarray | None,
    name: str,
    classes: tuple[str, ...] = (),
    every_label: np.ndarray | None = None,
    layout: str = "auto",
    size: Size | None = None,
    resize: str | None = None,
    convert: str = "auto",
    bounds: Bounds | None = None,
    scaling: str = "symmetric",
) -> ArrayData:
    """Items (N, ...) of numbers, their labels or None, and the names of the classes if known."""
    check_numbers(items, name)
    items = items[:, None] if items.ndim == 1 else items
    notes = []
    layout, certain = layout_of(items.shape[1:], layout)
    if not certain:
        shape = items.shape[1:]
        notes.append(f"{name}: items {shape} are read as {layout}; data.layout says otherwise")
    check_fits(layout, items.shape[1:])
    items = arranged(items, layout)
    is_picture = items.ndim == 4
    items, low_high, levels, note = native_values(items, name, bounds)
    notes += [note] if note else []
    if is_picture and items.dtype == np.uint8:
        items = reshape_images(items, size, resize, convert)
    elif size is not None and items.shape[2:] != size:
        raise DataError(
            f"data.size={size} can resize pictures of 8 bits; {name} holds items of shape "
            f"{items.shape[1:]}, {items.dtype}."
        )
    elif convert != "auto":
        raise DataError(
            f"data.convert={convert} is of pictures of 8 bits; {name} holds {items.dtype}."
        )
    raw = torch.from_numpy(np.ascontiguousarray(items))
    found = Classes(None, ())
    if labels is not None:
        check_pairing(labels, len(items), name)
        found = classes_of_labels(labels, every_label)
        notes += [f"{name}: {found.note}"] if found.note else []
    numbered = found.numbers is not None
    names = (classes or found.names) if numbered else ()
    low, high = low_high
    spec = make_spec(raw, name, low, high, levels, scaling, names)
    count = f"{len(names)} classes" if names else "no classes"
    notes.insert(0, f"{name}: {len(raw)} items of shape {spec.shape}, {count}")
    condition = {"class_labels": torch.from_numpy(found.numbers)} if numbered else {}
    return ArrayData(raw, condition, spec, notes=tuple(notes))


def check_pairing(labels: np.ndarray, n: int, name: str) -> None:
    """Raises DataError unless there is a label for each item."""
    if labels.ndim == 0 or len(labels) != n:
        raise DataError(f"{name}: labels have shape {labels.shape}, but there are {n} items.")


def check_numbers(items: np.ndarray, name: str) -> None:
    """Raises DataError unless the array holds items of finite real numbers."""
    if items.dtype.kind == "c":
        raise DataError(
            f"{name} holds complex numbers. Give their two parts as channels: "
            "np.stack([x.real, x.imag], 1)."
        )
    if items.dtype.kind not in "uifb":
        raise DataError(f"{name} holds {items.dtype} values; numbers are needed.")
    if items.ndim == 0 or items.size == 0:
        raise DataError(f"{name} has shape {items.shape}: there are no items in it.")
    if items.dtype.kind == "f":
        _check_finite(items, name)


def _check_finite(items: np.ndarray, name: str) -> None:
    largest = float(np.finfo(np.float32).max)
    chunk = max(1, (1 << 22) // max(1, items[0].size))
    bad: list[int] = []
    for k in range(0, len(items), chunk):
        part = items[k : k + chunk]
        sizes = np.abs(part.reshape(len(part), -1).astype(np.float64))
        bad += (k + np.flatnonzero(~(sizes <= largest).all(1))).tolist()
    if bad:
        raise DataError(f"{len(bad)} items of {name} hold NaN or inf, the first at index {bad[0]}.")


def native_values(
    items: np.ndarray, name: str, bounds: Bounds | None
) -> tuple[np.ndarray, tuple[float | None, float | None], int | None, str]:
    """Items (N, ...) as uint8 or float32, their bounds, their levels, and a note or "".

    8 bits stay. Other pictures need bounds: whole numbers are counted from 0 to the depth that
    holds them, floats lie in 0..1, -1..1 or 0..255 unless bounds say otherwise. Vectors, signals
    and volumes have none unless they are given.
    """
    whole = items.dtype.kind in "ui"
    if items.dtype == np.bool_:
        return items.astype(np.uint8), (0.0, 1.0), 2, f"{name}: true and false became 1 and 0"
    if bounds is not None:
        levels = int(bounds[1] - bounds[0]) + 1 if whole else None
        return items.astype(np.float32), bounds, levels, ""
    if items.dtype == np.uint8:
        return items, (0.0, 255.0), 256, ""
    if items.ndim != 4:
        return items.astype(np.float32), (None, None), None, ""
    low, high = float(items.min()), float(items.max())
    found = usual_bounds(low, high, whole)
    if found is None:
        raise DataError(f"Values lie in [{low:.4g}, {high:.4g}]. Set data.range=(low, high).")
    if not whole:
        return items.astype(np.float32), found, None, ""
    note = f"{name}: {items.dtype} values from {low:g} to {high:g} are read as {found[0]:g}.."
    note += f"{found[1]:g}; data.range says otherwise"
    if found[1] == 255:
        return items.astype(np.uint8), found, 256, note
    return items.astype(np.float32), found, int(found[1]) + 1, note


def reshape_images(
    images: np.ndarray, size: Size | None, resize: str | None, convert: str
) -> np.ndarray:
    """uint8 (N, C, H, W) brought to ``size`` and to the number of channels asked for."""
    if size is not None and images.shape[2:] != size and resize not in RESIZES:
        raise DataError(
            f"Images are {images.shape[2]}x{images.shape[3]}, not {size[0]}x{size[1]}. "
            f"Set data.resize={'|'.join(RESIZES)}."
        )
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(images.shape[1])
    target = CONVERTS.get(convert, mode)
    if target == mode and (size is None or images.shape[2:] == size):
        return images
    if mode is None:
        raise DataError(f"{images.shape[1]} channels cannot be resized or converted.")
    out = []
    for pixels in images.transpose(0, 2, 3, 1):
        picture = np.ascontiguousarray(pixels[..., 0] if mode == "L" else pixels)
        array = np.asarray(fit_image(Image.fromarray(picture).convert(target), size, resize))
        out.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return np.stack(out)
