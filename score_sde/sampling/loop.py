"""`sample`: one loop that runs every method on every grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from score_sde.checks import Count, Device, NonNegative, Size, UserError, checked
from score_sde.devices import moved
from score_sde.noise import NoiseFactory, NoiseSource
from score_sde.ode.solve import ODEError
from score_sde.processes.sdes import SDE
from score_sde.sampling.graphs import Graphed, check_graph
from score_sde.sampling.method import Predictor, Trajectory, advance
from score_sde.sampling.plan import Plan, check_spent, make_plan
from score_sde.sampling.recipe import Recipe
from score_sde.scores import Rows, ScoreFn, batches, check_like, take

Hook = Callable[[Tensor, Tensor], Tensor | None]


@dataclass(frozen=True, repr=False)
class SampleResult:
    """Samples x (B, ...), evaluations of the score per sample, seconds, and all settings."""

    x: Tensor
    nfe: int
    seconds: float
    settings: dict[str, Any]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        said = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in self.settings.items()}
        settings = ", ".join(f"{key}={value}" for key, value in said.items())
        return f"{len(self.x)} samples: {settings}; NFE {self.nfe}, {self.seconds:.1f} s"


@overload
def sample(
    sde: SDE, score: ScoreFn, shape: Any = ..., *, return_info: Literal[True], **options: Any
) -> SampleResult: ...


@overload
def sample(sde: SDE, score: ScoreFn, shape: Any = ..., **options: Any) -> Tensor: ...


@checked
def sample(
    sde: SDE,
    score: ScoreFn,
    shape: Sequence[int] | None = None,
    *,
    x_T: Tensor | None = None,
    method: str | Predictor[Any] | None = None,
    steps: Size | None = None,
    nfe: Size | None = None,
    grid: Any = None,
    seeds: Sequence[int] | None = None,
    denoise: bool = True,
    noise: str | NoiseFactory = "seeded",
    noise_scale: NonNegative = 1.0,
    batch_size: Count | None = None,
    hook: Hook | None = None,
    grad: bool = False,
    graph: bool = False,
    progress: bool = False,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
    return_info: bool = False,
    **options: Any,
) -> Tensor | SampleResult:
    """Draw x_0 by running the process backwards from noise; (B, ...) in the model's range.

    score: any callable score(x, t); t comes as a float64 tensor (), or (B,) from `rk45` and
        `adaptive_sde`. A score that differs between samples has ``take``, see `scores.take`.
    shape or x_T: (B, ...) of the samples, or the noise to start from.
    method: a name of `list_samplers()` or a dotted path, with its ``options``, or a `Predictor`.
        None is "adams" where the data's scale is given, by data_std or a recipe, and "ancestral"
        otherwise.
    steps or nfe: intervals of the grid, or the most evaluations of the score per sample, the
        final denoise counted in.
    grid: "uniform" in t, "discrete", "logsnr", "karras", "saturating", strictly falling times, or
        a `Recipe` of `calibrate` (for adams).
    seeds: one integer a sample; sample i depends on (score, settings, seed i) alone, but for
        method="ode", whose steps are those of its batch. Drawn from torch's global generator when
        None.
    denoise: end with Tweedie's E[x_0 | x_{t_min}], one more evaluation.
    noise: "seeded"; "philox", made on the device for all samples at once, other numbers than
        "seeded"; "brownian", where runs of different steps share one path a sample; or a
        factory of `NoiseSource`s, called with (seeds, shape of one sample, dtype, device).
    noise_scale: factor on the noise of the steps; 0 shows what happens without.
    batch_size: run in batches of at most this many.
    hook: hook(x, t) after each step, of x_t (B, ...) of the batch and the time t (); what it
        returns, unless None, replaces x. It watches a run, keeps to known pixels, or clips.
    grad: nothing is differentiated unless asked for: samples have no graph. With grad=True they
        have one, back to x_T and to whatever the score is made of; each evaluation of the score is
        computed once more on the way back (torch.utils.checkpoint), so that memory holds states,
        not activations.
    graph: record an evaluation of the score as a CUDA graph, which is then replayed; see `Graphed`
        for what the score must be.
    return_info: return a `SampleResult` with NFE, seconds and settings.

    Arithmetic of float16 and bfloat16 states is that of float32. Raises UserError for settings
    that make no sense, `ODEError` when a solver cannot go on or the result is not finite.
    """
    plan = make_plan(
        sde, shape, x_T, method, steps, nfe, grid, seeds, denoise, noise, noise_scale, batch_size,
        device, dtype, options,
    )  # fmt: skip
    if isinstance(grid, Recipe):
        grid.check_model(score)
    if graph:
        check_graph(plan, grad)
        score = Graphed(score)
    watched = Watched(score, plan.score_dtype, plan.shape[0])
    started, chunks = time.perf_counter(), []
    with torch.set_grad_enabled(grad), tqdm(disable=not progress, unit="step") as bar:
        for rows, part in batches(watched, plan.shape[0], plan.batch_size):
            chunks.append(run_batch(plan, part, rows, hook, bar.update))
        x = (torch.cat(chunks) if len(chunks) > 1 else chunks[0]).to(plan.score_dtype)
    evaluations = watched.calls // len(chunks)
    check_finite(x, plan.name, evaluations)
    if not return_info:
        return x
    return SampleResult(x, evaluations, time.perf_counter() - started, plan.settings())


def run_batch(
    plan: Plan, score: Watched, rows: slice, hook: Hook | None, progress: Callable[[], Any]
) -> Tensor:
    """The samples of these rows: the loop."""
    noise = StepNoise(plan, rows)
    run, x, before = Trajectory(plan.sde, score, noise), noise.start, score.whole.calls
    points, at = plan.times.unbind(), plan.times.tolist()
    for i, numbers in enumerate(plan.numbers):
        run.noise = noise.between(at[i], at[i + 1])
        x = advance(plan.method, run, x, points[i], points[i + 1], numbers)
        check_spent(plan, i + 1, score.whole.calls - before)
        if hook is not None and (replaced := hook(x, points[i + 1])) is not None:
            check_like(replaced, x, "what hook returns", dtype=False)
            x = replaced
            run.history.interrupt()
        progress()
    return run.denoise(x, points[-1]) if plan.denoise else x


class StepNoise:
    """Where a batch starts from, and the noise of its steps.

    x_T is the first draw of the source, also when it is given: later ones are then the same.
    """

    def __init__(self, plan: Plan, rows: slice):
        self.scale = plan.noise_scale
        self.source: NoiseSource = plan.noise(
            plan.seeds[rows], plan.shape[1:], plan.dtype, plan.device
        )
        self.unused_start = plan.x_T is not None
        if plan.x_T is None:
            self.start = plan.sde.prior_std() * self.source.draw(None, None)
        else:
            self.start = moved(plan.x_T[rows].to(plan.dtype), plan.device)

    def between(self, t: float, s: float) -> Callable[..., Tensor]:
        """`noise()` of the step from t to s."""
        return partial(self, t, s)

    def __call__(self, t: float, s: float, which: Tensor | None = None) -> Tensor:
        if self.unused_start:
            self.source.draw(None, None)
            self.unused_start = False
        z = self.source.draw(t, s) if which is None else self.source.draw(t, s, which)
        return z if self.scale == 1 else z * self.scale


class Watched:
    """The score of a batch of ``size``: counted, asked in its dtype, and held to its contract."""

    def __init__(self, score: ScoreFn, dtype: torch.dtype, size: int, whole: Watched | None = None):
        self.score, self.dtype, self.size = score, dtype, size
        self.calls, self.whole = 0, whole or self

    def take(self, rows: Rows) -> Watched:
        """The score of these samples; its calls are counted here."""
        n = len(range(self.size)[rows]) if isinstance(rows, slice) else len(rows)
        return Watched(take(self.score, rows, self.size), self.dtype, n, self.whole)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.whole.calls += 1
        given = x.to(self.dtype)
        if torch.is_grad_enabled():
            value = checkpoint(self.score, given, t, use_reentrant=False)
        else:
            value = self.score(given, t)
        check_like(value, given)
        return value.to(x.dtype)

    def jump(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s from x_t by a map of the flow; counted as one evaluation."""
        self.whole.calls += 1
        if not hasattr(self.score, "jump"):
            raise UserError(
                "the sampler flow_map takes steps of a map of the flow, and this is a score: make "
                "a map of it by --mode distill, or take another sampler."
            )
        return self.score.jump(x.to(self.dtype), t, s).to(x.dtype)

    def score_and_v(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score and v of a learned variance; counted as one evaluation."""
        self.whole.calls += 1
        if not hasattr(self.score, "score_and_v"):
            raise UserError("variance=learned needs a model trained with model.learned_variance.")
        score, v = self.score.score_and_v(x.to(self.dtype), t)
        return score.to(x.dtype), v.to(x.dtype)


def check_finite(x: Tensor, name: str, nfe: int) -> None:
    """`ODEError` unless all samples are finite."""
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        raise ODEError(
            f"{int(bad.sum())} of {len(x)} samples are not finite after {nfe} evaluations by "
            f"{name}: either the score is not finite (check the model), or the method is unstable "
            "at so few steps: take more, or method=ddim, heun or adams."
        )
