"""What run.json and config.json of a run hold, as types that they are read by."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from score_sde.checks import LOOSE

FORMAT = "score_sde run"
Section = dict[str, Any]


class Sections(TypedDict, total=False):
    """A config as config.json holds it, with more sections by its kind."""

    __pydantic_config__ = LOOSE  # type: ignore[misc]
    data: Section | None
    codec: Section | None
    model: Section | None
    conditioning: Section | None
    loss: Section | None
    flow_map: Section | None
    teacher: Section | None
    training: Section | None
    sampling: Section | None
    autoencoder: Section | None
    reconstruction: Section | None
    seed: int


class Said(TypedDict, total=False):
    """What config.json holds."""

    __pydantic_config__ = LOOSE  # type: ignore[misc]
    config: Sections
    data_spec: dict[str, Any]
    codec: Section | None
    embedding: Section | None


class Mark(TypedDict):
    """What run.json holds."""

    __pydantic_config__ = LOOSE  # type: ignore[misc]
    format: Literal["score_sde run"]
    id: str
