"""A run's config and weights as they are read: whatever is damaged in them is a sentence.

A config.json may come from anywhere, and say anything. Its sections must be sections, its numbers
numbers, and the network that it describes no larger than the weights beside it: nothing is built
that a file of a few bytes asks for and no file holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from score_sde import build
from score_sde.checks import UserError, memory_for
from score_sde.conditioning.classifier import NoisyClassifier
from score_sde.data import DataSpec
from score_sde.models import ScoreModel
from score_sde.runs.directory import RunDirectory, RunError

MOST_VALUES = 10**9  # of one item of data
SLACK = 10**6  # what a network may have beyond its weights


Model = TypeVar("Model", ScoreModel, NoisyClassifier)


@dataclass(frozen=True)
class Facts:
    """What config.json says: the config, the data's spec and standard deviation.

    step: of the weights beside it, where it was exported.
    """

    path: Path
    config: dict[str, Any]
    spec: DataSpec
    data_std: float
    step: int = 0


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
    step = found.get("step", 0)
    if type(step) is not int or step < 0:
        raise RunError(f"{where}: step must be a whole number (got {step!r:.60}).")
    return Facts(path, config, read_spec(found["data_spec"], where), float(std), step)


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


def build_with(
    facts: Facts,
    state: Mapping[str, Tensor],
    make: Callable[[Mapping[str, Any], DataSpec], Model] = build.build_model,  # type: ignore[assignment]
) -> Model:
    """The model of a run with these weights; RunError if they are not those of its network."""
    held = sum(value.numel() for value in state.values())
    try:
        with no_larger_than(held, f"{facts.path / 'config.json'}"):
            model = make(facts.config, facts.spec)
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


def no_larger_than(numbers: int, what: str) -> memory_for:
    """While a network is built: UserError before it has many more numbers than these weights."""
    why = f"the weights beside it hold {numbers:,} numbers"
    return memory_for(what, 4 * (2 * numbers + SLACK), why)
