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

MOST_SHARDS = 100_000
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
        if not 0 <= int(last) - int(first) < MOST_SHARDS:
            raise DataError(f"{{{first}..{last}}} of {pattern} is no range of shards.")
        parts = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    head, rest = pattern[: found.start()], expanded(pattern[found.end() :])
    if len(parts) * len(rest) > MOST_SHARDS:
        raise DataError(f"{pattern} names more than {MOST_SHARDS} shards.")
    return [f"{head}{part}{tail}" for part in parts for tail in rest]


def list_shards(pattern: str, strict: bool = False) -> TarFiles:
    """The files in the shards of a pattern.

    A shard that ends early is used up to its last whole sample, and named; with ``strict`` it is
    an error. Raises DataError for shards that are missing, compressed, or no tars.
    """
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
    if strict and notes:
        raise DataError(f"{notes[0]}. Write it anew, or set data.strict=false.")
    if len({name for name, _ in found}) < len(found):  # shards that number their items alike
        found = [(_within(name, paths[place.shard]), place) for name, place in found]
    places = dict(found)
    names = without_hidden(list(places), notes)
    return TarFiles(Path(pattern), names, paths, places, tuple(notes))


def _within(name: str, shard: Path) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{shard.stem}:{path.name}"))


def _index(path: Path, notes: list[str]) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar; of one that ends early, its whole samples."""
    found: list[tuple[str, int, int]] = []
    end = path.stat().st_size
    problem = ""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and member.offset_data + member.size <= end:
                    found.append((member.name, member.offset_data, member.size))
                elif member.isreg():
                    raise tarfile.ReadError(f"{member.name} is cut")
            if archive.offset >= end:  # blocks of zeros end a tar that was written to its end
                problem = "it has no end mark"
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if not found:
            raise DataError(f"{path} is not a readable tar file ({error}).") from error
        problem = str(error)
    if problem:
        whole = _whole_samples(found)
        last = whole[-1][0] if whole else "nothing"
        notes.append(
            f"{path.name} ends early ({problem}): {len(whole)} of its files are used, to {last}"
        )
        return whole
    return found


def _key(name: str) -> tuple[str, str]:
    """The sample that a file is of, and which part of it: webdataset splits at the first dot."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, suffix


def _whole_samples(files: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Without the last sample, if it has fewer parts than the one before."""
    last = _key(files[-1][0])[0]
    rest = [file for file in files if _key(file[0])[0] != last]
    parts = {_key(file[0])[1] for file in files if _key(file[0])[0] == last}
    if not rest:
        return files
    before = _key(rest[-1][0])[0]
    return rest if parts < {_key(f[0])[1] for f in rest if _key(f[0])[0] == before} else files


def check_keys(files: TarFiles, keys: Sequence[str]) -> None:
    """Raise DataError for shards of which some have a part beside their pictures, some have not.

    keys: the parts that are asked for, as "cls" and "txt".
    """
    there: dict[str, dict[int, set[str]]] = {key: {} for key in keys}
    samples: dict[int, set[str]] = {}
    for name in files.names:
        sample, part = _key(name)
        shard = files.places[name].shard
        samples.setdefault(shard, set()).add(sample)
        if part in there:
            there[part].setdefault(shard, set()).add(sample)
    for key, by_shard in there.items():
        lacking = {
            shard: len(all_here - by_shard.get(shard, set())) for shard, all_here in samples.items()
        }
        first = next((shard for shard, count in lacking.items() if count), None)
        if by_shard and first is not None:
            full = next((s for s, count in lacking.items() if not count), None)
            beside = f", which {files.shards[full].name} has" if full is not None else ""
            aside = {"txt": "captions", "cls": "classes"}.get(key, key)
            raise DataError(
                f"The shards differ in their keys: {lacking[first]} of {len(samples[first])} "
                f"samples in {files.shards[first].name} have no .{key}{beside}. Give them one, "
                f"leave these shards out, or set data.options.{aside}=false."
            )


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
