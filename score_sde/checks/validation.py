"""Arguments and settings validated by their annotations, and what is said of a wrong one."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import (
    ConfigDict,
    Strict,
    ValidationError,
    WrapValidator,
    validate_call,
)
from pydantic_core import core_schema
from torch import Tensor

from score_sde.checks.errors import UserError, did_you_mean, shown
from score_sde.checks.types import plain

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
T = TypeVar("T")

MOST_ITEMS = 2**22
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@typing.overload
def checked(where: str) -> Callable[[F], F]: ...


@typing.overload
def checked(where: F) -> F: ...


def checked(where: F | str) -> F | Callable[[F], F]:
    """Validates the arguments of a function by its annotations, see above.

    Bare, or with the section whose fields the arguments are: ``@checked("data")``. ``""`` names
    them alone, as the flags of a mode.
    """
    if isinstance(where, str):
        return lambda function: _checked(function, where and f"{where}.")
    return _checked(where, f"{where.__name__}: ")


def validated(section: str) -> Callable[[C], C]:
    """Validates the fields of a dataclass where it is made; errors name ``section.field``."""

    def decorate(cls: C) -> C:
        initialise = _checked(cls.__init__, f"{section}.", cls)  # type: ignore[misc]
        cls.__init__ = initialise  # type: ignore[misc]
        return cls

    return decorate


def construct(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """``cls(**options)``, its options validated by their annotations also if it is not `validated`.

    where: what stands before the field in an error.
    """
    if hasattr(cls.__init__, "is_checked") or not options:  # type: ignore[misc]
        return cls(**options)
    made = cls.__new__(cls)
    _initialiser(cls, where)(made, **options)  # type: ignore[arg-type]
    return made


@functools.cache
def _initialiser(cls: type, where: str) -> Callable[..., None]:
    return _checked(cls.__init__, where, cls)  # type: ignore[misc]


def _checked(function: F, where: str, owner: type | None = None) -> F:
    @functools.cache  # at the first call: a schema takes a millisecond to make
    def validate() -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        return _validator(function, owner)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given, named = validate()(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})
        except ValidationError as error:
            names = list(inspect.signature(function).parameters)
            raise UserError(sentence(error, where, names)) from None
        return function(*given, **named)

    call.is_checked = True  # type: ignore[attr-defined]
    return typing.cast(F, call)


def _validator(function: Callable[..., Any], owner: type | None) -> Callable[..., Any]:
    """A function that takes the same arguments and returns them (args, kwargs) validated."""

    def arguments(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    found = _hints(function, owner)
    hints = {name: _instances(hint) for name, hint in found.items() if name != "return"}
    signature = inspect.signature(function)
    arguments.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(annotation=hints.get(p.name, Any)) for p in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )
    arguments.__annotations__ = {name: hints.get(name, Any) for name in signature.parameters}
    return validate_call(config=_CONFIG)(arguments)


def _hints(function: Callable[..., Any], owner: type | None) -> dict[str, Any]:
    """The annotations of a function, Any for those that name what only type checkers import.

    owner: the class whose dataclass made the function: a field means what it does in the module of
    the class that declares it, which need not be that of the owner.
    """

    def hint(name: str) -> Any:
        one = types.SimpleNamespace(__annotations__={name: function.__annotations__[name]})
        classes = owner.__mro__ if owner is not None else ()
        declared = [c for c in classes if name in c.__dict__.get("__annotations__", {})][:1]
        modules = [vars(sys.modules[c.__module__]) for c in declared if c.__module__ in sys.modules]
        for names in (*modules, inspect.unwrap(function).__globals__):
            with contextlib.suppress(NameError):
                return typing.get_type_hints(one, names, include_extras=True)[name]
        return Any

    return {name: hint(name) for name in function.__annotations__}


def _sequence(value: Any, check: Callable[[Any], Any]) -> Any:
    """A sequence as it is, its items checked; those of a range are whole numbers anyway.

    Of an iterator a list, which may end with `MOST_ITEMS`.
    """
    if isinstance(value, Iterator):
        value = list(itertools.islice(value, MOST_ITEMS))
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 1:
        check(value.tolist())
    elif not isinstance(value, range):
        check(list(map(plain, value)) if isinstance(value, Sequence) and value else value)
    return value


class _Instance:
    """An instance of a class, into which nothing looks: pydantic's InstanceOf plans to."""

    def __init__(self, kind: type):
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.is_instance_schema(self.kind)


