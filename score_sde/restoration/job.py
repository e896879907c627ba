"""Groups of draws by any method: those of particles one by one, independent draws together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.processes.sdes import SDE
from score_sde.restoration.average import Averages, Course
from score_sde.restoration.denoiser import Denoiser, rows_at_once
from score_sde.restoration.kernel import run_kernel
from score_sde.restoration.means import MEANS
from score_sde.restoration.measurement import Measurement
from score_sde.restoration.particles import count_levels, effective, plan, run_particles
from score_sde.restoration.published import SAMPLERS
from score_sde.restoration.system import System
from score_sde.scores import ScoreFn, take

OF_KERNEL = ("kernel", "fresh", "levels")
UNEVEN, FEW = 20.0, 50
"""Unevenness of weights (`particles.Cloud`) above which particles give way to the hybrid, and the
number of particles below which they do without a pilot, where `restore` may choose."""

Group = tuple[int, Sequence[int]]
"""Which measurement, and the seeds of its draws."""


@dataclass(frozen=True)
class Part:
    """What one group came to; facts: ess, temper, log_evidence, nfe, products, collapsed.

    x: draws (n, D). mean: the estimate of E[x_0 | y], (D,).
    """

    x: Tensor
    mean: Tensor
    facts: list[float]


@dataclass(frozen=True)
class Job:
    """What is the same for all groups; told: the system with residuals."""

    sde: SDE
    score: ScoreFn
    system: System
    told: System
    nfe: int
    batch_size: int | None
    dtype: torch.dtype
    options: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state."""
        return self.system.measurement.shape

    @property
    def entries(self) -> int:
        """Of one state."""
        return self.system.lam.numel()

    def _denoiser(self, which: int | Tensor) -> Denoiser:
        score = _Repeated(self.score, which)
        return Denoiser(self.sde, score, self.shape, self.batch_size, self.dtype)

    def _one(self, system: System, which: int) -> System:
        """The system of one measurement."""
        measurement = system.measurement
        rows = torch.tensor([which], device=measurement.y.device)
        return system.with_measurement(measurement.rows(rows))

    def run_all(self, name: str, may_choose: bool, groups: list[Group]) -> list[Part]:
        """All groups: those of independent draws together, wherever rows of y do not meet."""
        few = may_choose and all(self._too_few(len(seeds)) for _, seeds in groups)
        name = "hybrid" if few else name
        if name != "particles" and self.system.alike:
            return self._independent(name, groups, self.nfe, few) if groups else []
        return [self.run(name, may_choose, group) for group in groups]

    def _too_few(self, n: int) -> bool:
        """Whether n draws pay for too few particles to be worth a pilot."""
        particles = n * self.nfe // count_levels(self.nfe)
        return particles < FEW or not self.system.weighable(particles)

    def run(self, name: str, may_choose: bool, group: Group) -> Part:
        """One group of draws of one measurement."""
        which, seeds = group
        system, denoiser = self._one(self.system, which), self._denoiser(which)
        n, collapsed, planned = len(seeds), False, None
        if may_choose:
            collapsed = self._too_few(n)
            if not collapsed:
                budget = n * self.nfe
                planned = plan(system, denoiser, budget, self.nfe, seeds, bearable=UNEVEN)
                collapsed = planned.unevenness > UNEVEN
            name = "hybrid" if collapsed else name
        if name != "particles":
            tried = denoiser.rows
            [part] = self._independent(name, [group], self.nfe - -(-tried // n), collapsed)
            part.facts[3] += tried / n
            return part
        options = {**self.options, "planned": planned}
        x, cloud = run_particles(system, denoiser, n, self.nfe, seeds, **options)
        facts = [effective(cloud.log_w) / len(cloud.log_w), cloud.temper, cloud.log_evidence]
        return Part(x, cloud.mean, [*facts, denoiser.rows / n, denoiser.products / n, 0.0])

    def _independent(self, name: str, groups: list[Group], nfe: int, chosen: bool) -> list[Part]:
        """Draws that are independent of one another, of all groups together.

        chosen: the method was, by `restore`, in place of particles.
        """
        measurement, size = self.system.measurement, rows_at_once(self.batch_size, self.entries)
        which = torch.tensor([g for g, seeds in groups for _ in seeds], device=measurement.y.device)
        seeds, sizes = [seed for _, seeds in groups for seed in seeds], [len(s) for _, s in groups]
        chunks, averages, rows, products = [], Averages(sizes), 0, 0
        for i in range(0, len(seeds), size):
            at, course = which[i : i + size], Course()
            measured, denoiser = measurement.rows(at), self._denoiser(at)
            some = seeds[i : i + size]
            chunks.append(self._draw(name, measured, denoiser, some, nfe, chosen, course))
            averages.add(course, chunks[-1])
            rows, products = rows + denoiser.rows, products + denoiser.products
        spent = [rows / len(seeds), products / len(seeds)]
        facts = [1.0, 1.0, float("nan"), *spent, float(chosen)]
        draws = torch.cat(chunks).split(sizes)
        return [Part(x, mean, list(facts)) for x, mean in zip(draws, averages.means, strict=True)]

    def _draw(
        self,
        name: str,
        measured: Measurement,
        denoiser: Denoiser,
        seeds: Sequence[int],
        nfe: int,
        chosen: bool,
        course: Course,
    ) -> Tensor:
        """A draw (B, D) for each seed and row of the measurement."""
        if name in SAMPLERS:
            system = self.system.with_measurement(measured)
            return SAMPLERS[name](system, denoiser, seeds, nfe, **self.options)
        options, told = self.options, self.told.with_measurement(measured)
        if chosen and len(self.shape) == 3 and told.residuals is None:
            options = {"kernel": "seen"}  # pictures: no grain, see `kernel`
        of_kernel = {key: v for key, v in options.items() if key in OF_KERNEL}
        own = {key: v for key, v in options.items() if key not in OF_KERNEL}
        return run_kernel(told, denoiser, MEANS[name], own, seeds, nfe, course=course, **of_kernel)


@dataclass(frozen=True)
class _Repeated:
    """The score of one of the measurements, for any number of states; or of one for each state."""

    score: ScoreFn
    which: int | Tensor

    def take(self, rows: Any) -> _Repeated:
        return self if isinstance(self.which, int) else _Repeated(self.score, self.which[rows])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if not hasattr(self.score, "take"):
            return self.score(x, t)
        which = self.which
        which = torch.full((len(x),), which) if isinstance(which, int) else which
        return take(self.score, which)(x, t)
