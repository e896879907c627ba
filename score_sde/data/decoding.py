"""One picture from a file: upright, whatever its mode, as uint8 (C, H, W).

Decoding is Pillow's. Pictures of 16 and 32 bits and of floating point (scans, microscopes,
telescopes) have no settled white: they are mapped from ``bounds`` to 0..255, and `usual_bounds`
chooses these for a whole set, so that pictures keep their brightness relative to one another.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from score_sde.data.files import Files, FolderFiles, printable
from score_sde.data.spec import DataError

# Formats of Pillow that read pixels themselves: EPS, PDF and stubs would start other programs.
FORMATS = {
    "PNG": ".png .apng", "JPEG": ".jpg .jpeg .jpe .jfif .mpo", "BMP": ".bmp", "WEBP": ".webp",
    "TIFF": ".tif .tiff", "GIF": ".gif", "PPM": ".ppm .pgm .pbm .pnm .pfm", "AVIF": ".avif .avifs",
    "JPEG2000": ".jp2 .j2k .jpc .jpf .jpx .j2c", "TGA": ".tga .icb .vda .vst", "DIB": ".dib",
    "ICO": ".ico", "CUR": ".cur", "ICNS": ".icns", "PCX": ".pcx", "DCX": ".dcx", "PSD": ".psd",
    "SGI": ".sgi .rgb .rgba .bw", "DDS": ".dds", "QOI": ".qoi", "XBM": ".xbm", "XPM": ".xpm",
    "IM": ".im", "MSP": ".msp", "FLI": ".fli .flc", "SUN": ".ras .im1",
    "BLP": ".blp", "FTEX": ".ftc .ftu", "SPIDER": ".spider", "GBR": ".gbr", "PCD": ".pcd",
    "FITS": ".fits .fit", "PIXAR": ".pxr", "XVTHUMB": ".p7", "IMT": ".imt", "MCIDAS": ".ara .area",
}  # fmt: skip
EXTENSIONS = tuple(" ".join(FORMATS.values()).split())
COMMON = ".png .jpg .jpeg .bmp .webp .tif .tiff .gif .ppm .avif"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of a picture of so many channels."""
Resize = Literal["center_crop", "stretch", "pad"]
RESIZES = get_args(Resize)
Convert = Literal["auto", "grey", "rgb", "rgba"]
CONVERTS = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "RGBA", "PA", "La", "RGBa")
LARGEST_PIXELS = 1 << 26
STRIP = 1 << 20  # pixels that are converted at a time
PAGES = "pages"  # in a picture's info: how many the file holds, of which the first is read
# EXIF's orientation to what brings the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTATION = 0x0112
Size = tuple[int, int]
Bounds = tuple[float, float]


class Range(NamedTuple):
    """What deep pictures are mapped to 0..255 from: those of whole numbers, those of floats."""

    whole: Bounds = (0.0, 65535.0)
    real: Bounds = (0.0, 1.0)


def read_picture(files: Files, name: str) -> Image.Image:
    """The picture in a file, loaded and upright; DataError, with the name, if it cannot be had."""
    try:
        with files.open(name) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which changes no pixel
            # A picture inside of another, as in icons, may be larger than the outer one says.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _upright(_load(handle))
    # A damaged file makes Pillow's readers raise whatever they meet: struct.error, IndexError,
    # SyntaxError, zlib.error, ... Nothing but the reading of this one file happens here.
    except Exception as error:
        reason = str(error) if isinstance(error, DataError) else _reason(error)
        raise DataError(f"{printable(name)}: cannot decode ({reason})") from error


def picture_at(path: str | Path) -> Image.Image:
    """`read_picture` of a file of its own; DataError if it cannot be had."""
    path = Path(path)
    return read_picture(FolderFiles(path.parent, (path.name,)), path.name)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no format of pictures that is known"
    lines = str(error).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__


def _load(handle: BinaryIO) -> Image.Image:
    try:
        image = _open(handle)
        pages = _pages(image, handle)
        image = _open(handle) if pages > 1 else image
        image.load()
        image.info[PAGES] = pages
    except ValueError:  # Pillow refuses a PNG for the size of the texts in it
        handle.seek(0)
        content = handle.read()
        if not content.startswith(_PNG):
            raise
        image = _open(io.BytesIO(without_texts(content)))
        image.load()
    return image


