"""`sample`: one loop that runs every method on every grid."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor
from tqdm import tqdm

from score_sde.noise import (
    BrownianNoise,
    NoiseFactory,
    NoiseSource,
    SeededNoise,
    fresh_seeds,
)
from score_sde.ode.solve import ODEError
from score_sde.processes.sdes import SDE
from score_sde.sampling.catalogue import make_sampler
from score_sde.sampling.grids import make_grid
from score_sde.sampling.predictors import Predictor, Trajectory
from score_sde.scores import Rows, ScoreFn, take

Hook = Callable[[Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class SampleResult:
    """Samples x (B, ...), evaluations of the score per sample, seconds, and all settings."""

    x: Tensor
    nfe: int
    seconds: float
    settings: dict[str, Any]

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{len(self.x)} samples: {settings}; NFE {self.nfe}, {self.seconds:.1f} s"


def _count_steps(method: Predictor, steps: int | None, nfe: int | None, denoise: bool) -> int:
    """The number of steps asked for by ``steps`` or by a budget of evaluations."""
    if steps is not None and nfe is not None:
        raise ValueError(f"give steps or nfe, not both (got steps={steps}, nfe={nfe}).")
    if nfe is not None:
        if method.evaluations == 0:
            raise ValueError(
                f"{type(method).__name__} adapts its evaluations to rtol and atol; nfe={nfe} "
                "cannot bound them. Use method=heun or set rtol."
            )
        steps = (nfe - denoise) // method.evaluations
        if steps < 1:
            least = method.evaluations + denoise
            raise ValueError(f"nfe={nfe} is too few: one step needs {least} evaluations.")
    steps = method.default_steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be >= 1 (got {steps}).")
    return steps


class _Watched:
    """The score, counted, and checked once for what a score must return."""

    def __init__(self, score: ScoreFn, whole: _Watched | None = None):
        self.score, self.calls, self.whole = score, 0, whole or self

    def take(self, rows: Rows) -> _Watched:
        """The score of these samples; its calls are counted here."""
        return _Watched(take(self.score, rows), self.whole)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.whole.calls += 1
        value = self.score(x, t)
        if self.whole.calls == 1 and (value.shape != x.shape or value.dtype != x.dtype):
            raise ValueError(
                f"the score must be like x, {tuple(x.shape)} {x.dtype}; it returned "
                f"{tuple(value.shape)} {value.dtype}."
            )
        return value

    def score_and_v(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score and v of a learned variance; counted as one evaluation."""
        self.whole.calls += 1
        if not hasattr(self.score, "score_and_v"):
            raise ValueError("variance=learned needs a model trained with model.learned_variance.")
        return self.score.score_and_v(x, t)


class _StepNoise:
    """The noise of the step that the loop is at."""

    def __init__(self, source: NoiseSource, here: list[float], scale: float, skip_start: bool):
        self.source, self.here, self.scale, self.skip = source, here, scale, skip_start

    def __call__(self, which: Tensor | None = None) -> Tensor:
        if self.skip:  # x_T is the first draw, also when it is given: later ones are the same
            self.source.draw(None, None)
            self.skip = False
        if which is None:
            z = self.source.draw(self.here[0], self.here[1])
        else:
            z = self.source.draw(self.here[0], self.here[1], which)
        return z if self.scale == 1 else z * self.scale


@overload
def sample(
    sde: SDE, score: ScoreFn, shape: Any = ..., *, return_info: Literal[True], **options: Any
) -> SampleResult: ...


@overload
def sample(sde: SDE, score: ScoreFn, shape: Any = ..., **options: Any) -> Tensor: ...


