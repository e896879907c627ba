r"""Time grids fitted to a model by one pilot run, without data.

The local error of a multistep method of order p grows with the p-th derivative of what it
interpolates. So a pilot run of 64 samples records F (see `frames`) along a fine grid, and the
nodes are placed with density

    rho(u) = (rms over samples |d^k F / du^k|)^gamma + floor,    u = log(sigma/alpha).

The fitted grid, and one halfway to it, then have to prove themselves: on fresh noise, against a
fine solution of it, beside the grid that `adams` takes without a recipe. Where neither gains on
both the rms and the median error, by more than chance explains, the recipe is that blind grid.

`calibrate(..., thorough=True)` also tries orders, k and gamma, and keeps what comes closest to a
fine run of its own, by the geometric mean of the rms and the median error.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import Positive, UserError, checked
from score_sde.ode import frames
from score_sde.processes.sdes import SDE
from score_sde.sampling.grids import at_noise_levels, make_grid
from score_sde.sampling.loop import sample
from score_sde.scores import ScoreFn

PILOT_STEPS = 64


@dataclass(frozen=True)
class Recipe:
    """A time grid for `adams`, with what it was made for; `sample(method="adams", grid=recipe)`.

    times: strictly falling. order: of the method. data_std: measured or given. process: the
    process as text; another one is refused. error: rms endpoint error on fresh noise (or, if the
    calibration was thorough, in the pilot), in units of data_std. gain: the error over that of the
    blind grid, the geometric mean of rms and median, 1 for the blind grid itself; gain_error: the
    standard error of its logarithm. None for a thorough calibration.
    """

    times: tuple[float, ...]
    order: int
    data_std: float
    process: str
    error: float | None = None
    gain: float | None = None
    gain_error: float | None = None

    def to_json(self) -> str:
        """What its file holds."""
        return json.dumps({"recipe": "adams", **asdict(self)}, indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(self.to_json())

    def check(self, sde: SDE) -> None:
        """ValueError unless it was made for this process."""
        if self.process != str(sde):
            raise UserError(f"the recipe was made for {self.process}, not for {sde}.")


@checked
def load_recipe(path: str | Path) -> Recipe:
    """A recipe from its JSON file; ValueError if it is not one."""
    try:
        values = json.loads(Path(path).read_text())
        values.pop("recipe")
        return Recipe(**{**values, "times": tuple(values["times"])})
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a recipe of `calibrate` ({error}).") from error


def _pilot_std(sde: SDE, score: ScoreFn, x_T: Tensor) -> float:
    """Standard deviation of samples from a run that does not need to know it."""
    x = sample(sde, score, x_T=x_T, method="dpmpp_2m", steps=32, grid="logsnr")
    return float((x - x.mean(0)).cpu().double().square().mean().sqrt())


def _bends(u: Tensor, values: Tensor, k: int) -> Tensor:
    """rms over samples and coordinates of the k-th divided difference of values (n, B, ...)."""
    at, rms = u, values.flatten(1).double()
    for _ in range(k):
        rms = rms.diff(dim=0) / at.diff()[:, None]
        at = 0.5 * (at[1:] + at[:-1])
    size = rms.square().mean(1).sqrt()
    return _interpolate(u, at, size)


def _interpolate(u: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear, float64; ``at`` may rise or fall."""
    order = torch.argsort(at)
    return torch.from_numpy(np.interp(u, at[order], values[order]))


def _nodes(u: Tensor, density: Tensor, steps: int) -> Tensor:
    """steps + 1 falling values of u that share the mass of the density equally."""
    mass = torch.cat(
        [torch.zeros(1, dtype=u.dtype), (0.5 * (density[1:] + density[:-1]) * -u.diff()).cumsum(0)]
    )
    wanted = torch.linspace(0, float(mass[-1]), steps + 1, dtype=u.dtype)
    return _interpolate(wanted, mass, u)


def half_level(sde: SDE, times: Tensor) -> Tensor:
    """u = log(sigma/alpha), like times."""
    return -frames.half_log_snr(sde, times)


def _errors(x: Tensor, fine: Tensor, unit: float) -> Tensor:
    """The rms endpoint error of each sample (B,), in units of the data's std."""
    each = (x - fine).flatten(1).cpu().double().square().mean(1).sqrt() / unit
    return each.clamp_min(1e-12)  # rounding is no error


def _proven(
    sde: SDE, score: ScoreFn, x_T: Tensor, sd: float, blind: Recipe, others: list[Recipe]
) -> Recipe:
    """The best of the recipes on this noise that beats the blind one; else the blind one."""

    def run(**settings: Any) -> Tensor:
        return sample(sde, score, x_T=x_T, method="adams", denoise=False, **settings)

    unit = sd * float(sde.alpha(torch.tensor(blind.times[-1], dtype=torch.float64)))
    fine = run(steps=max(PILOT_STEPS, len(blind.times) + 15), order=4, data_std=sd)
    base = _errors(run(grid=blind), fine, unit)
    best = replace(blind, error=float(base.square().mean().sqrt()))
    for chosen in others:
        each = _errors(run(grid=chosen), fine, unit)
        pair = torch.stack([each, base], 1)
        gain, rms, median = _gain(pair)
        index = torch.randint(
            len(pair), (200, len(pair)), generator=torch.Generator().manual_seed(0)
        )
        spread = float(torch.tensor([math.log(_gain(pair[i])[0]) for i in index]).std())
        beats = rms < 1 and median < 1 and math.log(gain) + 2 * spread < 0
        if beats and best.gain is not None and gain < best.gain:
            error = float(each.square().mean().sqrt())
            best = replace(chosen, error=error, gain=gain, gain_error=spread)
    return best


