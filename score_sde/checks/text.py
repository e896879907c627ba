"""Numbers and lists that are given as text: a command line's, or a file's."""

from __future__ import annotations

import ast
import re
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)
JOINED = re.compile(r"\b[0-9][0-9_]*_")  # 1_000, which is a number to Python alone


def number(text: str, kind: type[Number]) -> Number:
    """The number that a text is, in ASCII digits without underscores; ValueError if it is none."""
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not a number")
    return kind(text)


def literal(text: str) -> Any:
    """What a text says in Python's words: a number, a list, None, ...; ValueError if nothing."""
    if JOINED.search(text):
        raise ValueError(f"{text!r} is not a number")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def as_it_looks(text: Any) -> Any:
    """Text as the number, truth value or list that it looks like, and else as text."""
    if not isinstance(text, str):
        return text
    try:
        return literal(text)
    except ValueError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
