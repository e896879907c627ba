"""`restore`: draws of x_0 given a measurement, by particles or by any method that has a name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from score_sde import distributed
from score_sde.checks import Count, Device, check_size, checked, require, whole_seeds
from score_sde.exact import Gaussian
from score_sde.noise import fresh_seeds
from score_sde.processes.sdes import SDE
from score_sde.restoration.checks import (
    Budget,
    check_memory,
    check_method,
    check_options,
    check_reach,
    check_seeds,
    doubts,
)
from score_sde.restoration.denoiser import least_nu
from score_sde.restoration.job import OF_KERNEL, Group, Job, Part
from score_sde.restoration.means import MEANS, options_of
from score_sde.restoration.measurement import Noise
from score_sde.restoration.operators import Operator
from score_sde.restoration.particles import count_levels
from score_sde.restoration.posterior import find_mean, make_system
from score_sde.restoration.published import SAMPLERS
from score_sde.restoration.reference import SmoothGaussian
from score_sde.restoration.residuals import Residuals
from score_sde.scores import ScoreFn

AnyOperator = Operator | Callable[[Tensor], Tensor]
METHODS = tuple(dict.fromkeys(["particles", *MEANS, *SAMPLERS]))


@dataclass(frozen=True)
class Restored:
    """Draws x (n, *shape), or (G, n, *shape) of G measurements, and what they cost.

    mean: an estimate of E[x_0 | y], (*shape) or (G, *shape), nearer to it than the mean of x: of
    all particles before they are thinned to n, or by `average` of independent draws; of published
    samplers it is the mean of x. method: that was used. nfe, products: evaluations of the score and
    vector-Jacobian products, per draw. residual: mean squared residual over the noise's variance,
    per measurement (G,); 1 is right. Of particles, per measurement: ess, the effective share of
    particles at the end; temper, the smallest power that the weights were raised to (1: never);
    log_evidence, log p(y) in nats, biased where temper is below 1. said: what was decided for you,
    if anything. draws: n.
    """

    x: Tensor
    mean: Tensor
    method: str
    nfe: float
    products: float
    seconds: float
    residual: Tensor
    ess: Tensor | None = None
    temper: Tensor | None = None
    log_evidence: Tensor | None = None
    said: str = ""
    draws: int = 0

    def __str__(self) -> str:
        several = f" of each of {len(self.residual)}" if len(self.residual) > 1 else ""
        text = f"{self.draws} draws{several} by {self.method}: {self.nfe:.1f} evaluations"
        if self.products:
            text += f" and {self.products:.1f} vector-Jacobian products"
        text += f" each, residual^2/noise^2 {float(self.residual.mean()):.3f}"
        if self.ess is not None and self.temper is not None:
            text += f", effective share {float(self.ess.mean()):.2f}"
            text += f", temper {float(self.temper.min()):.2f}"
        return f"{text}, {self.seconds:.1f} s" + (f"\n{self.said}" if self.said else "")


@overload
def restore(
    sde: SDE, score: ScoreFn, y: Tensor, operator: AnyOperator, *, noise_std: Noise,
    return_info: Literal[True], **options: Any,
) -> Restored: ...  # fmt: skip


@overload
def restore(
    sde: SDE, score: ScoreFn, y: Tensor, operator: AnyOperator, *, noise_std: Noise, **options: Any
) -> Tensor: ...


@torch.no_grad()
@checked
def restore(
    sde: SDE,
    score: ScoreFn,
    y: Tensor,
    operator: AnyOperator,
    *,
    noise_std: Noise,
    gaussian: Gaussian | SmoothGaussian | None = None,
    residuals: Residuals | None = None,
    method: str | None = None,
    n: Count = 64,
    nfe: Budget = 60,
    seeds: Sequence[int] | None = None,
    group: Count | None = None,
    batch_size: Count | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    return_info: bool = False,
    **options: Any,
) -> Tensor | Restored:
    """n draws of p(x_0 | y), y = operator(x_0) + noise; no training.

    score: of the prior; what it is bound to has one row for each measurement, or is for all.
    y: one measurement, or several (G, *measured). operator, noise_std, gaussian, residuals, shape:
    see `posterior_score`; particles take no residuals, as their weights are those of the Gaussian.
    method: "particles" (GR-SMC: exact as nfe grows, see `particles`), a mean of
    `means.MEANS` for samples independent of one another (options: kernel, those of the mean), or a
    published sampler of `published.SAMPLERS`. None is particles, and the hybrid where the weights
    would leave few of them, which is said. n, nfe: draws of each measurement, and evaluations and
    products for each draw. seeds: n integers; a group of ``group`` draws (all n unless given)
    depends on its seeds and y alone. batch_size: rows through the score at once, some 2^18 entries
    unless given. dtype: of the
    score's states. return_info: a `Restored`.

    The processes of a torchrun divide groups, and each receives all draws. Raises UserError for
    what cannot be restored (`checks`).
    """
    system = make_system(y, operator, noise_std, gaussian, shape, device)
    check_reach(system, least_nu(sde))
    check_size(n * (100 + 8 * system.lam.numel()), "so many draws")  # a seed, and x twice
    seeds = fresh_seeds(n) if seeds is None else whole_seeds(seeds)
    name = method or "particles"
    check_seeds(n, seeds)
    require(dtype.is_floating_point, f"states are of floating point; dtype is {dtype}.")
    check_method(name, METHODS, gaussian is not None)
    check_options(name, list(options), _options(name))
    if name in MEANS:
        find_mean(name, {}, gaussian)
    size = min(group or n, n)
    if name == "particles":
        check_memory(system, size, size * nfe // count_levels(nfe), method is not None)
    told = system.with_residuals(residuals)
    job = Job(sde, score, system, told, nfe, batch_size, dtype, options)
    started = time.perf_counter()
    several = tuple(y.shape) != system.measurement.operator.measured(system.measurement.shape)
    groups: list[Group] = [
        (which, seeds[first : first + size])
        for which in range(len(system.measurement.y))
        for first in range(0, n, size)
    ]
    mine = [groups[i] for i in distributed.share(len(groups))]
    parts = job.run_all(name, method is None, mine)
    result = _collected(parts, groups, job, name, several, started)
    return result if return_info else result.x


def _options(name: str) -> list[str]:
    """The settings that a method has."""
    if name == "particles":
        return ["temper"]
    if name not in SAMPLERS:
        return [*options_of(MEANS[name].mean), *OF_KERNEL]
    return options_of(SAMPLERS[name])


def _collected(
    parts: list[Part],
    groups: list[Group],
    job: Job,
    name: str,
    several: bool,
    started: float,
) -> Restored:
    """All draws on all processes, in order, and what is to be said of them."""
    shape, y = job.system.measurement.shape, job.system.measurement.y
    width, size = job.system.lam.numel(), max(len(seeds) for _, seeds in groups)
    # Groups are padded to one size, so that they can be gathered: the last of each may be smaller.
    x = y.new_zeros(len(parts), size + 1, width)
    for padded, part in zip(x, parts, strict=True):
        padded[0], padded[1 : len(part.x) + 1] = part.mean, part.x
    x = distributed.gather(x, len(groups))
    own = torch.tensor([part.facts for part in parts], dtype=torch.float64).reshape(-1, 6)
    facts = distributed.gather(own, len(groups))
    which = torch.tensor([g for g, _ in groups])
    draws = [torch.cat([x[i, 1 : len(groups[i][1]) + 1] for i in (which == g).nonzero()[:, 0]])
             for g in range(len(y))]  # fmt: skip
    share = torch.tensor([len(seeds) for _, seeds in groups]).to(x)
    means = [share[which == g] @ x[which == g, 0] / share[which == g].sum() for g in range(len(y))]
    found = torch.stack([facts[which == g].mean(0) for g in range(len(y))])
    x = torch.stack(draws)
    flat, rows = x.flatten(0, 1), torch.arange(len(y)).repeat_interleave(x.shape[1])
    residual = job.system.measurement.rows(rows.to(y.device)).misfit(flat.to(y))
    particles = name == "particles" and not bool(found[:, 5].any())
    said = doubts(job.system)
    if bool(found[:, 5].any()):
        said.append(
            f"the weights of particles would leave few of them for {int((found[:, 5] > 0).sum())} "
            f"of {len(y)} measurements: the hybrid drew these, independent and slightly biased. "
            'Choose by method="particles" or method="hybrid".'
        )
    out = x.reshape(*x.shape[:2], *shape).to(job.dtype)
    mean = torch.stack(means).reshape(-1, *shape).to(job.dtype)
    return Restored(
        out if several else out[0],
        mean if several else mean[0],
        name if particles or name != "particles" else "hybrid",
        float(found[:, 3].mean()),
        float(found[:, 4].mean()),
        time.perf_counter() - started,
        residual.reshape(len(y), -1).mean(1).cpu(),
        found[:, 0] if particles else None,
        found[:, 1] if particles else None,
        found[:, 2] if particles else None,
        "\n".join(said),
        x.shape[1],
    )
