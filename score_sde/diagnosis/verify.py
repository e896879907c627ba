r"""How exact is a sampler? Measured on data where every answer is known.

For x_0 ~ N(mu, U diag(lambda) U^T) the score is affine, and with r = sigma/alpha all is in closed
form. The probability flow ends at

    x_s / alpha_s = mu + U k U^T (x_t - alpha_t mu),
    k = sqrt((lambda + r_s^2) / (alpha_t^2 lambda + sigma_t^2))

so a method that draws no noise has an *endpoint error*, whose slope over the number of steps is
its order. A method whose update is affine in state and noise maps its draws z_0 (the start x_T /
prior_std), z_1, ... to x = m + sum_j B_j z_j: unit impulses give m and every B_j, hence the *law*
of the result without Monte Carlo noise, and its Wasserstein-2 distance to the data's,

    W_2^2 = |m - mu|^2 + sum_d (std_d - sqrt(lambda_d + r^2))^2.

The two terms are reported apart, since the first is often that of the prior, which has mean 0
where p_T has alpha_T mu: no method can mend it. An affine flow flatters some methods, so unless
data are given endpoint errors are those of a mixture on the line, whose flow is known by quantiles.

States are compared as x / alpha: laws with that of the data at t_min (r = r(t_min)) when `denoise`
is off, with the data itself (r = 0) when it is on, where Tweedie's step costs an error of the order
of r^2. Endpoints are denoised on both sides then, so that they show the method alone. What t_min
and the prior make of the law by themselves is reported beside the rows (`ends`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import Index, Seed, Size, UserError, checked
from score_sde.diagnosis.ends import law_of_ends
from score_sde.diagnosis.laws import (
    F64,
    Normals,
    Setup,
    distance,
    endpoint_error,
    propagate,
)
from score_sde.diagnosis.verified import VerifyReport as VerifyReport
from score_sde.diagnosis.verified import VerifyRow as VerifyRow
from score_sde.exact import Gaussian, GaussianMixture
from score_sde.processes.sdes import SDE
from score_sde.sampling import Predictor
from score_sde.sampling.grids import make_grid

ROUNDING = 1e-12  # errors below it, relative to the data, say nothing about a method


def _spread_stds(dim: int, ratio: float) -> Tensor:
    """(dim,) standard deviations, log-spaced over a ratio, of overall size 0.5."""
    stds = torch.logspace(0, -math.log10(ratio), dim, dtype=F64)
    return 0.5 * stds / stds.square().mean().sqrt()


def two_humps() -> GaussianMixture:
    """Data on the line with a curved probability flow: an affine one flatters some methods."""
    return GaussianMixture([0.6, 0.4], [[-0.35], [0.55]], [0.05, 0.1])


def stretched_gaussian(dim: int = 32, ratio: float = 200.0) -> Gaussian:
    """Data with independent coordinates, their stds spread over a ratio; the mean is one std."""
    stds = _spread_stds(dim, ratio)
    return Gaussian(stds, stds**2)


def _along_axes(data: Gaussian) -> Gaussian:
    """The same data turned to its axes, where coordinates are independent; states (D,)."""
    variances, axes = torch.linalg.eigh(data.covariance())
    return Gaussian(data.mean().flatten() @ axes, variances.clamp_min(0))


def _slope(steps: Sequence[int], errors: Sequence[float | None]) -> float | None:
    """Minus the slope of log error over log steps, of the three finest points above rounding."""
    known = [(n, e) for n, e in zip(steps, errors, strict=True) if e is not None]
    if known and not math.isfinite(known[-1][1]):
        return math.nan
    points = [(math.log(n), math.log(e)) for n, e in known if math.isfinite(e) and e > ROUNDING]
    if len(points) < 2:
        return None
    x, y = torch.tensor(points[-3:], dtype=F64).T
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())


def _row(
    setup: Setup,
    law: Gaussian,
    endpoints: GaussianMixture,
    steps: int | None,
    affine: bool,
    seed: int,
    monte_carlo: int,
) -> tuple[VerifyRow, bool, int]:
    """The figures of a number of steps; whether the method is affine, and how often it drew."""
    want = law.mean(), (law.covariance().diagonal() + setup.ratio() ** 2).sqrt()
    if affine:
        mean, std, draws, calls = propagate(setup, law, steps, seed)
        affine = mean is not None
    if not affine:
        source = Normals(seed)
        x, calls = setup.run(law, source, steps, max(monte_carlo, 2))
        (mean, std), draws = (x.mean(0), x.std(0)), source.draws
    figures: dict[str, float | None] = dict.fromkeys(
        ("error_rms", "error_median", "w2", "mean_bias", "std_bias", "w2_stderr")
    )
    if affine or monte_carlo:
        figures |= distance(mean, std, *want, samples=None if affine else monte_carlo)
    if draws == 1:  # the start alone: a deterministic method
        rms, median, calls = endpoint_error(setup, endpoints, steps, seed)
        figures |= {"error_rms": rms, "error_median": median}
    return VerifyRow(steps=steps or 0, nfe=calls, **figures), affine, draws


def _settings(method: Any) -> dict[str, Any]:
    """The fields of a method, if it has declared any."""
    return dataclasses.asdict(cast(Any, method)) if dataclasses.is_dataclass(method) else {}


@checked
def verify(
    sde: SDE,
    method: str | Predictor = "heun",
    *,
    steps: Annotated[Sequence[Size], Field(min_length=1)] = (16, 32, 64, 128, 256, 512),
    data: GaussianMixture | None = None,
    grid: Any = None,
    denoise: bool = False,
    seed: Seed = 0,
    monte_carlo: Index = 4096,
    **options: Any,
) -> VerifyReport:
    """Endpoint errors, orders and exact Wasserstein-2 distances of a method on a process.

    method: a name of `list_samplers()` with its ``options``, or any `Predictor`. Whether it draws
        noise, and is affine in it, is found out by running it; draws must be independent. One that
        wants a data_std and has none is given the data's.
    steps: the numbers of steps; one row for adaptive methods and for a grid of explicit times.
    data: the Gaussian of both measurements, the second along its axes; by default `two_humps()`
        (1-D) for endpoints and `stretched_gaussian()` (32-D) for laws.
    grid, denoise: as in `sample`. An order of convergence is that of ``denoise=False``.
    monte_carlo: samples that stand in for a law that cannot be propagated; 0 leaves it out.

    Not finite results are reported as they are. Raises UserError for data that is not one
    Gaussian and for what `sample` refuses.
    """
    if data is not None and not isinstance(data, Gaussian):
        raise UserError(
            "data must be one Gaussian, whose flow is known: Gaussian(mean, covariance). Got a "
            f"mixture of {data.components}."
        )
    setup = Setup(sde, method, options, grid, denoise)
    facts = setup.predictor()
    adaptive = getattr(facts, "evaluations", 1) == 0
    named = grid is None or isinstance(grid, str)
    explicit = None if named else make_grid(sde, getattr(grid, "times", grid), None)
    fixed = facts.default_steps if explicit is None else len(explicit) - 1
    counts = [None] if adaptive or not named else sorted(set(steps))
    endpoints, law = data or two_humps(), _along_axes(data or stretched_gaussian())
    variances = law.covariance().diagonal()
    affine = bool(getattr(facts, "linear", True)) and not adaptive
    rows, draws = [], 0
    for count in counts:
        row, affine, draws = _row(setup, law, endpoints, count, affine, seed, monte_carlo)
        rows.append(row if row.steps else dataclasses.replace(row, steps=fixed))

    used = [row.steps for row in rows]
    used_grid = (grid or facts.default_grid or sde.natural_grid) if named else "explicit"
    claim = getattr(facts, "claimed_order", getattr(facts, "order", None))
    return VerifyReport(
        process=str(sde),
        method=method if isinstance(method, str) else type(method).__name__,
        settings=_settings(facts) | {"grid": used_grid, "denoise": denoise},
        claimed_order=claim if draws == 1 else None,
        observed_order=None if adaptive else _slope(used, [row.error_rms for row in rows]),
        weak_order=_slope(used, [row.w2 for row in rows]) if affine and draws > 1 else None,
        law="propagated exactly" if affine else f"Monte Carlo of {monte_carlo} samples",
        ends=law_of_ends(sde, law.mean(), variances, setup.ends(), denoise=denoise),
        rows=tuple(rows),
    )
