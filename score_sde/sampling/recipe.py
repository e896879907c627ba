"""A time grid with what it was made for, as `calibrate` finds it and a file keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from score_sde.checks import Index, Positive, UserError, checked, read_json
from score_sde.processes.drawing import curves_svg
from score_sde.processes.sdes import SDE


@dataclass(frozen=True)
class Recipe:
    """A time grid for `adams`, with what it was made for; `sample(method="adams", grid=recipe)`.

    times: strictly falling. order: of the method; 0 leaves it to the method. data_std: measured or
    given. process: the process as text; another one is refused. error: rms endpoint error on fresh
    noise (or, if the calibration was thorough, in the pilot), in units of data_std. gain: the error
    over that of the blind grid, the geometric mean of rms and median, 1 for the blind grid itself;
    gain_error: the standard error of its logarithm. None for a thorough calibration. model: the
    checksum of the network's weights, see `checksum`; another one is refused. evaluations: what
    the calibration cost, of the score per sample of its pilot.
    """

    times: Annotated[tuple[float, ...], Field(min_length=2)]
    order: Index
    data_std: Positive
    process: str
    error: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    model: str | None = None
    evaluations: float | None = None

    def _repr_html_(self) -> str:
        """What it is, and its times step by step, for notebooks."""
        steps = list(range(len(self.times)))
        return curves_svg(str(self), steps, {"t": list(self.times)}, "step")

    def __str__(self) -> str:
        steps = f"{len(self.times) - 1} steps of order {self.order or 'adams'}"
        text = f"{steps}, data_std {self.data_std:.3g}"
        if self.gain is None or self.gain_error is None:
            return text
        if self.gain == 1:
            return f"{text}; the grid without calibration: no other was surely better"
        return (
            f"{text}; error {self.gain:.2g} (x/ {1 + self.gain_error:.2g}) of that of the grid "
            "without calibration"
        )

    def to_json(self) -> str:
        """What its file holds."""
        return json.dumps({"recipe": "adams", **asdict(self)}, indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(self.to_json())

    def check(self, sde: SDE) -> None:
        """UserError unless it was made for this process."""
        if self.process != str(sde):
            raise UserError(f"the recipe was made for {self.process}, not for {sde}.")

    def check_model(self, score: Any) -> None:
        """UserError unless it was made for this network, where both are known by a checksum."""
        found = checksum(score)
        if self.model is not None and found is not None and found != self.model:
            raise UserError(
                f"the recipe was made for another model, or for other weights of it (checksum "
                f"{self.model}; this one has {found}): calibrate this one."
            )


def checksum(score: Callable[..., Any] | None) -> str | None:
    """16 hexadecimal digits of a network's parameters, to bfloat16; None for what is no network,
    or is divided over processes.

    What a score is told (classes, text) and the dtype in which it runs leave it as it is.
    """
    if not isinstance(score, nn.Module):
        return None
    digest = hashlib.sha256()
    for value in score.parameters():
        if type(value) not in (torch.Tensor, nn.Parameter):
            return None  # divided over processes
        rounded = value.detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


@checked
def load_recipe(path: str | Path) -> Recipe:
    """A recipe from its JSON file; UserError if it is not one."""
    found = read_json(Path(path), _File, "a recipe of `calibrate`")
    return Recipe(**{field.name: getattr(found, field.name) for field in fields(Recipe)})


@dataclass(frozen=True)
class _File(Recipe):
    """What the file of a recipe says beside it."""

    recipe: Literal["adams"] = field(kw_only=True)
