"""The error of a user's mistake, and the words that errors are made of."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import torch


class UserError(ValueError):
    """What a user gave cannot be used: a sentence with the value, the choices and the fix.

    On one line, whatever a value or another library's message brings along.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).splitlines()))


def sentence_of(error: Exception) -> str | None:
    """What to tell a user of an error that is not a mistake of ours; None if it is one."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}."
    no_room = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if no_room or (type(error) is RuntimeError and "allocate memory" in str(error)):
        return "out of memory. Take fewer at a time (--batch_size), or a smaller network."
    return None


def require(holds: bool, sentence: str) -> None:
    """Raises UserError with this sentence unless the condition holds."""
    if not holds:
        raise UserError(sentence)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ " Did you mean 'ddim'?", or nothing if no choice is near."""
    known = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def unknown(
    what: str,
    name: object,
    choices: Iterable[str],
    *,
    also: str = "",
    error: type[UserError] = UserError,
) -> UserError:
    """The error for a name that is none of the choices."""
    known = [str(choice) for choice in choices]
    listed = f"Choose from {', '.join(known)}{also}." if known else "There are none."
    return error(f"{what} {shown(name)} is unknown.{did_you_mean(str(name), known)} {listed}")


def shown(value: Any) -> str:
    """A value as an error shows it: short, on one line."""
    if getattr(value, "ndim", False) and hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if dataclasses.is_dataclass(value) or type(value).__repr__ is object.__repr__:
        return f"an object of type {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