def _pages(image: Image.Image, handle: BinaryIO) -> int:
    """How many pictures a TIFF holds, 1 where that cannot be found out."""
    if image.format != "TIFF":
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damage behind the first picture, which is the one that is read
        return 2
    finally:
        handle.seek(0)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name in FORMATS)  # in the order they are to be tried


def _open(handle: BinaryIO) -> Image.Image:
    image = Image.open(handle, formats=_formats())
    if image.width * image.height > LARGEST_PIXELS:
        raise DataError(
            f"{image.width}x{image.height} pixels are more than {LARGEST_PIXELS >> 20} million; "
            "shrink it first"
        )
    if any(tile[0] == "fits_gzip" for tile in image.tile):  # unpacked whole, whatever its size
        raise DataError("compressed FITS is not read; unpack it first")
    return image


_PNG = b"\x89PNG\r\n\x1a\n"


def without_texts(png: bytes) -> bytes:
    """A PNG file without its chunks of text and its colour profile, which may be any size."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # EXIF of no sense says nothing of the pixels
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def is_deep(mode: str) -> bool:
    """Whether a mode of Pillow has more than 8 bits: 16 or 32, or floating point."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Rows and the part of the picture there, so that what is made of a large one is held once."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        below = min(top + rows, image.height)
        whole = below - top == image.height
        part = image if whole else image.crop((0, top, image.width, below))
        yield slice(top, below), part


def _values(image: Image.Image, name: str) -> np.ndarray:
    """The values (H, W) float32 of a deep picture; DataError if one of them is NaN or inf."""
    values = np.asarray(image).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise DataError(f"{printable(name)}: cannot decode (it holds NaN or inf)")
    return values


def extent_of(image: Image.Image, name: str) -> Bounds:
    """Lowest and highest value of a deep picture; DataError if one is NaN or inf."""
    ends = [(v.min(), v.max()) for v in (_values(part, name) for _, part in _strips(image))]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def usual_bounds(low: float, high: float, whole: bool) -> Bounds | None:
    """What values in low..high are probably counted from and to; None if nothing usual fits.

    Of whole numbers the depth that holds them (8, 10, 12, 14 or 16 bits), of others 0..1, -1..1
    or 0..255.
    """
    usual: tuple[Bounds, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
    if whole:
        usual = tuple((0.0, float(2**bits - 1)) for bits in (8, 10, 12, 14, 16))
    for bounds in usual:
        if bounds[0] <= low and high <= bounds[1]:
            return bounds
    return None


def to_bytes(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Values as uint8: bounds to 0 and 255, rounded; what lies outside is cut."""
    scaled = (values - bounds[0]) * (255 / (bounds[1] - bounds[0]))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


_USUAL = Range()


def to_array(
    image: Image.Image,
    name: str,
    mode: str,
    size: Size | None,
    resize: str | None,
    bounds: Range = _USUAL,
) -> np.ndarray:
    """The picture as uint8 (C, H, W): converted to L, RGB or RGBA, on white, brought to size."""
    parts = ((rows, _flat(part, name, mode, bounds)) for rows, part in _strips(image))
    if size is None or image.size == (size[1], size[0]):
        array = np.empty((len(Image.new(mode, (1, 1)).getbands()), *image.size[::-1]), np.uint8)
        for rows, part in parts:
            array[:, rows] = np.atleast_3d(np.asarray(part)).transpose(2, 0, 1)
        return array
    whole = Image.new(mode, image.size)
    for rows, part in parts:
        whole.paste(part, (0, rows.start))
    fitted = np.atleast_3d(np.asarray(fit_image(whole, size, resize)))
    return np.array(fitted.transpose(2, 0, 1), order="C")


def _flat(image: Image.Image, name: str, mode: str, bounds: Range) -> Image.Image:
    """A part of a picture in ``mode``, of 8 bits and on white."""
    if is_deep(image.mode):
        chosen = bounds.real if image.mode == "F" else bounds.whole
        image = Image.fromarray(to_bytes(_values(image, name), chosen))
    if mode != "RGBA" and (image.mode in _ALPHA_MODES or "transparency" in image.info):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else image.convert(mode)


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
