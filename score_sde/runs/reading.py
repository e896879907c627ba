"""A run's config and weights as they are read: whatever is damaged in them is a sentence.

A config.json may come from anywhere, and say anything. Its sections must be sections, its numbers
numbers, and the network that it describes no larger than the weights beside it: nothing is built
that a file of a few bytes asks for and no file holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from score_sde import build
from score_sde.checks import UserError
from score_sde.data import DataSpec
from score_sde.models import ScoreModel
from score_sde.runs.directory import RunDirectory, RunError

MOST_VALUES = 10**9  # of one item of data
SLACK = 10**6  # what a network may have beyond its weights, and what its settings may count up to


@dataclass(frozen=True)
class Facts:
    """What config.json says: the config, the data's spec and standard deviation."""

    path: Path
    config: dict[str, Any]
    spec: DataSpec
    data_std: float


def read_facts(path: Path) -> Facts:
    """The facts of a run directory or exported folder; RunError for what cannot be one's."""
    found = RunDirectory(path).read_config()
    where = path / "config.json"
    if "data_spec" not in found:
        raise RunError(
            f"{path} is a folder of another toolkit. Make it a run with --mode import "
            f"--checkpoint {path} --workdir runs/imported."
        )
    config = found.get("config")
    if not isinstance(config, dict):
        raise RunError(f"{where}: config must be a dictionary of sections (got {config!r:.60}).")
    for name, section in config.items():
        if name != "seed" and not (section is None or isinstance(section, dict)):
            raise RunError(f"{where}: config.{name} must be a section (got {section!r:.60}).")
    if build.is_autoencoder(config):
        raise RunError(
            f"{path} holds an autoencoder, which has no score: train a run of its latents "
            f"(--config latent_fashion --config.codec.path={path}), or read it by "
            "score_sde.runs.codecs.load_codec."
        )
    for name in ("sde", "net"):
        if not config.get(name):
            raise RunError(f"{where}: the section config.{name} is missing.")
    std = found.get("data_std")
    if not isinstance(std, int | float) or isinstance(std, bool) or not 0 < std < math.inf:
        raise RunError(f"{where}: data_std must be a positive number (got {std!r:.60}).")
    return Facts(path, config, read_spec(found["data_spec"], where), float(std))


def read_spec(values: Any, where: Path) -> DataSpec:
    """The spec of data that a config.json holds; RunError for what cannot be one."""
    shape = values.get("shape") if isinstance(values, dict) else None
    whole = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not (whole and shape and math.prod(shape) <= MOST_VALUES):
        raise RunError(f"{where}: data_spec.shape is not that of data (got {shape!r:.60}).")
    classes = values.get("classes", [])
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise RunError(f"{where}: data_spec.classes must be names (got {classes!r:.60}).")
    for name in ("low", "high", "shift", "scale"):
        value = values.get(name, 0.0)
        if not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
            raise RunError(f"{where}: data_spec.{name} must be a number (got {value!r:.60}).")
    try:
        return DataSpec.from_dict({"classes": [], **values})
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"{where}: data_spec is not one of data ({error}).") from error


def build_with(facts: Facts, state: Mapping[str, Tensor]) -> ScoreModel:
    """The model of a run with these weights; RunError if they are not those of its network."""
    held = sum(value.numel() for value in state.values())
    _check_numbers(facts, facts.config["net"], "net", max(SLACK, held))
    try:
        with no_larger_than(held):
            model = build.build_model(facts.config, facts.spec)
        model.net.load_state_dict(dict(state))
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(lines[1:2] or lines or [type(error).__name__])
        raise RunError(
            f"the weights in {facts.path} are not those of the network that its config.json "
            f"describes ({said[:160].rstrip('.')})."
        ) from error
    return model


def _check_numbers(facts: Facts, value: Any, name: str, most: int) -> None:
    """No count in the network's settings is larger than all that its weights hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(facts, item, f"{name}.{key}", most)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(facts, item, name, most)
    elif isinstance(value, int) and abs(value) > most:
        raise RunError(
            f"{facts.path / 'config.json'}: {name} is {value}, more than the {most} numbers that "
            "the weights hold."
        )


@contextmanager
def no_larger_than(numbers: int) -> Iterator[None]:
    """While a network is built: RunError as soon as it has many more numbers than these."""
    so_far = 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal so_far
        so_far += 0 if parameter is None else parameter.numel()
        if so_far > 2 * numbers + SLACK:
            raise RunError(
                f"config.json describes a network of more than {so_far:,} numbers, but the "
                f"weights beside it hold {numbers:,}."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
