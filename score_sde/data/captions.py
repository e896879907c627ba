"""Captions of pictures in files: metadata.jsonl or metadata.csv, or a .txt beside each picture.

The metadata files are Hugging Face's imagefolder convention: a line or row for each picture with
its ``file_name``, relative to the metadata file, and its ``text``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from score_sde.checks import reading, require
from score_sde.data.files import Files, listed, printable
from score_sde.data.spec import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
TEXT_KEYS = ("text", "caption", "captions", "prompt")
LONGEST_FILE = 1 << 16  # bytes of a .txt that is a caption


class Captions(NamedTuple):
    """A caption for each picture, or None without; the files that hold them; what to be said."""

    texts: tuple[str, ...] | None
    files: frozenset[str]
    notes: tuple[str, ...]


def captions_of(files: Files, pictures: Sequence[str]) -> Captions:
    """The captions of these pictures.

    Raises DataError, which names them, if metadata or most .txt files are there but some pictures
    have no caption.
    """
    present = set(files.names)
    tables = [n for n in files.names if PurePosixPath(n).name in METADATA]
    beside = {p: str(PurePosixPath(p).with_suffix(".txt")) for p in pictures}
    texts = {p: t for p, t in beside.items() if t in present}
    if tables:
        known = {name: text for table in tables for name, text in _entries(files, table)}
        source, used = listed(tables, 3), frozenset(tables)
    elif 2 * len(texts) > len(pictures):
        known = {p: _text_file(files, t) for p, t in texts.items()}
        source, used = "the .txt files", frozenset(texts.values())
    else:
        return Captions(None, frozenset(), ())
    missing = [p for p in pictures if not known.get(p)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(pictures)} images have no caption in {source}: "
            f"{listed(missing, 10)}. Give them one, take them out, or leave captions aside with "
            "data.options.captions=false."
        )
    notes = [f"captions from {source}"]
    strangers = [name for name in known if name not in present]
    if strangers:
        notes.append(f"{len(strangers)} captions are of files not here: {listed(strangers, 10)}")
    return Captions(tuple(known[p] for p in pictures), used, tuple(notes))


def _text_file(files: Files, name: str) -> str:
    with reading(printable(name), "a caption", DataError), files.open(name) as handle:
        content = handle.read(LONGEST_FILE + 1)
        require(len(content) <= LONGEST_FILE, "longer than 64 KiB")
        return _one_line(content.decode("utf-8-sig"))


def _one_line(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # without halves of characters
    return " ".join(text.split())


def _entries(files: Files, table: str) -> Iterator[tuple[str, str]]:
    """Pictures, by their names in ``files``, with their captions."""
    folder = PurePosixPath(table).parent
    for number, row in _rows(files, table):
        text = next((row[key] for key in TEXT_KEYS if key in row), None)
        name = row.get("file_name")
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(
                f"{printable(table)}, row {number} must have a file_name and a text; it has "
                f"{listed([str(key) for key in row], 10) or 'nothing'}."
            )
        yield str(folder / name), _one_line(text)


def _rows(files: Files, table: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with reading(printable(table), "a table of captions", DataError), files.open(table) as handle:
        lines = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
        if table.endswith(".csv"):
            yield from enumerate(csv.DictReader(lines), 1)
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = json.loads(line)
                yield number, row if isinstance(row, Mapping) else {}
