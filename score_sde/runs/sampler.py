"""How samples of a run are drawn: a sampling section, checked, with all that it names read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from score_sde import distributed
from score_sde.checks import UserError
from score_sde.data import DataSpec
from score_sde.models import FlowMap, ScoreModel
from score_sde.plotting.pictures import picture_of, png_bytes
from score_sde.runs.directory import RunError
from score_sde.runs.editing import Start
from score_sde.sampling import (
    SDE,
    Recipe,
    SampleResult,
    SamplingSettings,
    ScoreFn,
    batches,
    load_recipe,
    needs_data_std,
    sample,
    sample_to_tolerance,
)
from score_sde.sampling.loop import Hook

MOST = 500  # evaluations of a sample drawn to a tolerance


@dataclass(frozen=True, repr=False)
class RunSamples(SampleResult):
    """Samples of a run, and what they are of; notebooks show their picture."""

    spec: DataSpec | None = None

    def _repr_png_(self) -> bytes | None:
        if self.spec is None:
            return None
        shown = self.x if len(self.spec.shape) == 1 else self.x[:64]
        picture = picture_of(shown.cpu(), self.spec)
        return None if picture is None else png_bytes(picture)


@dataclass(frozen=True)
class Sampler:
    """Draws samples of a model by the settings of a run. Make one by `make_sampler`."""

    settings: SamplingSettings
    grid: str | Recipe | None
    options: Mapping[str, Any]

    def draw(
        self,
        score: ScoreModel,
        shape: tuple[int, ...],
        seeds: Sequence[int],
        progress: bool = False,
    ) -> SampleResult:
        """Samples of this shape (B, ...), one for each seed, on the model's device."""
        device = next(score.parameters()).device
        return self.run(score.sde, score, shape, seeds, device, progress)

    def run(
        self,
        sde: SDE,
        score: ScoreFn,
        shape: tuple[int, ...],
        seeds: Sequence[int],
        device: torch.device,
        progress: bool = False,
        hook: Hook | None = None,
        start: Start | None = None,
    ) -> SampleResult:
        """Samples by any score of this process; ``start``: not from noise, but from there on."""
        chosen = self.settings
        if chosen.tolerance is not None:
            if start is not None or hook is not None:
                raise RunError("a tolerance goes with noise to start from, without init and hook.")
            return self._to_tolerance(sde, score, shape, seeds, device)
        begin: dict[str, Any] = {
            "shape": shape, "steps": chosen.steps, "nfe": chosen.nfe, "grid": self.grid
        }  # fmt: skip
        if start is not None:
            begin = {"x_T": start.x, "grid": start.times}
        return sample(
            sde, score, **begin, method=chosen.method, denoise=chosen.denoise,
            batch_size=chosen.batch_size, seeds=seeds, device=device, progress=progress,
            hook=hook, return_info=True, **self.options,
        )  # fmt: skip

    def _to_tolerance(
        self,
        sde: SDE,
        score: ScoreFn,
        shape: tuple[int, ...],
        seeds: Sequence[int],
        device: torch.device,
    ) -> SampleResult:
        """In as many steps as each sample needs."""
        settings, parts = self.settings, []
        for rows, part in batches(score, shape[0], settings.batch_size):
            parts.append(
                sample_to_tolerance(
                    sde,
                    part,
                    (len(seeds[rows]), *shape[1:]),
                    tolerance=settings.tolerance or 1.0,
                    data_std=self.options["data_std"],
                    nfe=settings.nfe or MOST,
                    seeds=seeds[rows],
                    denoise=settings.denoise,
                    device=device,
                )
            )
        seconds, most = sum(part.seconds for part in parts), max(part.nfe for part in parts)
        x = torch.cat([part.x for part in parts])
        spent = torch.cat([part.evaluations for part in parts]).double()
        facts = {**parts[0].settings, "mean_nfe": round(float(spent.mean()), 1)}
        return SampleResult(x, most, seconds, facts)

    def draw_shared(
        self,
        score: ScoreModel,
        shape: tuple[int, ...],
        seeds: Sequence[int],
        progress: bool = False,
    ) -> SampleResult:
        """`draw` divided over the processes of a torchrun; each receives all samples."""
        if distributed.size() == 1:
            return self.draw(score, shape, seeds, progress)
        n, mine = shape[0], distributed.share(shape[0])
        # A process without samples of its own draws one, so that all know how it was drawn.
        rows = slice(mine.start, mine.start + max(len(mine), 1))
        own = seeds[rows]
        shown = progress and distributed.is_writer()
        part = self.draw(score.take(rows), (len(own), *shape[1:]), own, shown)
        return gathered(part, mine, n)

    def rehearse(self, model: ScoreModel, shape: tuple[int, ...]) -> None:
        """Raise what drawing items of this shape would raise, without asking the network."""
        silent = model.bind().with_net(_Silent(2 if model.learned_variance else 1))
        grid = self.grid
        if isinstance(grid, Recipe):
            grid.check_model(model)
            grid = replace(grid, model=None)
        settings = replace(self.settings, tolerance=None)
        replace(self, settings=settings, grid=grid).draw(silent, (1, *shape), [0])


