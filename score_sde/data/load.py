"""`load_data`: a name, a path or a dotted path to a data set with its `DataSpec`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from score_sde.checks import lookup, unknown
from score_sde.data.batches import ArrayData, Data, StreamData, check_batch, item_parts
from score_sde.data.download import CIFAR_CLASSES, FASHION_CLASSES, cifar10, fashion_mnist
from score_sde.data.emoji import emoji
from score_sde.data.images import CONVERTS, RESIZES, ScannedImages, fit_image, scan_images
from score_sde.data.shapes import shapes
from score_sde.data.spec import DataError, DataSpec, make_spec
from score_sde.data.toy import TOYS

IMAGE_SETS = {
    "fashion_mnist": (fashion_mnist, FASHION_CLASSES),
    "cifar10": (cifar10, CIFAR_CLASSES),
}
CAPTIONED_SETS = ("emoji", "shapes")
IN_MEMORY_BYTES = 1 << 30
TOY_POINTS = 20_000


def load_data(
    name: str,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    resize: str | None = None,
    convert: str = "auto",
    channels: int | None = None,
    range: tuple[float, float] | None = None,
    scaling: str = "symmetric",
    flip: bool = False,
    strict: bool = False,
    workers: int = 0,
    options: dict[str, Any] | None = None,
) -> Data:
    """A data set ready to train on.

    name: "fashion_mnist" (ships with the package), "cifar10" (fetched once), with captions "emoji"
        (fetched once) and "shapes" (drawn), a toy set (ring8, moons, checkerboard, swissroll), a
        folder of images, a .zip, .npy or .npz file, or the dotted path of a torch `Dataset`, which
        is called with ``options``.
    split: "train" or "test", where the set has them.
    size, resize: (H, W) or one number, reached by center_crop, stretch or pad.
    convert: grey, rgb, rgba, or auto: grey if all images are, else rgb.
    channels: what the number of channels should be; an error if it is not.
    range: bounds of the values of float arrays and datasets.
    scaling: the model's range: symmetric [-1, 1], unit [0, 1], standard (mean 0, std 1) or none.
    flip: mirror images at random in training.
    strict: an unreadable image is an error; otherwise it is skipped and named.
    workers: loader processes for sets that do not fit into memory.

    Raises DataError, whose message says what was found and what to set.
    """
    if split not in ("train", "test"):
        raise DataError(f"data.split must be train or test (got {split!r}).")
    box = (size, size) if isinstance(size, int) else (size[0], size[1]) if size else None
    data: Data
    labels: np.ndarray | None
    if name in TOYS:
        seed = 0 if split == "train" else 1
        points = TOYS[name](TOY_POINTS, torch.Generator().manual_seed(seed))
        spec = make_spec(points, name, scaling=scaling)
        data = ArrayData(points, {}, spec, notes=(f"{name}: {len(points)} points",))
    elif name in IMAGE_SETS:
        load, classes = IMAGE_SETS[name]
        images, labels = load(split)
        data = _from_arrays(images, labels, name, classes, box, resize, convert, None, scaling)
    elif name in CAPTIONED_SETS:
        if name == "emoji":
            side = 32 if box in (None, (32, 32)) else 64
            images, captions = emoji(split, side)
        else:
            images, captions = shapes(split)
        data = _from_arrays(images, None, name, (), box, resize, convert, None, scaling)
        data.captions = captions
    elif Path(name).suffix in (".npy", ".npz"):
        images, labels = _read_numpy(_existing(name), split)
        data = _from_arrays(images, labels, name, (), box, resize, convert, range, scaling)
    elif Path(name).is_dir() or Path(name).suffix.lower() == ".zip" or _looks_like_path(name):
        scanned = scan_images(_existing(name), box, resize, convert, strict)
        data = _from_scan(scanned, scaling, workers)
    elif "." in name:
        data = _from_dataset(name, options or {}, range, scaling, workers)
    else:
        ways = ", or give a folder, a .zip, .npy or .npz file, or the dotted path of a Dataset"
        raise unknown("data", name, [*IMAGE_SETS, *CAPTIONED_SETS, *TOYS], also=ways)
    found = data.spec.shape[0]
    if channels is not None and len(data.spec.shape) == 3 and found != channels:
        fix = {1: "grey", 3: "rgb", 4: "rgba"}.get(channels)
        advice = f" (or data.convert={fix})" if fix else ""
        raise DataError(
            f"Data has {found} channel{'s' * (found > 1)}, data.channels says {channels}. "
            f"Set data.channels={found}{advice}."
        )
    data.split = split if name in (*TOYS, *IMAGE_SETS, *CAPTIONED_SETS) else "all"
    if flip and len(data.spec.shape) != 3:
        raise DataError(f"data.flip needs images; items of {name} have shape {data.spec.shape}.")
    data.flip = flip
    if isinstance(data, ArrayData) and data.spec.is_image:
        flat = data.raw.flatten(1)
        constant = (flat.amax(1) == flat.amin(1)).nonzero().flatten().tolist()
        if constant:
            first = data.name_of(constant[0])
            note = f"{len(constant)} of {len(data)} images are of one colour, the first: {first}"
            data.notes = (*data.notes, note)
    check_batch(data.reference(min(len(data), 256)), data.spec)
    return data


def _looks_like_path(name: str) -> bool:
    return "/" in name or "\\" in name or any(c in name for c in "\t\n\r") or name[:1] in ".~"


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        named = {"\t": "tab", "\n": "newline", "\r": "return"}
        control = [what for c, what in named.items() if c in name]
        hint = f" (it contains a {control[0]}: write r'...' or use /)" if control else ""
        raise DataError(f"Data path {name!r} does not exist{hint}.")
    return path


def _from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None,
    name: str,
    classes: tuple[str, ...],
    size: tuple[int, int] | None,
    resize: str | None,
    convert: str,
    bounds: tuple[float, float] | None,
    scaling: str,
) -> ArrayData:
    """Arrays (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) as `ArrayData`."""
    if images.dtype.kind not in "uif":
        raise DataError(f"{name} holds {images.dtype} values; numbers are needed.")
    if images.ndim not in (2, 3, 4) or len(images) == 0:
        raise DataError(
            f"{name} has shape {images.shape}; expected (N, D), (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with N >= 1."
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        raise DataError(f"{len(bad)} items of {name} hold NaN or inf, the first at index {bad[0]}.")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] <= 4:
        images = images.transpose(0, 3, 1, 2)
    is_bytes = images.dtype == np.uint8
    if images.ndim == 4 and is_bytes:
        images = _reshape_images(images, size, resize, convert)
    elif size is not None and images.shape[2:] != size:
        raise DataError(f"data.size={size} can resize 8-bit images; {name} holds {images.dtype}.")
    raw = torch.from_numpy(np.ascontiguousarray(images))
    if not is_bytes:
        raw = raw.to(torch.float32)
    low, high = (0.0, 255.0) if is_bytes else bounds or _guess_bounds(raw)
    targets = None if labels is None else torch.from_numpy(np.asarray(labels).astype(np.int64))
    if targets is not None and not classes:
        classes = tuple(str(i) for i in range(int(targets.max()) + 1))
    spec = make_spec(raw, name, low, high, 256 if is_bytes else None, scaling, classes)
    note = f"{name}: {len(raw)} items of shape {spec.shape}, {len(classes) or 'no'} classes"
    condition = {} if targets is None else {"class_labels": targets}
    return ArrayData(raw, condition, spec, notes=(note,))


def _guess_bounds(raw: Tensor) -> tuple[float | None, float | None]:
    """The usual range that float images lie in; vectors have none."""
    if raw.ndim == 2:
        return None, None
    low, high = float(raw.min()), float(raw.max())
    for bounds in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        if bounds[0] <= low and high <= bounds[1]:
            return bounds
    raise DataError(f"Values lie in [{low:.4g}, {high:.4g}]. Set data.range=(low, high).")


def _reshape_images(
    images: np.ndarray, size: tuple[int, int] | None, resize: str | None, convert: str
) -> np.ndarray:
    """uint8 (N, C, H, W) brought to ``size`` and to the number of channels asked for."""
    if convert not in ("auto", *CONVERTS):
        raise DataError(f"data.convert {convert!r} is unknown; choose auto or {list(CONVERTS)}.")
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
        image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels).convert(target)
        array = np.asarray(fit_image(image, size, resize))
        out.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return np.stack(out)


def _read_numpy(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels; of an .npz the key named like the split, x, images, or the first."""
    try:
        content = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable array file ({error}).") from error
    if isinstance(content, np.ndarray):
        return content, None
    keys = list(content)
    label_keys = {"y", "labels", "label", f"{split}_labels"} & set(keys)
    image_keys = [k for k in keys if k not in label_keys]
    preferred = [k for k in (split, "x", "images", "data", "samples") if k in image_keys]
    if not image_keys:
        raise DataError(f"{path} holds no image array; its keys are {keys}.")
    images = content[(preferred or image_keys)[0]]
    labels = content[sorted(label_keys)[-1]] if label_keys else None
    if labels is not None and labels.shape != (len(images),):
        raise DataError(f"{path}: labels have shape {labels.shape}, images {images.shape}.")
    return images, labels


