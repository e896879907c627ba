"""A run's config and weights as they are read: whatever is damaged in them is a sentence.

A config.json may come from anywhere, and say anything. Its sections must be sections, its numbers
numbers, and the network that it describes no larger than the weights beside it: nothing is built
that a file of a few bytes asks for and no file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field
from torch import Tensor
from typing_extensions import Required

from score_sde import build
from score_sde.checks import Index, Positive, UserError, memory_for, read_json
from score_sde.data import DataSpec
from score_sde.models import NoisyClassifier, ScoreModel
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.facts import Section, Sections

Model = TypeVar("Model", ScoreModel, NoisyClassifier)
SLACK = 10**6  # what a network may have beyond its weights

Needed = Annotated[Section, Field(min_length=1)]


class ScoreSections(Sections):
    """The config of a model of a score."""

    sde: Required[Needed]
    net: Required[Needed]


@dataclass(frozen=True)
class Facts:
    """What config.json says: the config, the data's spec and standard deviation.

    step: of the weights beside it, where it was exported.
    """

    config: ScoreSections
    data_spec: DataSpec
    data_std: Positive
    step: Index = 0


def read_facts(path: Path) -> Facts:
    """The facts of a run directory or exported folder; RunError for what cannot be one's."""
    directory = RunDirectory(path)
    found = directory.read_config()
    if "data_spec" not in found:
        raise RunError(
            f"{path} is a folder of another toolkit. Make it a run with --mode import "
            f"--checkpoint {path} --workdir runs/imported."
        )
    if build.is_autoencoder(found.get("config", {})):
        raise RunError(
            f"{path} holds an autoencoder, which has no score: train a run of its latents "
            f"(--config latent_fashion --config.codec.path={path}), or read it by "
            "score_sde.runs.codecs.load_codec."
        )
    return read_json(directory.config, Facts, "the config of a run", RunError)


def build_with(
    path: Path,
    facts: Facts,
    state: Mapping[str, Tensor],
    make: Callable[[Mapping[str, Any], DataSpec], Model] = build.build_model,  # type: ignore[assignment]
) -> Model:
    """The model of a run with these weights; RunError if they are not those of its network."""
    held = sum(value.numel() for value in state.values())
    try:
        with no_larger_than(held, f"{path / 'config.json'}"):
            model = make(facts.config, facts.data_spec)
        model.net.load_state_dict(dict(state))
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(lines[1:2] or lines or [type(error).__name__])
        raise RunError(
            f"the weights in {path} are not those of the network that its config.json "
            f"describes ({said[:160].rstrip('.')})."
        ) from error
    return model


def no_larger_than(numbers: int, what: str) -> memory_for:
    """While a network is built: UserError before it has many more numbers than these weights."""
    why = f"the weights beside it hold {numbers:,} numbers"
    return memory_for(what, 4 * (2 * numbers + SLACK), why)
