"""Names of things: a built-in's short name or a dotted path, and whom it is believed of."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from score_sde.checks.errors import UserError, shown, unknown

T = TypeVar("T")

_trust: ContextVar[bool | None] = ContextVar("trust", default=None)


def named(table: Mapping[str, T], name: Any, what: str, error: type[UserError] = UserError) -> T:
    """The entry of this name; ``error`` with the nearest one and all that there are."""
    check_names([name], table, what, error)
    return table[name]


def check_names(
    given: Iterable[Any],
    known: Iterable[str],
    what: str,
    error: type[UserError] = UserError,
    also: str = "",
) -> None:
    """``error``, with the nearest one and all that there are, for a name that is not known."""
    known = list(known)
    for name in given:
        if not isinstance(name, str) or name not in known:
            raise unknown(what, name, known, also=also, error=error)


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
        raise UserError(f"{what} must be a name (got {shown(name)}).")
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


def library(
    module: str, extra: str, what: str, error: type[UserError] = UserError
) -> types.ModuleType:
    """A library that not everybody installs; ``error`` says which extra of this package has it.

    what: that needs it, for the sentence: "captions need".
    """
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        package = module.partition(".")[0]
        raise error(
            f"{what} {package}, which is not installed: pip install 'score-sde[{extra}]'."
        ) from reason


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
