"""What a user may give: one error, one lookup of names, one validation by types.

Whatever is wrong with what was given is a `UserError`, a sentence with the field, the value and
what is allowed. Anything else that is raised is a mistake of ours. In ten seconds:

    @checked                                 # a public function: types and ranges by annotations
    def sample(sde: SDE, steps: Count | None = None, grid: str | Tensor | None = None): ...

    @validated("training")                   # settings: errors name training.lr
    @dataclass(frozen=True)
    class TrainingSettings:
        lr: Positive = 2e-4
        batch_size: Count = 128
        betas: tuple[Fraction, Fraction] = (0.9, 0.999)
        precision: Literal["fp32", "bf16"] = "fp32"

        def __post_init__(self):             # what only mathematics decides stays here
            require(self.t_min < self.t_max, f"training.t_min ({self.t_min}) must be below ...")

    METHODS = {"ddim": DDIM}
    make = lookup(METHODS, name, "sampler", kind=Predictor)      # short name or dotted path

Types are strict: "5" is not 5, True is not 1, 1.5 is no whole number; NaN and infinity are refused
unless the type is `Extended`. NumPy's scalars are numbers, a list will do for a tuple. A class in
an annotation (Tensor, SDE, nn.Module) means an instance of it; unannotated arguments pass.

A dotted path is the user's own word, unless it comes from a file of somebody else's: what is built
from such a file is built ``with trusting(False)``, where a name means a built-in, or a class of
this package of the right kind, and nothing else is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    InstanceOf,
    Strict,
    ValidationError,
    WrapValidator,
    validate_call,
)
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
T = TypeVar("T")

Positive = Annotated[float, Field(gt=0, lt=1e100)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Extended = Annotated[float, Field(allow_inf_nan=True)]
"""A number that may be infinite or NaN."""
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=2**20)]
"""A count that memory or time is taken for: of channels, layers, steps of a table."""
Few = Annotated[int, Field(ge=0, le=2**20)]
"""As `Size`, or none."""
Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]
Index = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Row = Annotated[tuple[T, ...], Strict(False)]
"""Row[Count]: a tuple of any length, or a list that becomes one."""
Options = Mapping[str, Any]

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_trust: ContextVar[bool | None] = ContextVar("trust", default=None)


class UserError(ValueError):
    """What a user gave cannot be used: a sentence with the value, the choices and the fix."""


def require(holds: bool, sentence: str) -> None:
    """Raises UserError with this sentence unless the condition holds."""
    if not holds:
        raise UserError(sentence)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ " Did you mean 'ddim'?", or nothing if no choice is near."""
    known = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def unknown(what: str, name: str, choices: Iterable[str], *, also: str = "") -> UserError:
    """The error for a name that is none of the choices."""
    known = [str(choice) for choice in choices]
    listed = f"Choose from {', '.join(known)}{also}." if known else "There are none."
    return UserError(f"{what} {name!r} is unknown.{did_you_mean(name, known)} {listed}")


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Whether dotted paths that are looked up inside may lead out of this package.

    True is what --trust says: of files from elsewhere, too.
    """
    token = _trust.set(trust)
    try:
        yield
    finally:
        _trust.reset(token)


def trusts_files() -> bool:
    """Whether the user said that files from elsewhere may name any code."""
    return _trust.get() is True


def lookup(
    table: Mapping[str, Any],
    name: Any,
    what: str,
    *,
    kind: type | None = None,
    trust: bool | None = None,
) -> Any:
    """A built-in by its short name, or anything importable by its dotted path.

    what: the field, for errors. kind: the class that an untrusted path must be a subclass of; with
    none, only short names are found without trust. trust: None is what `trusting` says. Raises
    UserError.
    """
    if not isinstance(name, str):
        raise UserError(f"{what} must be a name (got {_shown(name)}).")
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module or not all(part.isidentifier() for part in name.split(".")):
        raise unknown(what, name, table, also=", or give a dotted path")
    if (_trust.get() if trust is None else trust) is False:
        return _own(module, attribute, what, kind)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is somebody's own, and so is what it raises
        raise UserError(f"{what} {name!r} cannot be imported: {error}.") from error


def _own(module: str, attribute: str, what: str, kind: type | None) -> Any:
    """A class of this package, defined in it and of the right kind, else UserError."""
    package = __name__.partition(".")[0]
    if kind is not None and module.partition(".")[0] == package:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            found = None
        if isinstance(found, type) and issubclass(found, kind):
            if found.__module__.partition(".")[0] == package:
                return found
    raise UserError(
        f"{what} asks for {f'{module}.{attribute}'!r}, which is no class of this package for that. "
        "The file that names it was not written by you on this machine, and loading it would run "
        "code: give --trust (in Python trust=True) if you know where it comes from."
    )


def whole_seeds(seeds: Iterable[Any]) -> list[int]:
    """Seeds as integers from 0 to 2^64 - 1; UserError for anything else."""
    require(
        isinstance(seeds, Iterable), f"seeds are one whole number a sample (got {_shown(seeds)})."
    )
    found = []
    for seed in seeds.reshape(-1) if isinstance(seeds, Tensor) else seeds:
        try:
            value = operator.index(_plain(seed))
        except TypeError:
            value = -1
        require(
            0 <= value < 2**64 and not isinstance(seed, bool),
            f"seeds must be whole numbers from 0 to 2^64 - 1 (got {_shown(seed)}).",
        )
        found.append(value)
    return found


@typing.overload
def checked(where: str) -> Callable[[F], F]: ...


@typing.overload
def checked(where: F) -> F: ...


def checked(where: F | str) -> F | Callable[[F], F]:
    """Validates the arguments of a function by its annotations, see above.

    Bare, or with the section whose fields the arguments are: ``@checked("data")``.
    """
    if isinstance(where, str):
        return lambda function: _checked(function, f"{where}.")
    return _checked(where, f"{where.__name__}: ")


def validated(section: str) -> Callable[[C], C]:
    """Validates the fields of a dataclass where it is made; errors name ``section.field``."""

    def decorate(cls: C) -> C:
        initialise = _checked(cls.__init__, f"{section}.")  # type: ignore[misc]
        cls.__init__ = initialise  # type: ignore[misc]
        return cls

    return decorate


def _checked(function: F, where: str) -> F:
    @functools.cache  # at the first call: a schema takes a millisecond to make
    def validate() -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        return _validator(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given, named = validate()(
                *map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}
            )
        except ValidationError as error:
            names = list(inspect.signature(function).parameters)
            raise UserError(sentence(error, where, names)) from None
        return function(*given, **named)

    return typing.cast(F, call)


def _validator(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes the same arguments and returns them (args, kwargs) validated."""

    def arguments(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    hints = typing.get_type_hints(function, include_extras=True)
    hints = {name: _instances(hint) for name, hint in hints.items() if name != "return"}
    signature = inspect.signature(function)
    arguments.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(annotation=hints.get(p.name, Any)) for p in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )
    arguments.__annotations__ = {name: hints.get(name, Any) for name in signature.parameters}
    return validate_call(config=_CONFIG)(arguments)


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _sequence(value: Any, check: Callable[[Any], Any]) -> Any:
    """A sequence as it is, its items checked; ranges, arrays and tensors hold numbers anyway."""
    if not isinstance(value, range | np.ndarray | Tensor):
        check(list(map(_plain, value)) if isinstance(value, Sequence) and value else value)
    return value