_GENERIC = ("builtins", "collections", "typing")  # whose contents are looked into


def _instances(hint: Any) -> Any:
    """The hint with `_Instance(c)` for classes that are only to be recognised, not looked into."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_instances(part) for part in inside)]  # noqa: UP007
    if origin is Annotated:
        return Annotated[(_instances(inside[0]), *inside[1:])]
    if isinstance(origin, type) and origin.__module__.partition(".")[0] not in _GENERIC:
        hint, origin = origin, None  # Predictor[...] is to be a Predictor
    if isinstance(hint, type) and origin is None and hint not in (Any, Path):
        if hint.__module__ == "builtins":
            return hint
        if getattr(hint, "_is_protocol", False):
            return Any
        return Annotated[Any, _Instance(hint)]
    if origin is Sequence:
        items: Any = types.GenericAlias(tuple, (_instances(inside[0]), ...))
        return Annotated[items, Strict(False), WrapValidator(_sequence)]
    if origin is Iterable:  # its items are taken later, one by one
        hint, origin = Iterable, None
    if origin is tuple and inside:  # a list will do
        parts = tuple(p if p is Ellipsis else _instances(p) for p in inside)
        loose: Any = types.GenericAlias(tuple, parts)
        return Annotated[loose, Strict(False)]
    return hint


_SAID = {  # pydantic's kinds of error, as what the value must be
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "string_type": "text",
    "finite_number": "finite",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a dictionary",
    "dataclass_type": "a dictionary",
    "json_invalid": "JSON",
    "mapping_type": "a dictionary",
    "missing": "of more items",
    "callable_type": "a function",
    "none_required": "None",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "literal_error": "{expected}",
}


_ABSTRACT = {"Sequence": "a list", "Mapping": "a dictionary", "Iterable": "a list"}


def sentence(
    error: ValidationError, where: str, known: Iterable[str] = (), nested: bool = False
) -> str:
    """One sentence for a ValidationError: field, what it must be, what was given.

    where: what stands before the field, "sde." or "sample: ". known: the fields that there are.
    nested: fields are in one another, and are named by their whole path, config.net.
    """
    names = [name for name in known if name != "self"]
    faults = error.errors(include_url=False)
    first = faults[0]
    place = first["loc"][0] if first["loc"] else ""
    if isinstance(place, int):
        shift = 1 if list(known)[:1] == ["self"] else 0
        place = names[place - shift] if place - shift < len(names) else "an argument"
    kind, value = first["type"], first["input"]
    said = first.get("ctx", {}).get("error")
    if isinstance(said, UserError):  # of a check of ours, which is a sentence
        return f"{where}{said}"
    if nested:
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, str)) or "all of it"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        listed = f" Known are {', '.join(names)}." if names else ""
        return f"{where}{place} is unknown.{did_you_mean(str(place), names)}{listed}"
    lacks = kind.startswith("missing_") and kind.endswith("_argument")
    if (lacks or kind == "missing") and (nested or len(first["loc"]) == 1):
        return f"{where}{place} is missing."
    if kind in ("unexpected_positional_argument", "multiple_argument_values"):
        return f"{where}{place} is given twice, or has to be given by its name."
    same = [f for f in faults if f["loc"][:1] == first["loc"][:1]]
    inner = [str(p + 1) for p in first["loc"][1:] if isinstance(p, int)]
    if inner:  # what an item lacks makes the list too short as well
        same = [f for f in same if f["type"] != "too_short"] or same
    allowed = list(dict.fromkeys(_allowed(f) for f in same))
    item = f" (item {' of item '.join(reversed(inner))})" if inner else ""
    hint = did_you_mean(value, _expected(first)) if isinstance(value, str) else ""
    return f"{where}{place}{item} must be {' or '.join(allowed)} (got {shown(value)}).{hint}"


def _allowed(fault: Any) -> str:
    if fault["type"] in ("value_error", "assertion_error"):  # of a validator of ours
        return str(fault["ctx"]["error"])
    context = fault.get("ctx", {})
    if fault["type"] == "is_instance_of":
        name = context["class"]
        return _ABSTRACT.get(name, f"of type {name}")
    bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()}
    text = _SAID.get(fault["type"])
    return text.format(**bounds) if text else f"valid ({fault['msg'].lower()})"


def _expected(fault: Any) -> list[str]:
    """The choices of a Literal."""
    expected = str(fault.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",") if part.strip()]
