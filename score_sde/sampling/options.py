"""Settings of methods: what there is by name, what each can be told, and text as values.

A method is a frozen dataclass, and its fields are its options, with the types that they declare.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from score_sde.checks import UserError, as_it_looks, check_names, construct, lookup, number

Method = TypeVar("Method")

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def make(
    table: Mapping[str, type[Method]],
    kind: type,
    chosen: str | Method,
    what: str,
    options: Mapping[str, Any],
) -> Method:
    """A method by name with its options, or one that is made already, as it is.

    kind: what every method of this table is. Raises UserError for an unknown name or option,
    naming the choices, and for an option of another type than the method declares.
    """
    if not isinstance(chosen, str):
        if options:
            raise UserError(f"give the options {sorted(options)} to the {what} itself: {chosen}.")
        return chosen
    cls = lookup(table, chosen, what, kind=kind)
    if not isinstance(cls, type):
        raise UserError(f"{what} {chosen!r} is no class, so it makes no {what}.")
    check_names(options, options_of(cls), f"option of {chosen}:")
    return construct(cls, options, "sampling.options.")


def options_of(cls: type) -> dict[str, Any]:
    """The options of a method and their defaults."""
    if not dataclasses.is_dataclass(cls):
        return {}
    given = [f for f in dataclasses.fields(cls) if f.init]
    made = {f.name: f.default_factory for f in given if callable(f.default_factory)}
    return {f.name: made[f.name]() if f.name in made else f.default for f in given}


def settings_of(method: object) -> dict[str, Any]:
    """The options of a method as it is, for printing and JSON."""
    found = {name: getattr(method, name) for name in options_of(type(method))}
    plain = (bool, int, float, str, type(None))
    return {name: v if isinstance(v, plain) else str(v) for name, v in found.items() if v != {}}


def values_from_text(cls: type, texts: Mapping[str, str], what: str) -> dict[str, Any]:
    """Options given as text, as the values of the types that the method declares."""
    check_names(texts, options_of(cls), f"option of {what}:")
    return {name: _parse(text, _kinds(cls, name)) for name, text in texts.items()}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The declared types of a class's fields; none where they cannot be resolved."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):
        return {}


def _kinds(cls: type, name: str) -> tuple[type, ...]:
    """The types that an option may have; none for one that says nothing we understand."""
    hint = _hints(cls).get(name)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else (hint,)
    kinds = tuple(typing.get_origin(part) or part for part in parts)
    return kinds if all(isinstance(kind, type) for kind in kinds) else ()


def _parse(text: str, kinds: tuple[type, ...]) -> Any:
    word = text.strip().lower()
    if types.NoneType in kinds and word in ("none", "null"):
        return None
    if bool in kinds and word in (*TRUE, *FALSE):
        return word in TRUE
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return number(text, kind)
    if str in kinds:
        return text
    return as_it_looks(text)
