"""What a file may ask for: no more memory than it has bytes, a few times over."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from score_sde.convert.parts import ConversionError


def check_pickle(data: bytes, name: str) -> None:
    """ConversionError for a pickle whose places or lengths lie beyond its own end.

    Nothing is executed. CPython makes a table as long as the largest place that an opcode names:
    nine bytes could ask for four gigabytes.
    """
    try:
        for code, value, _ in pickletools.genops(data):
            places = code.name in ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")
            if places and isinstance(value, int) and value > len(data):
                raise ConversionError(
                    f"{name} has {len(data)} bytes and asks for a place at {value}: it is damaged, "
                    "or made to fill the memory. It was not read."
                )
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{name} is not a whole pickle ({error}).") from error


def check_archive(path: Path) -> None:
    """ConversionError for a zip file of torch.save whose entries are packed or larger than it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ConversionError(f"{path.name} is cut short or damaged ({error}).") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ConversionError(
            f"{path.name} holds packed entries, which torch.save never writes; it was not read."
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ConversionError(
            f"{path.name} holds entries that are larger than it is: it is damaged, or made to "
            "fill the memory. It was not read."
        )


def check_tensors(tensors: Mapping[str, Tensor], size: int, name: str) -> None:
    """ConversionError for tensors that stand for far more than the ``size`` bytes of a file."""
    total = sum(t.numel() * t.element_size() for t in _tensors(tensors.values()))
    if total > 4 * size + 4096:
        raise ConversionError(
            f"{name} has {size} bytes, and its tensors, which repeat numbers, would take {total}: "
            "it is made to fill the memory."
        )


def _tensors(values: Iterable[object]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """ConversionError for weights that are not finite."""
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConversionError(
                f"{what}: the weights {key} hold values that are not finite. The training that "
                "made them had diverged; take an earlier checkpoint."
            )
