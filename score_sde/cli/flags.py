"""Flags as data, and how the words of a command line are read by them.

A command line is `--name value`, `--name=value`, `--name` or `--noname` for what is true or false,
and `--config PATH[:VARIANT]` with any number of `--config.section.field=value`. Every word is read
by the type that its flag or field has; what does not fit is a `UsageError`, a sentence that names
the flag, the value, and what could be written instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from score_sde.checks import UserError, did_you_mean, literal, number
from score_sde.runs.configs import Config, is_section


class UsageError(UserError):
    """A command line that cannot be understood; the message says what to write instead."""


@dataclass(frozen=True)
class Flag:
    """One flag of the command line.

    kind: bool, int, float or str; a tuple of the words to choose from; list for name=value pairs
        that may be given several times. alone: the value of the flag without one.
    argument: the parameter of a mode's function that it is given to; the flag's name when empty.
    """

    name: str
    kind: Any
    about: str
    argument: str = ""
    alone: str | None = None

    @property
    def parameter(self) -> str:
        """The parameter of a mode's function."""
        return self.argument or self.name


class Field(NamedTuple):
    """`--config.section.field=text`; the next word, which is its text if it has none of its own."""

    name: str
    text: str | None
    after: str | None = None


@dataclass
class Words:
    """A command line taken apart: flags by name, and fields of a config."""

    flags: dict[str, Any]
    fields: list[Field]


def parse(argv: Sequence[str], known: Mapping[str, Flag], near: Sequence[str] = ()) -> Words:
    """Take a command line (without the program's name) apart; UsageError for what does not fit.

    near: the flags that a misspelt one is first looked for among.
    """
    found: dict[str, Any] = {}
    fields: list[Field] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", word, flags=re.S)
        if match is None:
            raise UsageError(f"unexpected argument {word!r}; flags look like --name=value.")
        name, text = match.group(1), match.group(2)
        if name.startswith(("config.", "noconfig.")):
            fields.append(Field(name, text, words[0] if text is None and words else None))
            if text is None and words and not words[0].startswith("--"):
                words.pop(0)
            continue
        flag, value = _read_flag(name, text, words, known, near)
        if flag.kind is list:
            _add_pair(found.setdefault(flag.name, {}), flag.name, value)
            continue
        if flag.name == "config" and "config" in found:
            raise UsageError("--config is given twice.")
        found[flag.name] = value  # the last one counts, as in other commands
    return Words(found, fields)


def _add_pair(pairs: dict[str, str], name: str, text: str) -> None:
    """Take the name=value of a flag that may be given several times."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--{name} {text!r} must read name=value.")
    if key in pairs:
        raise UsageError(f"--{name} {key} is given twice ({pairs[key]}, {value}).")
    pairs[key] = value


def _read_flag(
    name: str, text: str | None, words: list[str], known: Mapping[str, Flag], near: Sequence[str]
) -> tuple[Flag, Any]:
    """The flag of this name and its value, which may be the next word."""
    name = name.replace("-", "_")
    negative = name.removeprefix("no") if name not in known and name.startswith("no") else ""
    flag = known.get(negative or name)
    if flag is None or (negative and flag.kind is not bool and flag.alone is None):
        hint = did_you_mean(name, near) or did_you_mean(name, known)
        raise UsageError(f"unknown flag --{name}.{hint} `--help` lists what there is.")
    if negative:
        if text is not None:
            raise UsageError(f"--{name} takes no value (got {text!r}).")
        return flag, False if flag.kind is bool else "no"
    if flag.kind is bool:
        return flag, True if text is None else read_value(text, bool, f"--{name}")
    if flag.alone is not None and text is None:
        takes_next = bool(words) and words[0] in flag.kind
        return flag, words.pop(0) if takes_next else flag.alone
    text = _text_of(name, text, words)
    if not text:
        raise UsageError(f"--{name} is empty: give it a value, or leave it out.")
    if "\0" in text:
        raise UsageError(f"--{name} holds a character of no text (got {text!r}).")
    return flag, text if flag.kind is list else read_value(text, flag.kind, f"--{name}")


def _text_of(name: str, text: str | None, words: list[str]) -> str:
    if text is not None:
        return text
    if not words or re.match(r"--[A-Za-z]", words[0]):
        raise UsageError(f"--{name} needs a value: --{name}=VALUE.")
    return words.pop(0)


def read_value(text: str, kind: Any, name: str) -> Any:
    """A word as bool, int, float, str, tuple, list, or one of a tuple of words; None: as it looks.

    Raises UsageError that names the flag or field.
    """
    if isinstance(kind, tuple):
        if text not in kind:
            hint = did_you_mean(text, list(kind))
            raise UsageError(f"{name} must be one of {', '.join(kind)} (got {text!r}).{hint}")
        return text
    if kind is str:
        return text
    if kind is bool:
        value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in value:
            raise UsageError(f"{name} must be true or false (got {text!r}).")
        return value[text.lower()]
    try:
        if kind is int:
            return _whole(text)
        if kind is float and not math.isnan(found := number(text, float)):
            return found
        if kind is float:
            raise ValueError
        value = literal(text)
    except (ValueError, OverflowError) as error:
        if kind is None:
            return {"true": True, "false": False, "none": None}.get(text.lower(), text)
        wanted = {int: "a whole number", float: "a number", tuple: "values like (1, 2)"}
        wanted |= {list: "values like [1, 2]", dict: "values like {'a': 1}"}
        what = wanted.get(kind, "a value")
        raise UsageError(f"{name} must be {what} (got {text!r}).") from error
    if kind in (tuple, list):
        return kind(value) if isinstance(value, tuple | list) else kind([value])
    return value


def _whole(text: str) -> int:
    """An integer, also as 1e5."""
    if re.fullmatch(r"[+-]?\d+", text.strip(), re.ASCII):
        return int(text)
    value = number(text, float)
    if value != int(value):
        raise ValueError
    return int(value)


# Fields of configs --------------------------------------------------------------------------------


def change_field(config: Config, field: Field) -> None:
    """Set a field of a config; UsageError for one that is not there, and what does not fit."""
    name, text = field.name, field.after if field.text is None else field.text
    negative, key = name.startswith("noconfig."), name.partition(".")[2]
    known = _names(config.fields)
    if key not in known:
        hint = did_you_mean(key, known)
        section = key.partition(".")[0]
        there = [f for f in known if f.startswith(section + ".")] or known
        raise UsageError(f"{key}: unknown config key.{hint} There are {', '.join(there)}.")
    *sections, last = key.split(".")
    values = config.fields
    for section in sections:
        values = values[section]
    kind = values.get_type(last) if hasattr(values, "get_type") else type(values[last])
    kind = None if kind is type(None) else kind
    missing = text is None or text.startswith("--")
    if kind is bool and (missing or negative):
        value: Any = not negative
    elif text is None or missing:
        raise UsageError(f"--{name} needs a value: --{name}=VALUE.")
    elif text == "None" and values[last] is None:
        value = None
    else:
        value = read_value(text, kind, f"config.{key}")
    if key in config.changed and config.changed[key] != value:
        raise UsageError(f"config.{key} is set twice, to {config.changed[key]} and to {value}.")
    config.changed[key] = value
    if hasattr(values, "ignore_type"):
        with values.ignore_type():
            values[last] = value
    else:
        values[last] = value


def _names(values: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    names: list[str] = []
    for key in values:
        nested = _names(values[key], f"{prefix}{key}.") if is_section(values[key]) else []
        names += nested or [f"{prefix}{key}"]
    return names
