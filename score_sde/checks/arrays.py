"""Arrays from .npy and .npz files of anybody: of numbers, and no larger than the files can hold."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from score_sde.checks.errors import UserError, require
from score_sde.checks.files import reading

# A member of a zip may be so many times its compressed size, once it is larger than the free size.
LARGEST_RATIO = 200
FREE_BYTES = 1 << 24
PART = 1 << 22  # bytes that are unpacked at a time


def check_member(member: zipfile.ZipInfo) -> None:
    """UserError for a member of a zip that would unpack to far more than it is."""
    usual = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    require(usual, "packed in a way other than zip's usual (deflate)")
    require(
        member.file_size <= max(FREE_BYTES, LARGEST_RATIO * member.compress_size),
        f"{member.compress_size} bytes that claim to unpack to {member.file_size}: a bomb",
    )


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """UserError for members that are together larger than the ``size`` bytes of their file."""
    packed = sum(member.compress_size for member in archive.infolist())
    require(packed <= size, "its members overlap one another: a zip bomb")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an .npz; its header may not promise more than the member holds."""
    check_member(member)
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as handle:
        version = np.lib.format.read_magic(handle)
        header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(handle)
        require(not dtype.hasobject, f"{name} holds Python objects; numbers are needed")
        held = min(shape, default=0) >= 0 and math.prod(shape) * dtype.itemsize <= member.file_size
        require(held, f"the header of {name} says {shape}, which is more than the file holds")
        array = np.empty(math.prod(shape), dtype)
        _fill(array, handle)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _fill(array: np.ndarray, handle: IO[bytes]) -> None:
    """In parts, so that what is unpacked is held once."""
    left = memoryview(array.data).cast("B") if array.nbytes else memoryview(b"")
    while left:
        part = handle.read(min(PART, len(left)))
        if not part:
            raise EOFError("it is cut short")
        left[: len(part)] = part
        left = left[len(part) :]


def read_arrays(
    path: str | Path, what: str, error: type[UserError] = UserError
) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, the one of an .npy under ""; ``error`` for any other file.

    what: that the file should be, for the sentence: "a readable .npz file of statistics".
    """
    path = Path(path)
    with reading(path, what, error):
        if not zipfile.is_zipfile(path):
            mapped = np.lib.format.open_memmap(path, mode="r")
            return {"": np.array(mapped)}
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path.stat().st_size)
            return {
                member.filename.removesuffix(".npy"): read_member(archive, member)
                for member in archive.infolist()
            }
