"""How a run is sampled: a method and its numbers as data, and what comes of changing some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from score_sde.checks import Count, Positive, UserError, checked, unknown, validated
from score_sde.sampling.catalogue import make_sampler, options_from_text
from score_sde.sampling.grids import GRIDS


@validated("sampling")
@dataclass(frozen=True)
class SamplingSettings:
    """How a run is sampled; see `sample`.

    method, steps, nfe, grid, denoise: as there; options are the method's own, as a dictionary.
    batch_size: images at a time. tolerance: each sample in as many steps of adams as it needs to
    come this near the exact flow, in units of the data's std; nfe is then the most it may take.
    """

    method: str = "ancestral"
    steps: Count | None = None
    nfe: Count | None = None
    grid: str | None = None
    denoise: bool = True
    batch_size: Count = 128
    options: Mapping[str, Any] | None = None
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        make_sampler(self.method, **dict(self.options or {}))
        if self.tolerance is not None and (self.method != "adams" or self.steps or self.grid):
            raise UserError(
                "a tolerance is for adams, which finds its own grids and numbers of steps: give "
                "neither --sampler, --steps nor --grid beside it; --nfe is the most of a sample."
            )
        if self.grid is not None and not self.grid.endswith(".json") and self.grid not in GRIDS:
            raise unknown("sampling.grid", self.grid, GRIDS, also=", or a recipe's .json file")


@checked("")
def sampling_of(sampling: Mapping[str, Any] | None) -> SamplingSettings:
    """The settings of a config's section of this name, see there."""
    return SamplingSettings(**(sampling or {}))


def change_sampling(
    settings: Mapping[str, Any] | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The sampling section with ``changes`` (None: no change).

    A new method comes with its own steps, grid and options; steps, nfe and a
    tolerance replace one another (but nfe beside a tolerance is its limit).
    Options given as text are read by the types that the method declares. Raises UserError.
    """
    merged = dict(settings or {})
    changes = {key: value for key, value in changes.items() if value is not None}
    if changes.get("method", merged.get("method")) != merged.get("method"):
        for key in ("steps", "nfe", "grid", "options"):
            merged.pop(key, None)
    if "steps" in changes or "nfe" in changes or "tolerance" in changes:
        merged |= {"steps": None, "nfe": None, "tolerance": None}
    if "tolerance" in changes:
        merged.pop("grid", None)
    merged |= changes
    options = merged.get("options") or {}
    texts = {name: value for name, value in options.items() if isinstance(value, str)}
    if texts:
        method = merged.get("method", SamplingSettings.method)
        merged["options"] = {**options, **options_from_text(method, texts)}
    return merged
