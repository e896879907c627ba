"""`sample`: one loop that runs every method on every grid."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from tqdm import tqdm

from score_sde.sampling.grids import make_grid
from score_sde.sampling.multistep import DPMSolverPP2M, SDEDPMSolverPP2M
from score_sde.sampling.noise import SeededNoise, fresh_seeds
from score_sde.sampling.ode import AdaptiveODE
from score_sde.sampling.predictors import (
    Ancestral,
    Euler,
    EulerMaruyama,
    Heun,
    Predictor,
    Trajectory,
)
from score_sde.sdes import SDE
from score_sde.states import ScoreFn

SAMPLERS: dict[str, type[Predictor]] = {
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "ode": AdaptiveODE,
    "euler": Euler,
    "heun": Heun,
    "dpmpp_2m": DPMSolverPP2M,
    "dpmpp_2m_sde": SDEDPMSolverPP2M,
}
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


def make_sampler(method: str | Predictor, **options: Any) -> Predictor:
    """A method by name (a key of `SAMPLERS`) with its options, or a predictor as it is.

    Raises ValueError for an unknown name or option, naming the choices.
    """
    if not isinstance(method, str):
        if options:
            raise ValueError(f"give the options {sorted(options)} to the method itself: {method}.")
        return method
    if method not in SAMPLERS:
        raise ValueError(_unknown("sampler", method, list(SAMPLERS)))
    known = list(_defaults(SAMPLERS[method]))
    for name in options:
        if name not in known:
            raise ValueError(_unknown(f"option of {method}", name, known))
    return SAMPLERS[method](**options)


def _defaults(method: type[Predictor]) -> dict[str, Any]:
    """The options of a method and their defaults."""
    return {f.name: f.default for f in dataclasses.fields(cast(Any, method))}


def _unknown(what: str, name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"Unknown {what} {name!r}. {hint}Available: {', '.join(choices) or 'none'}."


def list_samplers() -> list[dict[str, Any]]:
    """One row a sampler: name, stochastic, evaluations per step, default steps, options, about."""
    rows = []
    for name, cls in SAMPLERS.items():
        about = (cls.__doc__ or "").strip().splitlines()[0]
        rows.append(
            {
                "name": name,
                "stochastic": cls.stochastic,
                "evaluations": cls.evaluations or "adaptive",
                "default_steps": cls.default_steps,
                "default_grid": cls.default_grid or "of the process",
                "options": _defaults(cls),
                "about": about,
            }
        )
    return rows


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
    method: str | Predictor = "ancestral",
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | Sequence[float] | Tensor | None = None,
    seeds: Sequence[int] | None = None,
    denoise: bool = True,
    batch_size: int | None = None,
    hook: Hook | None = None,
    progress: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    return_info: bool = False,
    **options: Any,
) -> Tensor | SampleResult:
    """Draw x_0 by running the process backwards from noise; (B, ...) in the model's range.

    score: any callable score(x, t); t comes as a float64 tensor ().
    shape or x_T: (B, ...) of the samples, or the noise to start from.
    method: a name of `list_samplers()` with its ``options``, or a `Predictor`.
    steps or nfe: intervals of the grid, or the most evaluations of the score per sample, the
        final denoise counted in.
    grid: "uniform" in t, "logsnr", "karras", or strictly falling times.
    seeds: one integer a sample; sample i depends on (score, settings, seed i) alone. Drawn from
        torch's global generator when None.
    denoise: end with Tweedie's E[x_0 | x_{t_min}], one more evaluation.
    batch_size: run in batches of at most this many; the samples are the same.
    hook: hook(x, t) after each step; what it returns, unless None, replaces x.
    return_info: return a `SampleResult` with NFE, seconds and settings.

    Raises ValueError for settings that make no sense, `ODEError` when an adaptive solver fails.
    """
    name = method if isinstance(method, str) else type(method).__name__
    method = make_sampler(method, **options)
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
    grid = method.default_grid or sde.natural_grid if grid is None else grid
    steps = _count_steps(method, steps, nfe, denoise) if isinstance(grid, str) or steps else None
    times = make_grid(sde, grid, steps)
    dtype = dtype or (torch.float32 if x_T is None else x_T.dtype)
    device = torch.device(device or ("cpu" if x_T is None else x_T.device))

    started = time.perf_counter()
    calls = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return score(x, t)

    batch = batch_size or shape[0]
    starts = range(0, shape[0], batch)
    bar = tqdm(total=len(starts) * (len(times) - 1), disable=not progress, unit="step")
    chunks = []
    for first in starts:
        noise = SeededNoise(seeds[first : first + batch], shape[1:], dtype, device)
        # x_T is the first draw, also when it is given: later draws do not depend on that.
        x = sde.prior_std() * noise.draw()
        x = x if x_T is None else x_T[first : first + batch].to(dtype).to(device)
        run = Trajectory(sde, counted, noise.draw)
        for t, s in pairwise(times):
            x = method.step(run, x, t, s)
            if hook is not None:
                changed = hook(x, s)
                x = x if changed is None else changed
            bar.update()
        chunks.append(sde.denoise(x, times[-1], counted) if denoise else x)
    bar.close()

    x = torch.cat(chunks)
    settings: dict[str, Any] = {"method": name, "steps": len(times) - 1}
    if dataclasses.is_dataclass(method):
        settings |= dataclasses.asdict(method)
    settings |= {"grid": grid if isinstance(grid, str) else "explicit"}
    settings |= {"t": f"{float(times[0]):g}..{float(times[-1]):g}", "denoise": denoise}
    result = SampleResult(x, calls // len(starts), time.perf_counter() - started, settings)
    return result if return_info else result.x
