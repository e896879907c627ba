r"""Time grids fitted to a model by one pilot run, without data, and only where they gain.

The local error of a multistep method of order p grows with the p-th derivative of what it
interpolates. So a pilot run of a few samples records F (see `frames`) along a fine grid, and nodes
are placed with density

    rho(u) = (rms over samples |d^k F / du^k|)^gamma + floor,    u = log(sigma/alpha).

Which k, gamma and order serve best, and how far to go from the blind grid of `adams` to the fitted
one, depends on the data. The candidates are tried on the pilot's own noise, whose fine solution is
known; the best of each order then has to prove itself against the blind grid on *fresh* noise,
beside a fine solution of that (see `is_sure`). Where none gains on the rms and on the median error,
the recipe is the blind grid: a recipe should never lose. The more samples a pilot has, the smaller
are the gains that are told from chance.

All of it takes at most 200 evaluations of the score per sample of the pilot.
`calibrate(..., thorough=True)` tries more, against a fine run of its own, for ten times as many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import BatchShape, Device, Positive, Seed, Size, UserError, checked
from score_sde.noise import generator_of
from score_sde.ode import frames
from score_sde.processes.sdes import SDE
from score_sde.sampling.grids import at_noise_levels, make_grid
from score_sde.sampling.loop import sample
from score_sde.sampling.pilot import Pilot, half_level, refined
from score_sde.sampling.plan import check_shape
from score_sde.sampling.recipe import Recipe, checksum
from score_sde.scores import ScoreFn, take

BUDGET = 200  # evaluations per sample of the pilot
PILOT_STEPS, STD_STEPS = 64, 12
LEAST_SAMPLES, LEAST_NUMBERS = 16, 64
PART = 64  # samples at a time, and at most those of the pilot whose F is recorded
SURE = 0.95  # of the rms of the blind grid, at most
DENSITIES = ((1, 0.67), (2, 0.5))  # (k, gamma)
THOROUGH = ((1, 0.5), (1, 0.67), (1, 1.0), (2, 0.5), (2, 0.67))


@checked
def calibrate(
    sde: SDE,
    score: ScoreFn,
    shape: BatchShape | None = None,
    nfe: Size = 10,
    *,
    x_T: Tensor | None = None,
    data_std: Positive | None = None,
    denoise: bool = True,
    thorough: bool = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> Recipe:
    """A `Recipe` of `adams` for nfe evaluations, fitted to this score by a pilot run.

    shape or x_T: (B, ...) of the pilot. It takes at most 200 evaluations of each sample: with 64 of
        them half of the gains are told from chance, with 256 most; of some thousand evaluations
        no grid can be told from the blind one.
    data_std: of x_0; measured on samples if not given. denoise: whether the final denoising is
    among the nfe evaluations. thorough: choose order and density among more, by their error in the
    pilot, for about 30 times the evaluations. Raises UserError for a pilot of fewer samples than
    16, or 64 numbers in all, which show too little of the data.
    """
    steps = nfe - denoise
    if steps < 1:
        raise UserError(f"nfe={nfe} is too few: one step needs {1 + denoise} evaluations.")
    check_shape(shape, x_T)
    if x_T is None and shape is not None:
        generator = generator_of(seed)
        x_T = sde.prior_sample(tuple(shape), generator).to(device)
    assert x_T is not None
    check_pilot(x_T)
    if thorough:
        return _thorough(sde, score, x_T, steps, data_std)
    calibration = _Calibration(sde, score, x_T, steps, seed)
    return calibration.recipe(data_std)


def check_pilot(x_T: Tensor) -> None:
    """UserError for a pilot too small to tell anything by."""
    if x_T.ndim < 2 or len(x_T) < LEAST_SAMPLES or x_T.numel() < LEAST_NUMBERS:
        each = max(x_T.shape[1:].numel(), 1)
        raise UserError(
            f"a pilot of shape {tuple(x_T.shape)} shows too little of the data: calibration needs "
            f"at least {LEAST_SAMPLES} samples, and {LEAST_NUMBERS} numbers in all, so "
            f"{max(LEAST_SAMPLES, -(-LEAST_NUMBERS // each))} samples here; 64 are plenty."
        )
    if not x_T.is_floating_point() or not bool(torch.isfinite(x_T).all()) or x_T.std() == 0:
        raise UserError(
            "x_T is the noise that a pilot starts from: floating-point numbers, finite and not all "
            f"the same (got {x_T.dtype}). Give a shape instead, and it is drawn."
        )


@dataclass
class _Calibration:
    """A calibration within its budget; ``spent`` counts evaluations times samples."""

    sde: SDE
    score: ScoreFn
    x_T: Tensor
    steps: int
    seed: int
    sd: float = field(default=1.0, init=False)
    spent: int = field(default=0, init=False)

    def recipe(self, data_std: float | None) -> Recipe:
        """The best of the candidates if it proves better than the blind grid; else that."""
        half = slice(0, max(min(len(self.x_T) // 2, PART), LEAST_SAMPLES))
        if data_std is None:
            data_std = self._pilot_std(self.x_T)
        self.sd = frames.check_positive("data_std", data_std)
        blind = Recipe(
            tuple(make_grid(self.sde, "saturating", self.steps, self.sd).tolist()), 0, self.sd,
            str(self.sde), gain=1.0, gain_error=0.0, model=checksum(self.score),
        )  # fmt: skip
        if self.steps < 2:
            return self._costed(blind)  # one step leaves nothing to choose
        watched = Pilot(self.sde, self.score_of(0, half.stop), self.sd)
        pilot_steps = max(PILOT_STEPS, 2 * self.steps)
        if pilot_steps * len(self.x_T[half]) > self.left / 2:
            return self._costed(blind)
        end = self._run(self.x_T[half], score=watched, steps=pilot_steps, order=4, data_std=self.sd)
        best = self._best(self._candidates(watched, blind), self.x_T[half], end)
        return self._costed(self._proven(best, blind))

    def _costed(self, recipe: Recipe) -> Recipe:
        return replace(recipe, evaluations=self.spent / len(self.x_T))

    @property
    def left(self) -> int:
        """Evaluations times samples that may still be spent."""
        return BUDGET * len(self.x_T) - self.spent

    @property
    def unit(self) -> float:
        """What errors are measured in: the data's std at the last time."""
        return self.sd * float(self.sde.alpha(torch.tensor(self.sde.t_min, dtype=torch.float64)))

    def score_of(self, first: int, count: int) -> ScoreFn:
        """The score of so many rows of the pilot's batch, which begins anew after its end."""
        size = len(self.x_T)
        if (first, count) == (0, size):
            return self.score
        return take(self.score, torch.arange(first, first + count) % size, size)

    def _run(self, x_T: Tensor, score: ScoreFn | None = None, **settings: Any) -> Tensor:
        """Endpoints by adams (or ``method``) without denoising, `PART` samples at a time."""
        settings = {"method": "adams", "denoise": False, **settings}
        ends = []
        for first in range(0, len(x_T), PART):
            part = x_T[first : first + PART]
            of_part = score or self.score_of(first, len(part))
            result = sample(self.sde, of_part, x_T=part, return_info=True, **settings)
            self.spent += result.nfe * len(part)
            ends.append(result.x)
        return torch.cat(ends)

    def _pilot_std(self, x_T: Tensor) -> float:
        """Standard deviation of samples, measured.

        A rough one first, and adams from there. Noise of exactly the prior's size makes it exact
        for Gaussian data, but for the solver.
        """
        matched = x_T * (self.sde.prior_std() / float(x_T.double().square().mean().sqrt()))

        def spread(x: Tensor) -> float:
            std = float(x.cpu().double().var(0).mean().sqrt())
            return frames.check_positive("data_std", std)

        rough = spread(self._run(matched, method="dpmpp_2m", steps=STD_STEPS, grid="logsnr"))
        return spread(self._run(matched, steps=STD_STEPS, data_std=rough))

    def _candidates(self, pilot: Pilot, blind: Recipe) -> list[Recipe]:
        """Grids all the way and halfway to the fitted ones, of the orders that may serve."""
        own = 4 if self.steps >= 30 else 3
        orders = (2, 3) if self.steps <= 10 else (3, 4) if self.steps < 30 else (4,)
        start = half_level(self.sde, torch.tensor(blind.times, dtype=torch.float64))
        grids = [blind.times]
        for k, gamma in DENSITIES:
            fitted = pilot.nodes(k, gamma, self.steps)
            for u in (fitted, 0.5 * (fitted + start)):
                grids.append(tuple(at_noise_levels(self.sde, u.exp()).tolist()))
        made = [replace(blind, times=times, order=order) for times in grids for order in orders]
        return [r for r in made if r.times != blind.times or r.order != own]

    def _best(self, candidates: list[Recipe], x_T: Tensor, end: Tensor) -> list[Recipe]:
        """Of each order the candidate nearest to the known endpoints, on 0.3 of what is left.

        The nearest of all first. A high order wins the median and may lose where flows part.
        """
        count = int(0.3 * self.left / (len(candidates) * self.steps))
        few = slice(0, max(min(count, len(x_T)), 4))

        def miss(recipe: Recipe) -> float:
            return math.prod(_means(self._errors(self._run(x_T[few], grid=recipe), end[few])))

        misses = [miss(recipe) for recipe in candidates]
        best: dict[int, Recipe] = {}
        for _, recipe in sorted(zip(misses, candidates, strict=True), key=lambda pair: pair[0]):
            best.setdefault(recipe.order, recipe)
        return list(best.values())

    def _proven(self, chosen: list[Recipe], blind: Recipe) -> Recipe:
        """The first chosen recipe that gains on fresh noise; else the blind one, with its error."""
        fine_steps = fine_for(self.steps)
        each_costs = fine_steps + (1 + len(chosen)) * self.steps
        count = min(self.left // each_costs, 4 * len(self.x_T))
        if count < LEAST_SAMPLES // 2:
            return blind
        generator = generator_of((self.seed + 1) % 2**64)
        x_T = self.sde.prior_sample((count, *self.x_T.shape[1:]), generator).to(self.x_T)
        fine = self._run(x_T, steps=fine_steps, order=4, data_std=self.sd)
        base = self._errors(self._run(x_T, grid=blind), fine)
        blind = replace(blind, error=_means(base)[0])
        for recipe in chosen:
            each = self._errors(self._run(x_T, grid=recipe), fine)
            if is_sure(each, base):
                gain, spread = gain_of(each, base)
                return replace(
                    recipe, error=_means(each)[0], gain=gain.mean, gain_error=spread.mean
                )
        return blind

    def _errors(self, x: Tensor, fine: Tensor) -> Tensor:
        """The rms endpoint error of each sample (B,), in units of the data's std."""
        each = (x - fine).flatten(1).cpu().double().square().mean(1).sqrt() / self.unit
        return each.clamp_min(1e-12)  # rounding is no error


def fine_for(steps: int) -> int:
    """Steps of order 4 whose error is little beside that of so many by any grid."""
    return max(32, int(2.5 * steps))


@dataclass(frozen=True)
class Gain:
    """Ratios of errors, by rms and median, or the standard errors of their logarithms."""

    mean: float
    rms: float
    median: float


def is_sure(each: Tensor, base: Tensor) -> bool:
    """Whether errors (n,) are smaller than others (n,) of the same noise, by more than chance.

    The rms of errors is often that of one sample in a hundred, which starts where flows part, and
    its bootstrap knows nothing of samples worse than all that it has seen. So the rms has to gain a
    twentieth even if the worst sample counts twice, and the one that gained most not at all; and
    the median by two standard errors.
    """
    new, old = each.square(), base.square()
    counts = torch.ones_like(new)
    counts[new.argmax()] += 1
    counts[(old - new).argmax()] -= 1
    gain, spread = gain_of(each, base)
    wins = float((counts * new).sum()) < SURE**2 * float((counts * old).sum())
    return wins and math.log(gain.median) + 2 * spread.median < 0


def gain_of(each: Tensor, base: Tensor) -> tuple[Gain, Gain]:
    """How errors (n,) compare with others (n,) of the same noise, and how surely (bootstrap)."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(each), (400, len(each)), generator=generator)
    everything = torch.cat([torch.arange(len(each))[None], draws])
    logs = torch.stack([each[everything], base[everything]])
    rms = logs.square().mean(-1).sqrt().log().diff(dim=0)[0] * -1
    median = logs.median(-1).values.log().diff(dim=0)[0] * -1
    columns = torch.stack([0.5 * (rms + median), rms, median])
    return Gain(*columns[:, 0].exp().tolist()), Gain(*columns[:, 1:].std(1).tolist())


def _means(errors: Tensor) -> tuple[float, float]:
    """rms and median of the samples' errors."""
    return float(errors.square().mean().sqrt()), float(errors.median())


def _thorough(sde: SDE, score: ScoreFn, x_T: Tensor, steps: int, data_std: float | None) -> Recipe:
    """The best of many densities and orders, by the error in the pilot itself."""
    work = _Calibration(sde, score, x_T, steps, 0)
    work.sd = sd = frames.check_positive(
        "data_std", work._pilot_std(x_T) if data_std is None else data_std
    )
    few = x_T[:PART]
    pilot = Pilot(sde, work.score_of(0, len(few)), sd)
    work._run(few, score=pilot, steps=PILOT_STEPS, data_std=sd)
    fine = work._run(
        x_T, steps=2 * PILOT_STEPS, grid=refined(pilot.times, sde), order=4, data_std=sd
    )
    best, chosen = math.inf, None
    for k, gamma in THOROUGH:
        times = tuple(at_noise_levels(sde, pilot.nodes(k, gamma, steps).exp()).tolist())
        for order in (2, 3, 4):
            recipe = Recipe(times, order, sd, str(sde), model=checksum(score))
            rms, median = _means(work._errors(work._run(x_T, grid=recipe), fine))
            if math.sqrt(rms * median) < best:
                best, chosen = math.sqrt(rms * median), replace(recipe, error=rms)
    if chosen is None:
        raise UserError("calibration failed: the score gives values that are not finite.")
    return work._costed(chosen)
