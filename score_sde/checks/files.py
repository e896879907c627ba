"""JSON files read as what they should hold: a dataclass, TypedDict or type with annotations.

    @dataclass(frozen=True)
    class Facts:
        data_std: Positive
        items: Count | None = None

    facts = read_json(path, Facts, "the config of a run")    # or a sentence that names the field
    mark = try_json(path, Mark)                              # or None
    for line in json_lines(path): ...                        # the lines of a log that can be read

A file may come from anywhere and hold anything; what it holds beyond the annotations is left out of
a dataclass and kept in a TypedDict that allows it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from score_sde.checks.errors import UserError
from score_sde.checks.validation import sentence

T = TypeVar("T")
LOOSE = ConfigDict(extra="allow")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@contextmanager
def reading(path: str | Path, what: str, error: type[UserError] = UserError) -> Iterator[None]:
    """Whatever a damaged file provokes in its reader, as one sentence of what it should be.

    Nothing but the reading of this one file happens inside: a mistake of ours there would be taken
    for damage. what: "a readable table". A UserError without a file's name is the reason, any other
    passes.
    """
    try:
        yield
    except Exception as reason:
        ours = isinstance(reason, UserError) and type(reason) is not UserError
        if ours or isinstance(reason, MemoryError):
            raise
        raise _unreadable(path, what, error, reason) from reason


def _unreadable(
    path: str | Path, what: str, error: type[UserError], reason: Exception
) -> UserError:
    if type(reason) is FileNotFoundError and not os.path.lexists(path):
        return error(f"there is no file {path}.")
    lines = str(getattr(reason, "strerror", None) or reason).strip().splitlines()
    if lines and lines[0].endswith(":"):  # and below it what it is about
        lines = [" ".join(line.strip() for line in lines[:2])]
    said = lines[0][:300].rstrip(".") if lines else type(reason).__name__
    return error(f"{path} is not {what} ({said}).")


def read_json(path: Path, kind: type[T], what: str, error: type[UserError] = UserError) -> T:
    """The file's content as a ``kind``. ``error`` says which field of it is wrong, and how.

    what: that the file should be, for the sentence: "the config of a run".
    """
    try:
        text = path.read_bytes()
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror or reason}).") from reason
    return from_json(text, kind, f"{path} is not {what}", error)


def from_json(text: str | bytes, kind: type[T], wrong: str, error: type[UserError]) -> T:
    """JSON text as a ``kind``. wrong: how the sentence begins if it is none."""
    try:
        return _adapter(kind).validate_json(text, strict=True)  # type: ignore[arg-type]
    except ValidationError as reason:
        raise error(f"{wrong}: {sentence(reason, '', nested=True)}") from None


def try_json(path: Path, kind: type[T]) -> T | None:
    """The file's content as a ``kind``; None if there is no file, or it holds something else."""
    try:
        return read_json(path, kind, "")
    except UserError:
        return None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of one a line; lines that hold none are passed over."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    yield from objects(text.splitlines())


def objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of those lines that hold one."""
    for line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def cache_dir() -> Path:
    """Where what was fetched is kept: $SCORE_SDE_CACHE, or score_sde in the user's cache folder."""
    if os.environ.get("SCORE_SDE_CACHE"):
        return Path(os.environ["SCORE_SDE_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "score_sde"
    try:
        return Path.home() / ".cache" / "score_sde"
    except RuntimeError as error:  # an account without a home
        raise UserError(
            "There is no home folder to keep what is fetched in. Set SCORE_SDE_CACHE to a folder."
        ) from error