_GENERIC = ("builtins", "collections", "typing")  # whose contents are looked into


def _instances(hint: Any) -> Any:
    """The hint with InstanceOf[c] for classes that are only to be recognised, not looked into."""
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
        return InstanceOf[hint]  # type: ignore[misc]
    if origin is Sequence:
        items: Any = types.GenericAlias(tuple, (_instances(inside[0]), ...))
        return Annotated[items, Strict(False), WrapValidator(_sequence)]
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
    "mapping_type": "a dictionary",
    "missing": "of more items",
    "callable_type": "a function",
    "none_required": "None",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "literal_error": "{expected}",
}


_ABSTRACT = {"Sequence": "a list", "Mapping": "a dictionary", "Iterable": "a list"}


def sentence(error: ValidationError, where: str, known: Iterable[str] = ()) -> str:
    """One sentence for a ValidationError: field, what it must be, what was given.

    where: what stands before the field, "sde." or "sample: ". known: the fields that there are.
    """
    names = [name for name in known if name != "self"]
    faults = error.errors(include_url=False)
    first = faults[0]
    place = first["loc"][0] if first["loc"] else ""
    if isinstance(place, int):
        shift = 1 if list(known)[:1] == ["self"] else 0
        place = names[place - shift] if place - shift < len(names) else "an argument"
    kind, value = first["type"], first["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        listed = f" Known are {', '.join(names)}." if names else ""
        return f"{where}{place} is unknown.{did_you_mean(str(place), names)}{listed}"
    if kind in ("missing_argument", "missing") and len(first["loc"]) == 1:
        return f"{where}{place} is missing."
    if kind in ("unexpected_positional_argument", "multiple_argument_values"):
        return f"{where}{place} is given twice, or has to be given by its name."
    same = [f for f in faults if f["loc"][:1] == first["loc"][:1]]
    allowed = list(dict.fromkeys(_allowed(f) for f in same))
    inner = [str(p + 1) for p in first["loc"][1:] if isinstance(p, int)]
    item = f" (item {' of item '.join(reversed(inner))})" if inner else ""
    hint = did_you_mean(value, _expected(first)) if isinstance(value, str) else ""
    return f"{where}{place}{item} must be {' or '.join(allowed)} (got {_shown(value)}).{hint}"


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


def _shown(value: Any) -> str:
    """A value as an error shows it: short, on one line."""
    if getattr(value, "ndim", False) and hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if dataclasses.is_dataclass(value) or type(value).__repr__ is object.__repr__:
        return f"an object of type {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_it_looks(text: Any) -> Any:
    """Text as the number, truth value or list that it looks like, and else as text."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
