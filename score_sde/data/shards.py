"""Pictures in tar files, as webdataset packs them: read by place, so that any item can be had.

A set of shards is one folder in pieces: ``000017.jpg`` with ``000017.txt`` beside it, its caption,
and ``000017.cls``, its class. An index of the headers is made once; an item is then one seek and
one read, and the order of batches stays a function of seed and step, as of any other data.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from score_sde.data.files import Files, listed, without_hidden
from score_sde.data.labels import Classes, classes_of_labels
from score_sde.data.spec import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Place(NamedTuple):
    """Where a file lies: the number of its shard, and its bytes in it."""

    shard: int
    offset: int
    size: int


@dataclass(frozen=True)
class TarFiles:
    """The files of some tars, by names that are unique among them."""

    root: Path
    names: tuple[str, ...]
    shards: tuple[Path, ...]
    places: dict[str, Place]
    notes: tuple[str, ...] = ()

    def open(self, name: str) -> BinaryIO:
        """The file; its place was found inside the shard."""
        place = self.places[name]
        with self.shards[place.shard].open("rb") as handle:
            handle.seek(place.offset)
            return io.BytesIO(handle.read(place.size))

    def size_of(self, name: str) -> int:
        """Bytes in the tar."""
        return self.places[name].size


def is_shards(name: str) -> bool:
    """Whether this names tar files: x.tar, or a pattern x-{000..012}.tar."""
    return name.endswith((".tar", *COMPRESSED))


def expanded(pattern: str) -> list[str]:
    """The names of a pattern with {000..012} or {a,b} in it, in order."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    parts = words.split(",") if words is not None else []
    if words is None:
        if not 0 <= int(last) - int(first) < 1_000_000:
            raise DataError(f"{{{first}..{last}}} of {pattern} is no range of shards.")
        parts = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for part in parts for name in expanded(head + part + tail)]


def list_shards(pattern: str) -> TarFiles:
    """The files in the shards of a pattern; DataError for shards that are missing or compressed."""
    paths = tuple(Path(name).expanduser() for name in expanded(pattern))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} shards do not exist: {listed(missing, 5)}."
        )
    if pattern.endswith(COMPRESSED):
        raise DataError(
            f"{pattern} is compressed, so that no item in it can be reached by itself; unpack it "
            "to a .tar (pictures are compressed already)."
        )
    notes: list[str] = []
    found = [
        (name, Place(i, offset, size))
        for i, path in enumerate(paths)
        for name, offset, size in _index(path, notes)
    ]
    if len({name for name, _ in found}) < len(found):  # shards that number their items alike
        found = [(_within(name, paths[place.shard]), place) for name, place in found]
    places = dict(found)
    names = without_hidden(list(places), notes)
    return TarFiles(Path(pattern), names, paths, places, tuple(notes))


def _within(name: str, shard: Path) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{shard.stem}:{path.name}"))


def _index(path: Path, notes: list[str]) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar; of a damaged one, of those before the damage."""
    found: list[tuple[str, int, int]] = []
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and member.offset_data + member.size <= end:
                    found.append((member.name, member.offset_data, member.size))
                elif member.isreg():
                    raise tarfile.ReadError(f"{member.name} is cut")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if not found:
            raise DataError(f"{path} is not a readable tar file ({error}).") from error
        notes.append(f"{path.name} is damaged after {len(found)} files ({error})")
    return found


def labels_beside(files: Files, pictures: Sequence[str]) -> Classes:
    """The classes in the .cls file beside each picture; numbers None where one has none."""
    present = set(files.names)
    beside = [str(PurePosixPath(p).with_suffix(".cls")) for p in pictures]
    if not all(name in present for name in beside):
        return Classes(None, ())
    texts = []
    for name in beside:
        with files.open(name) as handle:
            texts.append(handle.read(1 << 10).decode("utf-8", "replace").strip())
    whole = all(re.fullmatch(r"-?\d{1,18}", text) for text in texts)
    return classes_of_labels(np.array([int(t) for t in texts] if whole else texts))
