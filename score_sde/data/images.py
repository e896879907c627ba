"""A folder or zip of images of any kind as uint8 arrays of one shape.

Nested folders, any case of extension, grey, RGB, RGBA, palettes, CMYK, 16 bits and floating point
are read; what cannot be is skipped and named, whatever is wrong with it. Folders train and test are
the splits; the names of first-level folders are the classes when every image lies in one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from score_sde.data.captions import Captions, captions_of
from score_sde.data.decoding import (
    COMMON,
    CONVERTS,
    EXTENSIONS,
    GREY_MODES,
    PAGES,
    RESIZES,
    Bounds,
    Range,
    Size,
    extent_of,
    is_deep,
    read_picture,
    to_array,
    usual_bounds,
)
from score_sde.data.files import Files, listed, printable
from score_sde.data.shards import labels_beside
from score_sde.data.spec import DataError
from score_sde.data.splits import split_names

MANY = 2000  # images, from which looking at all of them takes a while
FREE_PIXELS, PIXELS_A_BYTE = 1 << 24, 16  # of a picture that is taken at its own size
SLIVER = 1 / 8  # of its bounds, less than which a deep set is said to use


@dataclass(frozen=True)
class ScannedImages(Dataset):
    """Readable images of one shape: item i is (uint8 (C, H, W), class index or -1).

    split: what these are of the folder: train, test, or all. bounds: what deep images are mapped
    from. captions: one for each image, None without. file_bytes: on the disk, of all of them.
    """

    files: Files
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    mode: str
    size: Size
    resize: str | None
    bounds: Range
    split: str
    captions: tuple[str, ...] | None
    notes: tuple[str, ...]
    file_bytes: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """What people call the images: their paths, as text that can be printed."""
        return tuple(printable(path) for path in self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return len(Image.new(self.mode, (1, 1)).getbands()), *self.size

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        image = read_picture(self.files, self.paths[i])
        array = to_array(image, self.paths[i], self.mode, self.size, self.resize, self.bounds)
        return array, self.labels[i]


@dataclass
class _Seen:
    """What a first look at every image finds."""

    names: list[str] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    # Lowest and highest value of each deep image, by name: of whole numbers, of floats.
    whole: dict[str, Bounds] = field(default_factory=dict)
    real: dict[str, Bounds] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    stacks: list[str] = field(default_factory=list)  # files of several pictures

    def add(self, name: str, image: Image.Image) -> None:
        if is_deep(image.mode):
            kind = self.real if image.mode == "F" else self.whole
            kind[name] = extent_of(image, name)
        if image.info.get(PAGES, 1) > 1:
            self.stacks.append(name)
        self.names.append(name)
        self.sizes.append(image.size[::-1])
        self.modes[image.mode] += 1


def scan_images(
    files: Files,
    size: Size | None = None,
    resize: str | None = None,
    convert: str = "auto",
    strict: bool = False,
    split: str = "train",
    bounds: Bounds | None = None,
    captioned: bool = True,
    labelled: bool = True,
) -> ScannedImages:
    """Look at every image and settle shape, mode, classes and range; none is kept in memory.

    Unreadable images are skipped and named, or an error with ``strict``. Raises DataError for an
    empty folder, for mixed sizes without ``size`` and ``resize``, and for missing captions, unless
    ``captioned`` is False and captions are not looked for. ``labelled``: the same of classes.
    """
    root = files.root
    pictures = [n for n in files.names if PurePosixPath(n).suffix.lower() in EXTENSIONS]
    if not pictures:
        raise DataError(_no_images(root, files))
    part = split_names(pictures, split, root)
    seen = _look(files, part.names, strict)
    if not seen.names:
        first = "" if not seen.problems else f" The first: {seen.problems[0]}."
        raise DataError(f"None of the {len(part.names)} images in {root} can be decoded.{first}")
    file_bytes = sum(files.size_of(name) for name in seen.names)
    if size is None:
        _check_plausible(seen.sizes, file_bytes)
    size = _settled_size(seen.sizes, size, resize)
    grey = all(mode in GREY_MODES for mode in seen.modes)
    mode = CONVERTS.get(convert, "L" if grey else "RGB")
    nothing: tuple[str, ...] = ()
    classes, labels, class_notes = (
        _classes(files, seen.names, part.below)
        if labelled
        else (nothing, (-1,) * len(seen.names), [])
    )
    deep_bounds, range_notes = _range(seen, bounds)
    modes = ", ".join(f"{m} {k}" for m, k in seen.modes.most_common())
    folders = len({PurePosixPath(n).parent for n in seen.names})
    captions = captions_of(files, seen.names) if captioned else Captions(None, frozenset(), ())
    others = [n for n in files.names if PurePosixPath(n).suffix.lower() not in EXTENSIONS]
    others = [n for n in others if n not in captions.files and not n.endswith(".cls")]
    ignored = [f"{len(others)} other files ignored: {listed(others)}"] if others else []
    stacks = f"{len(seen.stacks)} files hold several pictures; the first of each is read: "
    several = [stacks + listed(seen.stacks, 10)] if seen.stacks else []
    notes = [
        *files.notes, *part.notes, *seen.problems, *ignored,
        f"{len(seen.names)} images in {folders} folders", f"modes {modes} -> {mode}",
        *several, *range_notes, *class_notes, *captions.notes,
    ]  # fmt: skip
    return ScannedImages(
        files, tuple(seen.names), labels, classes, mode, size, resize, deep_bounds,
        part.split, captions.texts, tuple(notes), file_bytes,
    )  # fmt: skip


def _no_images(root: Path, files: Files) -> str:
    suffixes = Counter(PurePosixPath(n).suffix.lower() or "none" for n in files.names)
    kinds = " ".join(f"{printable(s)} {count}" for s, count in suffixes.most_common(5)) or "none"
    left_out = "".join(f" {note}." for note in files.notes)
    return (
        f"No images found in {root} (looked at {len(files.names)} files; extensions seen: "
        f"{kinds}). Accepted: {COMMON} and others that Pillow reads.{left_out}"
    )


def _look(files: Files, names: Sequence[str], strict: bool) -> _Seen:
    """Every image once, decoded whole: a truncated file has a good header."""
    seen = _Seen()
    for name in tqdm(names, "looking at images", disable=len(names) < MANY):
        try:
            seen.add(name, read_picture(files, name))
        except DataError as problem:
            if strict:
                raise DataError(f"{problem}. Remove it, or set data.strict=false.") from problem
            seen.problems.append(f"{problem}; skipped")
    return seen


def _check_plausible(sizes: Sequence[Size], file_bytes: int) -> None:
    """DataError for pictures that would be far larger in memory than the files that hold them."""
    height, width = max(sizes)
    if height * width > max(FREE_PIXELS, PIXELS_A_BYTE * file_bytes // len(sizes)):
        raise DataError(
            f"pictures of {height}x{width} pixels are far larger than their files: if they are to "
            "be so large, set data.size=(H, W)."
        )


def _settled_size(sizes: Sequence[Size], size: Size | None, resize: str | None) -> Size:
    """The size that all images will have; DataError if that needs a decision."""
    if size is None:
        if len(set(sizes)) > 1:
            low, high = min(sizes), max(sizes)
            raise DataError(
                f"Images differ in size (height x width from {low[0]}x{low[1]} to "
                f"{high[0]}x{high[1]}). Set data.size=(H, W) and "
                f"data.resize={'|'.join(RESIZES)}."
            )
        return sizes[0]
    if resize is None and any(s != size for s in sizes):
        raise DataError(
            f"Images are not all {size[0]}x{size[1]}. Set data.resize={'|'.join(RESIZES)}."
        )
    return size


def _classes(
    files: Files, names: Sequence[str], below: int
) -> tuple[tuple[str, ...], tuple[int, ...], list[str]]:
    """Classes by .cls files or by the folders at depth ``below``, labels of images, and notes."""
    beside = labels_beside(files, names)
    if beside.numbers is not None:
        return beside.names, tuple(beside.numbers.tolist()), ["classes from the .cls files"]
    parts = [PurePosixPath(n).parts for n in names]
    tops = [printable(p[below]) if len(p) > below + 1 else "" for p in parts]
    loose, folders = tops.count(""), sorted(set(tops) - {""})
    if loose and folders:
        return (), (-1,) * len(names), [f"no classes: {loose} images lie outside the folders"]
    if len(folders) < 2:
        return (), (-1,) * len(names), []
    numbers = {name: i for i, name in enumerate(folders)}
    return tuple(folders), tuple(numbers[top] for top in tops), []


def _range(seen: _Seen, given: Bounds | None) -> tuple[Range, list[str]]:
    """What deep images are mapped to 0..255 from, and what a user should know of it."""
    if not (seen.whole or seen.real):
        note = "data.range is of images of 16 and 32 bits; these have 8, so it changes nothing"
        return Range(), [note] if given is not None else []
    whole, notes = _bounds("16 or 32 bits", seen.whole, True, given)
    real, more = _bounds("floating point", seen.real, False, given)
    return Range(whole, real), notes + more


def _bounds(
    kind: str, extents: Mapping[str, Bounds], whole: bool, given: Bounds | None
) -> tuple[Bounds, list[str]]:
    if not extents:
        return (0.0, 1.0), []
    low = min(lowest for lowest, _ in extents.values())
    high = max(highest for _, highest in extents.values())
    bounds = given or usual_bounds(low, high, whole) or (low, max(high, low + 1))
    note = f"{len(extents)} images of {kind} hold values from {low:g} to {high:g}: "
    note += f"{bounds[0]:g} becomes black and {bounds[1]:g} white"
    notes = [note if given else note + f"; for others set data.range={low:g},{high:g} or the like"]
    if high - low < SLIVER * (bounds[1] - bounds[0]):
        notes.append(
            f"they use a sliver of {bounds[0]:g}..{bounds[1]:g}, so pictures have little contrast: "
            f"set data.range={low:g},{high:g}"
        )
    outside = [n for n, (a, b) in extents.items() if a < bounds[0] or b > bounds[1]]
    if outside:
        notes.append(
            f"{len(outside)} images hold values outside data.range, which are cut: "
            f"{listed(outside, 10)}"
        )
    return bounds, notes
