"""`load_data`: a name, a path or a dotted path to a data set with its `DataSpec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from score_sde.checks import Count, Index, Options, Row, check_names, checked, unknown
from score_sde.data.arrays import from_arrays
from score_sde.data.batches import check_batch
from score_sde.data.datasets import from_dataset
from score_sde.data.decoding import Convert, Resize, Size
from score_sde.data.download import CIFAR_CLASSES, FASHION_CLASSES, cifar10, fashion_mnist
from score_sde.data.emoji import balanced_places, emoji
from score_sde.data.files import Files, list_files, listed
from score_sde.data.huggingface import HUB, from_huggingface, is_huggingface
from score_sde.data.images import ScannedImages, scan_images
from score_sde.data.layout import Layout
from score_sde.data.npz import read_arrays
from score_sde.data.shapes import shapes
from score_sde.data.shards import check_keys, is_shards, list_shards
from score_sde.data.sources import ArrayData, Data, StreamData
from score_sde.data.spec import DataError, Scaling, make_spec
from score_sde.data.tables import SUFFIXES as TABLES
from score_sde.data.tables import read_table
from score_sde.data.toy import TOYS

IMAGE_SETS = {
    "fashion_mnist": (fashion_mnist, FASHION_CLASSES),
    "cifar10": (cifar10, CIFAR_CLASSES),
}
CAPTIONED_SETS = ("emoji", "shapes")
BUILT_IN = (*IMAGE_SETS, *CAPTIONED_SETS, *TOYS)
# Pictures are kept in memory up to so many bytes, and up to so many times their files' size: a
# small file of one colour may be a large picture.
IN_MEMORY_BYTES = 1 << 30
FREE_BYTES = 1 << 28
LARGEST_RATIO = 50
STATISTICS_ITEMS = 1000
TOY_POINTS = 20_000
PARTS = {"txt": "captions", "cls": "classes"}  # beside pictures, and their names in data.options
GIVE = "a folder or .zip of images, .tar shards, a .npy, .npz, .csv or .parquet file, hf:NAME, or a"


@checked("data")
def load_data(
    name: str | Path,
    split: Literal["train", "test"] = "train",
    size: Count | Row[Count] | None = None,
    resize: Resize | None = None,
    convert: Convert = "auto",
    channels: Count | None = None,
    range: tuple[float, float] | None = None,
    layout: Layout = "auto",
    scaling: Scaling = "symmetric",
    flip: bool = False,
    strict: bool = False,
    workers: Index = 0,
    options: Options | None = None,
) -> Data:
    """A data set ready to train on.

    name: "fashion_mnist" (ships with the package), "cifar10" (fetched once), with captions "emoji"
        (fetched once) and "shapes" (drawn), a toy set (ring8, moons, checkerboard, swissroll), a
        folder of images, a .zip, .npy, .npz, .csv or .parquet file, webdataset's shards as
        photos-{000..012}.tar, a folder of Hugging Face's `datasets` or hf:NAME of its hub, or the
        dotted path of a torch `Dataset`, which is called with ``options``.
    split: "train" or "test", where the set has them; what the items are is ``split`` of the result,
        "all" of a set without parts.
    size, resize: (H, W) or one number, reached by center_crop, stretch or pad.
    convert: grey, rgb, rgba, or auto: grey if all images are, else rgb.
    channels: what the number of channels should be; an error if it is not.
    range: bounds of the values of float arrays and datasets, and of images of 16 and 32 bits.
    layout: the axes of an item of an array, as HWC; see `data.layout`. auto: the likeliest.
    scaling: the model's range: symmetric [-1, 1], unit [0, 1], standard (mean 0, std 1), columns
        (standard, each column or channel by itself) or none.
    flip: mirror images at random in training.
    strict: an unreadable image is an error; otherwise it is skipped and named.
    workers: loader processes for sets that do not fit into memory.
    options: of emoji balance, whether rare families count more; of a Dataset its arguments; of an
        .npz the keys items and labels; of a table label and drop, names of columns; of images
        captions and classes, False to leave them aside; of hf: subset, a name.

    Raises DataError, whose message says what was found and what to set.
    """
    name = str(name) if name != Path() else ""
    _check_options(name, range)
    box = box_of(size)
    data = _found(
        name, split, dict(size=box, resize=resize, convert=convert, scaling=scaling), layout, range,
        strict, workers, dict(options or {}),
    )  # fmt: skip
    if len(data.spec.shape) == 3:
        _check_channels(data.spec.shape[0], channels)
    else:
        converted = None if convert == "auto" else convert
        asked = dict(size=size, resize=resize, channels=channels, flip=flip or None)
        _refuse_of_images(name, data.spec.shape, asked | {"convert": converted})
    data.flip = flip
    if isinstance(data, ArrayData) and data.spec.is_image:
        data.notes = (*data.notes, *_constant_images(data))
    check_batch(data.reference(min(len(data), 256)), data.spec)
    return data


def _check_channels(found: int, channels: int | None) -> None:
    """Raises DataError for pictures of other channels than were said."""
    if channels is None or found == channels:
        return
    fix = {1: "grey", 3: "rgb", 4: "rgba"}.get(channels)
    advice = f" (or data.convert={fix})" if fix else ""
    raise DataError(
        f"Data has {found} channel{'s' * (found > 1)}, data.channels says {channels}. "
        f"Set data.channels={found}{advice}."
    )


def _refuse_of_images(name: str, shape: tuple[int, ...], asked: Mapping[str, Any]) -> None:
    """Raises DataError for what was asked of data that only images have; None is not asked."""
    wrong = [f"data.{key}" for key, value in asked.items() if value is not None]
    if wrong:
        raise DataError(f"{' and '.join(wrong)} needs images; items of {name} have shape {shape}.")


def _check_options(name: str, bounds: Any) -> None:
    """Raises DataError for settings that are wrong whatever the data."""
    if not name:
        raise DataError(
            f"data.name is empty: say what to train on with --data, {GIVE} Dataset's dotted path; "
            f"or one of {', '.join(BUILT_IN)}."
        )
    if bounds is not None and not bounds[0] < bounds[1]:
        raise DataError(f"data.range must be (low, high) with low < high (got {bounds}).")


def box_of(size: int | Sequence[int] | None) -> Size | None:
    """(H, W) of a number, of (n,) as a command line makes of it, or of a pair."""
    if size is None:
        return None
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2):
        raise DataError(f"data.size must be a number of pixels or (H, W) (got {size}).")
    return sides[0], sides[-1]


def _found(
    name: str,
    split: str,
    shaping: dict[str, Any],
    layout: str,
    bounds: tuple[float, float] | None,
    strict: bool,
    workers: int,
    options: dict[str, Any],
) -> Data:
    """The data set of that name; DataError if there is none."""
    suffix = Path(name).suffix.lower()
    said = {key: value for key, value in options.items() if value is not None}
    if name in BUILT_IN:
        if bounds is not None or layout != "auto" or not said.keys() <= {"balance"}:
            raise DataError(
                f"{name} is known as it is: data.range, data.layout and data.options (but for the "
                f"balance of emoji) are of data of yours (got {bounds}, {layout}, {said})."
            )
        data = _built_in(name, split, shaping, balanced=said.get("balance") is True)
        data.split = split
        return data
    if suffix in (".npy", ".npz"):
        read = read_arrays(_existing(name), split, said)
        data = from_arrays(
            read.items, read.labels, name, (), read.every_label, layout, bounds=bounds, **shaping
        )
        data.split, data.notes = read.split, (*data.notes, *read.notes)
        return data
    if suffix in TABLES:
        return _from_table(_existing(name), said, layout, bounds, shaping["scaling"])
    if name.startswith(HUB) or is_huggingface(name):
        return from_huggingface(name, split, said, layout, bounds, workers, **shaping)
    if suffix == ".zip" or is_shards(name) or _looks_like_path(name) or Path(name).is_dir():
        size, resize, convert = (shaping[key] for key in ("size", "resize", "convert"))
        wanted = _looked_for(said)
        if is_shards(name):
            files: Files = (shards := list_shards(name, strict))
            check_keys(shards, [key for key, what in PARTS.items() if what in wanted])
        else:
            files = list_files(_existing(name))
        scanned = scan_images(
            files, size, resize, convert, strict, split, bounds, "captions" in wanted,
            "classes" in wanted,
        )  # fmt: skip
        return _from_scan(scanned, shaping["scaling"], workers)
    if "." in name:
        return from_dataset(name, options, layout, bounds=bounds, workers=workers, **shaping)
    raise unknown("data", name, BUILT_IN, also=f", or give {GIVE} Dataset's dotted path")


def _looked_for(options: dict[str, Any]) -> set[str]:
    """What is looked for beside pictures: their captions and classes, unless told otherwise."""
    also = " (true or false)"
    check_names(options, PARTS.values(), "data.options of images:", DataError, also)
    return {what for what in PARTS.values() if options.get(what) is not False}


def _built_in(name: str, split: str, shaping: dict[str, Any], balanced: bool = False) -> ArrayData:
    if name in TOYS:
        seed = 0 if split == "train" else 1
        points = TOYS[name](TOY_POINTS, torch.Generator().manual_seed(seed))
        spec = make_spec(points, name, scaling=shaping["scaling"])
        return ArrayData(points, {}, spec, notes=(f"{name}: {len(points)} points",))
    if name in IMAGE_SETS:
        load, classes = IMAGE_SETS[name]
        images, labels = load(split)
        return from_arrays(images, labels, name, classes, layout="HWC", **shaping)
    if name == "emoji":
        images, captions = emoji(split, 32 if shaping["size"] in (None, (32, 32)) else 64)
        if balanced and split == "train":
            places = balanced_places(captions)
            images, captions = images[places], tuple(captions[i] for i in places)
    else:
        images, captions = shapes(split)
    data = from_arrays(images, None, name, layout="HWC", **shaping)
    data.captions = captions
    return data


def _from_table(
    path: Path,
    options: dict[str, Any],
    layout: str,
    bounds: tuple[float, float] | None,
    scaling: str,
) -> ArrayData:
    table = read_table(path, options)
    data = from_arrays(
        table.items, table.labels, str(path), layout=layout, bounds=bounds, scaling=scaling
    )
    if len(data.spec.shape) == 1:
        data.spec = replace(data.spec, columns=table.columns)
    label = f"; the column {table.label_column} is the label" if table.label_column else ""
    columns = ", ".join(table.columns[:20]) + (", ..." if len(table.columns) > 20 else "")
    data.notes = (*data.notes, f"{len(table.columns)} columns: {columns}{label}")
    constant = (data.raw == data.raw[0]).all(0).flatten().tolist()
    still = [name for name, same in zip(table.columns, constant, strict=True) if same]
    if still:
        data.notes = (*data.notes, f"columns that never change: {listed(still, 10)}")
    return data


def _looks_like_path(name: str) -> bool:
    return "/" in name or "\\" in name or any(c in name for c in "\t\n\r") or name[:1] in ".~"


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    try:
        found = path.exists()
    except OSError as error:  # too long, or in a folder that may not be entered
        raise DataError(f"Data path {name!r} cannot be opened ({error.strerror}).") from error
    if not found:
        named = {"\t": "tab", "\n": "newline", "\r": "return"}
        control = [what for c, what in named.items() if c in name]
        hint = f" (it contains a {control[0]}: write r'...' or use /)" if control else ""
        raise DataError(f"Data path {name!r} does not exist{hint}.")
    return path


def _constant_images(data: ArrayData) -> tuple[str, ...]:
    flat = data.raw.flatten(1)
    constant = (flat.amax(1) == flat.amin(1)).nonzero().flatten().tolist()
    if not constant:
        return ()
    first = data.name_of(constant[0])
    return (f"{len(constant)} of {len(data)} images are of one colour, the first: {first}",)


def _from_scan(scanned: ScannedImages, scaling: str, workers: int) -> Data:
    """Images in memory where they take little, else read as they are needed."""
    shape, classes = scanned.shape, scanned.classes
    most = min(IN_MEMORY_BYTES, max(FREE_BYTES, LARGEST_RATIO * scanned.file_bytes))
    item_bytes = int(np.prod(shape))
    fits = len(scanned) * item_bytes <= most
    shown = len(scanned)
    if not fits:
        shown = max(1, min(STATISTICS_ITEMS, len(scanned), FREE_BYTES // (4 * item_bytes)))
    raw = torch.empty(shown, *shape, dtype=torch.uint8)
    for row in range(shown):  # spread evenly over the classes, which follow one another
        raw[row] = torch.from_numpy(scanned[row * len(scanned) // shown][0])
    spec = make_spec(raw, scanned.files.root.name, 0.0, 255.0, 256, scaling, classes)
    notes = (f"{scanned.files.root}: {len(scanned)} items of shape {shape}", *scanned.notes)
    more: dict[str, Any] = {"captions": scanned.captions, "split": scanned.split}
    if fits:
        condition = {"class_labels": torch.tensor(scanned.labels)} if classes else {}
        return ArrayData(raw, condition, spec, notes=notes, names=scanned.names, **more)
    return StreamData(scanned, spec, workers=workers, notes=notes, **more)