@torch.no_grad()
def sample(
    sde: SDE,
    score: ScoreFn,
    shape: tuple[int, ...] | None = None,
    *,
    x_T: Tensor | None = None,
    method: str | Predictor | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Any = None,
    seeds: Sequence[int] | None = None,
    denoise: bool = True,
    noise: str | NoiseFactory = "seeded",
    noise_scale: float = 1.0,
    batch_size: int | None = None,
    hook: Hook | None = None,
    progress: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    return_info: bool = False,
    **options: Any,
) -> Tensor | SampleResult:
    """Draw x_0 by running the process backwards from noise; (B, ...) in the model's range.

    score: any callable score(x, t); t comes as a float64 tensor (), or (B,) from `rk45` and
        `adaptive_sde`. A score that differs between samples has ``take``, see `scores.take`.
    shape or x_T: (B, ...) of the samples, or the noise to start from.
    method: a name of `list_samplers()` with its ``options``, or a `Predictor`. None is "adams"
        where it can run, that is for up to 50 evaluations or a recipe with data_std known, and
        "ancestral" otherwise.
    steps or nfe: intervals of the grid, or the most evaluations of the score per sample, the
        final denoise counted in.
    grid: "uniform" in t, "discrete", "logsnr", "karras", "saturating", strictly falling times, or
        a `Recipe` of `calibrate` (for adams).
    seeds: one integer a sample; sample i depends on (score, settings, seed i) alone. Drawn from
        torch's global generator when None.
    denoise: end with Tweedie's E[x_0 | x_{t_min}], one more evaluation.
    noise: "seeded"; "brownian", where runs of different steps share one path a sample; or a
        factory of `NoiseSource`s, called with (seeds, shape of one sample, dtype, device).
    noise_scale: factor on the noise of the steps; 0 shows what happens without.
    batch_size: run in batches of at most this many; the samples are the same.
    hook: hook(x, t) after each step; what it returns, unless None, replaces x.
    return_info: return a `SampleResult` with NFE, seconds and settings.

    Raises ValueError for settings that make no sense, `ODEError` when a solver cannot go on or the
    result is not finite.
    """
    recipe = grid if hasattr(grid, "data_std") else None
    if recipe is not None:
        recipe.check(sde)
        options = {"data_std": recipe.data_std, "order": recipe.order, **options}
        grid = recipe.times
    if method is None:
        few = recipe is not None or (steps or nfe or 1000) <= 50
        method = "adams" if few and "data_std" in options else "ancestral"
    name = method if isinstance(method, str) else type(method).__name__
    method = make_sampler(method, **options)
    if method.processes is not None and type(sde).__name__ not in method.processes:
        raise ValueError(
            f"{name} is defined for {', '.join(method.processes)} only, not for "
            f"{type(sde).__name__}; choose one of these or another method."
        )
    if (shape is None) == (x_T is None):
        raise ValueError("give exactly one of shape and x_T.")
    shape = tuple(shape or ()) if x_T is None else tuple(x_T.shape)
    if len(shape) < 2 or shape[0] < 1:
        raise ValueError(f"shape must be (B, ...) with B >= 1 and at least two axes; got {shape}.")
    seeds = fresh_seeds(shape[0]) if seeds is None else list(seeds)
    if len(seeds) != shape[0]:
        raise ValueError(f"{shape[0]} samples need {shape[0]} seeds; got {len(seeds)}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be >= 1 (got {batch_size}).")
    if not noise_scale >= 0:
        raise ValueError(f"noise_scale must be at least 0 (got {noise_scale}).")
    source = _noise_factory(noise, sde)
    grid = method.default_grid or sde.natural_grid if grid is None else grid
    named = isinstance(grid, str)
    count = _count_steps(method, steps, nfe, denoise) if named or steps else None
    times = make_grid(sde, grid, count, getattr(method, "data_std", None))
    if not named and nfe is not None:
        needed = (len(times) - 1) * method.evaluations + denoise
        if needed > nfe:
            raise ValueError(f"the grid needs {needed} evaluations, more than nfe={nfe}.")
    dtype = dtype or (torch.float32 if x_T is None else x_T.dtype)
    device = torch.device(device or ("cpu" if x_T is None else x_T.device))

    started = time.perf_counter()
    watched = _Watched(score)
    points, at = times.unbind(), times.tolist()
    prepared = method.prepare(sde, times)
    batch = batch_size or shape[0]
    starts = range(0, shape[0], batch)
    bar = tqdm(total=len(starts) * len(prepared), disable=not progress, unit="step")
    chunks = []
    for first in starts:
        drawn = source(seeds[first : first + batch], shape[1:], dtype, device)
        if x_T is None:
            x = sde.prior_std() * drawn.draw(None, None)
        else:
            x = x_T[first : first + batch].to(dtype).to(device)
        here = [at[0], at[1]]
        fresh = _StepNoise(drawn, here, noise_scale, skip_start=x_T is not None)
        part = watched.take(slice(first, first + batch)) if len(starts) > 1 else watched
        run = Trajectory(sde, part, fresh)
        for i, row in enumerate(prepared):
            here[:] = at[i : i + 2]
            x = method.step(run, x, points[i], points[i + 1], *row)
            if hook is not None:
                changed = hook(x, points[i + 1])
                x = x if changed is None else changed
            if progress:
                bar.update()
        chunks.append(run.denoise(x, points[-1]) if denoise else x)
    bar.close()

    x = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
    nfe_used = watched.calls // len(starts)
    _check_finite(x, name, nfe_used)
    settings: dict[str, Any] = {"method": name, "steps": len(times) - 1}
    if dataclasses.is_dataclass(method):
        settings |= dataclasses.asdict(method)
    settings |= {"grid": grid if named else "recipe" if recipe else "explicit"}
    settings |= {"t": f"{at[0]:g}..{at[-1]:g}", "denoise": denoise}
    if noise_scale != 1:
        settings["noise_scale"] = noise_scale
    result = SampleResult(x, nfe_used, time.perf_counter() - started, settings)
    return result if return_info else result.x


def _noise_factory(noise: str | NoiseFactory, sde: SDE) -> NoiseFactory:
    if not isinstance(noise, str):
        return noise
    if noise == "seeded":
        return SeededNoise
    if noise == "brownian":
        return partial(BrownianNoise, sde=sde)
    raise ValueError(f"unknown noise {noise!r}; choose seeded, brownian or give a factory.")


def _check_finite(x: Tensor, name: str, nfe: int) -> None:
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        raise ODEError(
            f"{int(bad.sum())} of {len(x)} samples are not finite after {nfe} evaluations by "
            f"{name}: either the score is not finite (check the model), or the method is unstable "
            "at so few steps: take more, or method=ddim, heun or adams."
        )
