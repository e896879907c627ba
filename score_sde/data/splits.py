"""Which part of a data set is asked for: folders train and test, keys of a file, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from score_sde.data.files import listed
from score_sde.data.spec import DataError

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")


@dataclass(frozen=True)
class Part:
    """The names of a split, how deep below the root its folders begin, and what it is."""

    names: tuple[str, ...]
    below: int
    split: str
    notes: tuple[str, ...]


def names_of(split: str) -> tuple[str, ...]:
    """What people call a split, the likeliest first."""
    return TRAIN if split == "train" else TEST


def split_names(names: Sequence[str], split: str, root: Path) -> Part:
    """The pictures of a split, where folders train and test (or val, ...) divide them.

    Folders that all pictures share, as the one that a zip was made of, are looked through. Without
    such folders the set has no parts and all of it is taken. Raises DataError if the other split
    is there and this one is not.
    """
    paths = [PurePosixPath(n).parts for n in names]
    below = 0
    while all(len(p) > below + 2 for p in paths) and len({p[below] for p in paths}) == 1:
        if paths[0][below].lower() in TRAIN + TEST:
            break
        below += 1
    folders = {p[below] for p in paths if len(p) > below + 1}
    found = {name.lower(): name for name in sorted(folders)}
    divided = any(n in found for n in TRAIN) and any(n in found for n in TEST)
    if not (divided or (folders and set(found) <= set(TRAIN + TEST))):
        note = f"{root} has no folders train and test: the {split} split is all of it"
        return Part(tuple(names), below, "all", (note,) if split == "test" else ())
    chosen = next((found[n] for n in names_of(split) if n in found), None)
    if chosen is None:
        raise DataError(
            f"{root} has no {split} split: its folders are {', '.join(sorted(folders))}. "
            f"Make a folder {split}, or ask for another with --split."
        )
    kept = tuple(n for n, p in zip(names, paths, strict=True) if p[below] == chosen)
    kept = tuple(n for n in kept if len(PurePosixPath(n).parts) > below + 1)
    notes = [f"the {split} split is the folder {chosen}"]
    strangers = sorted(f for f in folders if f.lower() not in TRAIN + TEST)
    if strangers:
        notes.append(f"folders beside the splits are not read: {listed(strangers, 10)}")
    return Part(kept, below + 1, split, tuple(notes))
