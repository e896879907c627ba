"""Files of pickles and of torch.save: no more memory than they have bytes, a few times over."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from score_sde.checks.errors import require

PLACES = ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")


def check_pickle(data: bytes) -> None:
    """UserError for a pickle whose places or lengths lie beyond its own end, or that is cut short.

    Nothing is executed. CPython makes a table as long as the largest place that an opcode names:
    nine bytes could ask for four gigabytes.
    """
    for code, value, _ in pickletools.genops(data):
        beyond = code.name in PLACES and isinstance(value, int) and value > len(data)
        require(
            not beyond,
            f"it has {len(data)} bytes and asks for a place at {value}: it is damaged, or made to "
            "fill the memory",
        )


def check_archive(path: Path) -> None:
    """UserError for a file of torch.save whose entries are packed or larger than it."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # as torch.save wrote before it wrote zip files
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    require(
        all(entry.compress_type == zipfile.ZIP_STORED for entry in entries),
        "it holds packed entries, which torch.save never writes",
    )
    require(
        sum(entry.file_size for entry in entries) <= path.stat().st_size,
        "it holds entries that are larger than it is: it is damaged, or made to fill the memory",
    )


def load_pickled(path: Path) -> object:
    """What torch.save wrote: tensors and plain values. Call it within `reading`."""
    check_archive(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    check_tensors(found, path.stat().st_size)
    return found


def check_tensors(found: object, size: int) -> None:
    """UserError for tensors, at any depth, that stand for far more than the bytes of their file."""
    total = sum(t.numel() * t.element_size() for t in _tensors([found]))
    require(
        total <= 4 * size + 4096,
        f"it has {size} bytes, and its tensors, which repeat numbers, would take {total}: it is "
        "made to fill the memory",
    )


def _tensors(values: Iterable[object]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