def _gain(pair: Tensor) -> tuple[float, float, float]:
    """Of errors (n, 2): how the first compare with the second, in both means, rms and median."""
    rms = pair.square().mean(0).sqrt()
    median = pair.median(0).values
    by_rms, by_median = float(rms[0] / rms[1]), float(median[0] / median[1])
    return math.sqrt(by_rms * by_median), by_rms, by_median


@checked
def calibrate(
    sde: SDE,
    score: ScoreFn,
    shape: tuple[int, ...] | None = None,
    nfe: int = 10,
    *,
    x_T: Tensor | None = None,
    data_std: Positive | None = None,
    denoise: bool = True,
    thorough: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Recipe:
    """A `Recipe` of `adams` for nfe evaluations, fitted to this score by a pilot run.

    shape or x_T: (B, ...) of the pilot; 64 samples are plenty. It takes about 130 + 3 nfe
    evaluations of each, 32 more if data_std is not given.
    data_std: of x_0; measured on samples if not given. denoise: whether the final denoising is
    among the nfe evaluations. thorough: choose order and density by their error as well, for about
    30 times the evaluations.
    """
    steps = nfe - denoise
    if steps < 1:
        raise UserError(f"nfe={nfe} is too few: one step needs {1 + denoise} evaluations.")
    if (shape is None) == (x_T is None):
        raise UserError("give exactly one of shape and x_T.")
    if x_T is None and shape is not None:
        generator = torch.Generator().manual_seed(seed)
        x_T = sde.prior_sample(tuple(shape), generator).to(device)
    assert x_T is not None
    sd = _pilot_std(sde, score, x_T) if data_std is None else data_std
    sd = frames.check_positive("data_std", sd)

    recorded: list[tuple[float, Tensor]] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        value = score(x, t)
        p, q = frames.predict(sde, t, "F", sd)
        recorded.append((float(t), (float(p) * x + float(q) * value).cpu()))
        return value

    sample(sde, watched, x_T=x_T, method="adams", steps=PILOT_STEPS, data_std=sd, denoise=False)
    times = torch.tensor([t for t, _ in recorded], dtype=torch.float64)
    u = -frames.half_log_snr(sde, times)
    values = torch.stack([value for _, value in recorded])
    end = -frames.half_log_snr(sde, torch.tensor([sde.t_min], dtype=torch.float64))

    def grid(k: int, gamma: float) -> tuple[float, ...]:
        density = _bends(u, values, k) ** gamma
        density = density + 0.05 * density.mean()
        whole = torch.cat([u, end]), torch.cat([density, density[-1:]])
        return tuple(at_noise_levels(sde, _nodes(*whole, steps).exp()).tolist())

    order = 2 if nfe <= 10 else 3 if nfe < 30 else 4
    process = str(sde)
    if not thorough:
        blind = make_grid(sde, "saturating", steps, sd)
        fitted = torch.tensor(grid(1, 0.67 if order < 4 else 0.5), dtype=torch.float64)
        halfway = (0.5 * (half_level(sde, blind) + half_level(sde, fitted))).exp()
        fresh = sde.prior_sample(tuple(x_T.shape), torch.Generator().manual_seed(seed + 1))
        return _proven(
            sde, score, fresh.to(x_T), sd,
            Recipe(tuple(blind.tolist()), 0, sd, process, gain=1.0, gain_error=0.0),
            [Recipe(tuple(times.tolist()), order, sd, process)
             for times in (fitted, at_noise_levels(sde, halfway))],
        )  # fmt: skip

    fine = sample(
        sde, score, x_T=x_T, method="adams", steps=2 * PILOT_STEPS, data_std=sd, order=4,
        grid=_refined(times, sde), denoise=False,
    )  # fmt: skip
    best, chosen = math.inf, None
    for k, gamma in ((1, 0.5), (1, 0.67), (1, 1.0), (2, 0.5), (2, 0.67)):
        candidate = grid(k, gamma)
        for p in (2, 3, 4):
            x = sample(
                sde, score, x_T=x_T, method="adams", grid=candidate, data_std=sd, order=p,
                denoise=False,
            )  # fmt: skip
            each = (x - fine).flatten(1).cpu().double().square().mean(1).sqrt()
            each = each / float(sde.alpha(times[-1:].clamp(max=sde.t_min))) / sd
            rms, median = float(each.square().mean().sqrt()), float(each.median())
            if math.sqrt(rms * median) < best:
                best = math.sqrt(rms * median)
                chosen = Recipe(candidate, p, sd, process, rms)
    if chosen is None:
        raise UserError("calibration failed: the score gives values that are not finite.")
    return chosen


def _refined(times: Tensor, sde: SDE) -> list[float]:
    """The pilot's grid with its steps halved (in t)."""
    whole = torch.cat([times, torch.tensor([sde.t_min], dtype=torch.float64)])
    middle = torch.sqrt(whole[1:] * whole[:-1])
    return torch.cat([torch.stack([whole[:-1], middle], 1).flatten(), whole[-1:]]).tolist()