def gathered(part: SampleResult, mine: range, n: int) -> SampleResult:
    """All n samples on each process of a torchrun, ``mine`` drawn here; at the largest cost."""
    x = distributed.gather(part.x[: len(mine)], n)
    most = distributed.gather(torch.tensor([[part.nfe, part.seconds]]), distributed.size())
    return SampleResult(x, int(most[:, 0].max()), float(most[:, 1].max()), part.settings)


def make_sampler(settings: SamplingSettings, model: ScoreModel, data_std: float) -> Sampler:
    """The sampler of a model: recipes are read, and what a method needs of the model is filled in.

    data_std: standard deviation of the data, for methods that ask for it.
    """
    options = dict(settings.options or {})
    grid: str | Recipe | None = settings.grid
    check_map(settings, model)
    if isinstance(model, FlowMap):
        options.setdefault("data_std", model.data_std)
    if needs_data_std(settings.method):
        options.setdefault("data_std", data_std)
    if settings.method == "ancestral" and model.learned_variance:
        options.setdefault("variance", "learned")
    if settings.grid is not None and settings.grid.endswith(".json"):
        grid = load_recipe(settings.grid)
        options.pop("data_std", None)
    return Sampler(settings, grid, options)


def check_map(settings: SamplingSettings, model: ScoreModel) -> None:
    """UserError unless a map is sampled as one, in steps that it knows, and nothing else is."""
    named = settings.method == "flow_map"
    if not isinstance(model, FlowMap):
        if named:
            raise UserError(
                "the sampler flow_map is for maps of the flow, and this run is a score: make one "
                "of it by --mode distill --teacher, or take another sampler."
            )
        return
    most = "any number of" if model.steps is None else f"1 to {model.steps}"
    if not named or settings.tolerance is not None:
        raise UserError(
            f"this run is a map of the flow, which is sampled by flow_map in {most} steps; "
            f"{settings.method} is for scores, such as its teacher's."
        )
    asked = settings.steps or settings.nfe or 1
    if model.steps is not None and asked > model.steps:
        raise UserError(
            f"this map was trained for {most} steps (flow_map.steps), not {asked}: ask for fewer, "
            f"or distill another with --steps {asked}."
        )
    if model.steps is not None and settings.grid not in (None, "angle"):
        raise UserError(
            f"this map knows the times of its own grid, angle, not {settings.grid}: drop grid."
        )


def given_settings(
    sampling: Mapping[str, Any] | None = None,
    method: str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """What a command changes of a run's sampler: what it was given, and ``sampling`` by name."""
    named: dict[str, Any] = {"method": method, "steps": steps, "nfe": nfe, "grid": grid}
    named |= {"batch_size": batch_size, "options": options, "tolerance": tolerance}
    if tolerance is not None:
        named["method"] = method or "adams"
    return dict(sampling or {}) | {k: v for k, v in named.items() if v is not None}


class _Silent(nn.Module):
    """A network that says zero, of as many times the channels."""

    def __init__(self, times: int):
        super().__init__()
        self.times, self.nothing = times, nn.Parameter(torch.zeros(()))
        self.means = torch.zeros(1, 1)  # for model.center

    def forward(self, x: Tensor, noise_label: Tensor, **condition: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x)] * self.times, 1)
