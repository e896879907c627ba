"""A folder or zip of images of any kind as uint8 arrays of one shape.

Nested folders, any case of extension, grey, RGB, RGBA, palettes, CMYK and 16 bits are read; the
names of first-level subfolders are the classes when every image lies in one. Decoding is Pillow's.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from score_sde.data.spec import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
RESIZES = ("center_crop", "stretch", "pad")
CONVERTS = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}
_GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "RGBA", "PA", "La", "RGBa")
Size = tuple[int, int]


@dataclass(frozen=True)
class ImageFiles:
    """The files of a folder or a zip, by names relative to it."""

    root: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The bytes of a file. A zip is opened anew each time: workers must not share a handle."""
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        with zipfile.ZipFile(self.root) as archive:
            return archive.read(name)


def list_files(root: Path) -> ImageFiles:
    """All files below a folder or in a zip, sorted by name; DataError if it cannot be read."""
    if root.is_dir():
        found = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
        names = [p.as_posix() for p in found if not any(part[0] == "." for part in p.parts)]
    else:
        try:
            with zipfile.ZipFile(root) as archive:
                names = [i.filename for i in archive.infolist() if not i.is_dir()]
        except zipfile.BadZipFile as error:
            raise DataError(f"{root} is not a readable zip file ({error}).") from error
        names = [n for n in names if not n.startswith("__MACOSX")]
    return ImageFiles(root, tuple(sorted(names)))


def decode(content: bytes, mode: str, size: Size | None, resize: str | None) -> np.ndarray:
    """One image as uint8 (C, H, W): upright, converted to L, RGB or RGBA, brought to size."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # 16 bits: the full range to 8 bits, rounded.
        values = np.asarray(image, np.float64)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if mode != "RGBA" and (image.mode in _ALPHA_MODES or "transparency" in image.info):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    image = fit_image(image.convert(mode), size, resize)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def fit_image(image: Image.Image, size: Size | None, resize: str | None) -> Image.Image:
    """The image at ``size`` (H, W): cropped, stretched, or shrunk if too large and padded black."""
    if size is None or image.size == (size[1], size[0]):
        return image
    target = (size[1], size[0])  # Pillow speaks of (width, height)
    if resize == "center_crop":
        return ImageOps.fit(image, target, Image.Resampling.LANCZOS)
    if resize == "stretch":
        return image.resize(target, Image.Resampling.LANCZOS)
    if image.width > target[0] or image.height > target[1]:
        image = ImageOps.contain(image, target, Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, target)
    canvas.paste(image, ((target[0] - image.width) // 2, (target[1] - image.height) // 2))
    return canvas


@dataclass(frozen=True)
class ScannedImages(Dataset):
    """Readable images of one shape: item i is (uint8 (C, H, W), class index or -1)."""

    files: ImageFiles
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    mode: str
    size: Size
    resize: str | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return len(Image.new(self.mode, (1, 1)).getbands()), *self.size

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        try:
            image = decode(self.files.read(self.names[i]), self.mode, self.size, self.resize)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.names[i]}: cannot decode ({error}).") from error
        return image, self.labels[i]


def scan_images(
    root: Path,
    size: Size | None = None,
    resize: str | None = None,
    convert: str = "auto",
    strict: bool = False,
) -> ScannedImages:
    """Look at every image's header and settle shape, mode and classes; nothing is kept in memory.

    Unreadable images are skipped and named, or an error with ``strict``. Raises DataError for an
    empty folder, and for mixed sizes without ``size`` and ``resize``.
    """
    if resize is not None and resize not in RESIZES:
        raise DataError(f"data.resize {resize!r} is unknown; choose from {list(RESIZES)}.")
    if convert not in ("auto", *CONVERTS):
        raise DataError(f"data.convert {convert!r} is unknown; choose auto or {list(CONVERTS)}.")
    files = list_files(root)
    candidates = [n for n in files.names if PurePosixPath(n).suffix.lower() in EXTENSIONS]
    others = Counter(PurePosixPath(n).suffix.lower() or "none" for n in files.names)
    if not candidates:
        seen = " ".join(f"{suffix} {count}" for suffix, count in others.most_common(5)) or "none"
        raise DataError(
            f"No images found in {root} (looked at {len(files.names)} files; extensions seen: "
            f"{seen}). Accepted: {' '.join(EXTENSIONS)}."
        )
    names: list[str] = []
    sizes: list[Size] = []
    modes: Counter[str] = Counter()
    notes: list[str] = []
    for name in candidates:
        try:
            content = files.read(name)
            with Image.open(io.BytesIO(content)) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                image.load()  # a truncated file has a good header
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, zipfile.BadZipFile) as e:
            problem = f"{name}: cannot decode ({e})"
            if strict:
                raise DataError(f"{problem}. Remove it, or set data.strict=false.") from e
            notes.append(f"{problem}; skipped")
            continue
        names.append(name)
        sizes.append(image.size if turned else image.size[::-1])
        modes[image.mode] += 1
    if not names:
        raise DataError(f"None of the {len(candidates)} images in {root} can be decoded.")
    if skipped := len(files.names) - len(candidates):
        notes.append(f"{skipped} other files ignored")
    if size is None:
        if len(set(sizes)) > 1:
            low, high = min(sizes), max(sizes)
            raise DataError(
                f"Images differ in size (height x width from {low[0]}x{low[1]} to "
                f"{high[0]}x{high[1]}). Set data.size=(H, W) and "
                f"data.resize={'|'.join(RESIZES)}."
            )
        size = sizes[0]
    elif resize is None and any(s != size for s in sizes):
        raise DataError(
            f"Images are not all {size[0]}x{size[1]}. Set data.resize={'|'.join(RESIZES)}."
        )
    grey = all(mode in _GREY_MODES for mode in modes)
    mode = CONVERTS.get(convert, "L" if grey else "RGB")
    notes.append(f"{len(names)} images in {len({PurePosixPath(n).parent for n in names})} folders")
    notes.append("modes " + ", ".join(f"{m} {k}" for m, k in modes.most_common()) + f" -> {mode}")
    tops = [PurePosixPath(n).parts[0] if len(PurePosixPath(n).parts) > 1 else "" for n in names]
    classes = tuple(sorted(set(tops))) if "" not in tops and len(set(tops)) > 1 else ()
    labels = tuple(classes.index(top) if classes else -1 for top in tops)
    return ScannedImages(files, tuple(names), labels, classes, mode, size, resize, tuple(notes))