def _from_scan(scanned: ScannedImages, scaling: str, workers: int) -> Data:
    """Images in memory when all of them take less than 1 GiB, else read as they are needed."""
    shape, classes = scanned.shape, scanned.classes
    fits = len(scanned) * int(np.prod(shape)) <= IN_MEMORY_BYTES
    shown = len(scanned) if fits else min(len(scanned), 1000)
    raw = torch.from_numpy(np.stack([scanned[i][0] for i in range(shown)]))
    spec = make_spec(raw, scanned.files.root.name, 0.0, 255.0, 256, scaling, classes)
    notes = (f"{scanned.files.root}: {len(scanned)} items of shape {shape}", *scanned.notes)
    if fits:
        condition = {"class_labels": torch.tensor(scanned.labels)} if classes else {}
        return ArrayData(raw, condition, spec, notes=notes, names=scanned.names)
    return StreamData(scanned, spec, workers=workers, notes=notes)


def _from_dataset(
    dotted: str,
    options: dict[str, Any],
    bounds: tuple[float, float] | None,
    scaling: str,
    workers: int,
) -> StreamData:
    """A user's torch Dataset, its `spec` or one made from items; see `item_parts` for these."""
    make = lookup({}, dotted, "data.name", kind=torch.utils.data.Dataset)
    try:
        dataset = make(**options)
    except TypeError as error:
        raise DataError(f"data.name={dotted!r} cannot be made: {error}.") from error
    if len(dataset) == 0:
        raise DataError(f"{dotted} has no items.")
    if isinstance(spec := getattr(dataset, "spec", None), DataSpec):
        return StreamData(dataset, spec, workers=workers)
    first = [dataset[i] for i in range(min(len(dataset), 64))]
    parts = [item_parts(item) for item in first]
    values = [np.asarray(value) for value, _ in parts]
    if len({v.shape for v in values}) > 1:
        raise DataError(f"Items of {dotted} differ in shape: {sorted({v.shape for v in values})}.")
    raw = torch.from_numpy(np.stack(values))
    is_bytes = raw.dtype == torch.uint8
    low, high = (
        (0.0, 255.0)
        if is_bytes
        else bounds or (_guess_bounds(raw) if raw.ndim == 4 else (None, None))
    )
    labelled = any("class_labels" in condition for _, condition in parts)
    classes = tuple(str(c) for c in getattr(dataset, "classes", ())) if labelled else ()
    spec = make_spec(raw, dotted, low, high, 256 if is_bytes else None, scaling, classes)
    note = f"{dotted}: {len(dataset)} items of shape {spec.shape}"
    return StreamData(dataset, spec, workers=workers, notes=(note,))
