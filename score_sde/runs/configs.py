"""Configs by name or path, and changes of their fields.

A config is a Python file whose get_config(variant) returns a ConfigDict or nested dictionaries. By
name it comes from the package, then from configs/ in the current folder.
"""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from score_sde.build import ConfigError
from score_sde.checks import UserError, did_you_mean


@dataclass
class Config:
    """A config file as it was asked for, and which of its fields the command line changed.

    fields: what its get_config returned, a ConfigDict or nested dictionaries.
    of_run: whether it is that of a run, whose directory is then its path.
    """

    path: str
    variant: str
    fields: Any
    changed: dict[str, Any] = field(default_factory=dict)
    of_run: bool = False

    @property
    def run_name(self) -> str:
        """What a run of it is called unless told otherwise: <name>[_<variant>]."""
        return "_".join(filter(None, [Path(self.path).stem, self.variant]))

    def to_dict(self) -> dict[str, Any]:
        """All fields as nested dictionaries."""
        return plain(self.fields)


def config_folders() -> list[Path]:
    """Where configs are looked up by name: in the package (beside it in a clone), then here."""
    package = Path(__file__).parent.parent
    own = package / "configs"
    return [own if own.is_dir() else package.parent / "configs", Path("configs")]


def available_configs() -> list[str]:
    """The names of all configs that are found without a path."""
    return sorted({p.stem for folder in config_folders() for p in folder.glob("[!_]*.py")})


def find_config(name: str) -> Path:
    """A config by name or path; one that comes with the package goes before the folder's own."""
    given = Path(name)
    by_name = "/" not in name and "\\" not in name and given.suffix in ("", ".py")
    if by_name and not (given.suffix and given.is_file()):
        for folder in config_folders():
            path = folder / f"{name.removesuffix('.py')}.py"
            if path.is_file():
                return path
    if given.suffix == ".py" and given.is_file():
        return given
    known = available_configs()
    hint = did_you_mean(given.stem, known)
    raise ConfigError(f"No config {name!r}.{hint} By name there are: {', '.join(known)}.")


def load_config(argument: str) -> Config:
    """Run the file that `name[:variant]` names and call its get_config."""
    name, _, variant = argument.partition(":")
    path = find_config(name)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise ConfigError(f"{path} is no config: it has no function get_config.")
        values = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a file raises; its own sentence if it has
        if type(error) is ValueError:
            raise ConfigError(str(error)) from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else place.lineno
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the config {argument} failed in line {line}: {what}.") from error
    if not is_section(values):
        raise ConfigError(f"get_config of {path} must return a ConfigDict (got {values!r}).")
    return Config(str(path), variant, values)


def plain(values: Any) -> Any:
    """A ConfigDict, or nested dictionaries, as nested dictionaries of their own."""
    return {key: plain(values[key]) for key in values} if is_section(values) else values


def is_section(value: Any) -> bool:
    """Whether it has fields, as dictionaries and ConfigDicts do."""
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def with_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with fields changed by their dotted names: {"training.steps": 1000}."""
    changed = plain(config)
    for name, value in changes.items():
        *sections, last = name.split(".")
        values = changed
        for section in sections:
            values = values.setdefault(section, {})
            if not isinstance(values, dict):
                raise ConfigError(f"{name}: {section} is {values!r}, no section with fields.")
        values[last] = plain(value)
    return changed
