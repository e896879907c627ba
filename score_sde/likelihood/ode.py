r"""Exact likelihood: log p(x) by the probability flow (2011.13456, section 4.3).

    log p(x_min) = log p_T(x_T) + int div f dt,   along the flow from x_min at t_min to x_T at t_max

solved in the coordinates of `flow`, where little is left to integrate. Three things besides the
solver decide what the number means, and are part of the result's settings:

*Divergence.* Exact (D products an evaluation), or Hutchinson's estimate with probes that stay the
same during one solve; then the standard error over probes is reported, per sample.

*Truncation.* The flow ends at t_min, not at 0. With v = s_min^2, the density of y = x/alpha obeys
the heat equation dp/dv = (1/2) Laplace p, so

    corrected   log p_0(x) = log p_min(x) - int_0^v (tr H + |score_y|^2)/2 dv

for which the score and its Jacobian at v, and two evaluations more at 2v and 3v, are enough if data
are smooth or nearly Gaussian on the scale of s_min (see `truncation`; what they are not, shows as
truncation_error). For others (pixels are spread over 1/levels, which is often less) a bound that
always holds (2106.02808, thm. 3), with y = x + s_min eps and Tweedie's D,

    bound       log p_0(x) >= E_eps[log p_min(y) + log N(x; D(y), v I) - log N(y; x, v I)]

and "none" is log p_min(x) as it is, the number most often published; its truncation_error is that
of what it says it is, 0.

*Prior.* "sde": what sampling starts from. "matched": the Gaussian N(mu, A^{-1}) whose score is the
model's at x_T and -x_T,

    log p_T(x) = (3/4) x.score(x) + (1/4) x.score(-x) - mu.A mu / 2 + log det(A / 2 pi) / 2,

with A mu = (score(x) + score(-x))/2 and log det A = D log(tr A / D), two evaluations. For data of
mean m the two differ by about alpha_T |m| / sigma_T nats: 0.007 |m| for VP, 0.02 |m| for VE.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from score_sde.checks import Count, Positive, Size, UserError, checked
from score_sde.exact import Gaussian
from score_sde.likelihood.result import Likelihood
from score_sde.likelihood.setting import check_state, clock_of, frame_of
from score_sde.likelihood.truncation import FEW, TOLERANCE, finer, growth
from score_sde.noise import SeededNoise, check_seeds
from score_sde.ode.adaptive import StoppedError, integrate_each
from score_sde.ode.clock import Clock
from score_sde.ode.divergence import score_and_traces
from score_sde.ode.flow import Counted, Flow, levels, work_dtype
from score_sde.ode.frames import Frame
from score_sde.ode.multistep import Solution, integrate
from score_sde.ode.solve import ODEError
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, batches, check_density, take

Levels = Annotated[Count, Field(ge=2)]
Evaluations = Annotated[Size, Field(ge=8)]
EXACT_UP_TO = 64  # coordinates, for divergence="auto"


@checked
def log_likelihood(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    *,
    divergence: Literal["auto", "exact", "hutchinson"] = "auto",
    probes: Count = 4,
    probe_kind: Literal["rademacher", "gaussian"] = "rademacher",
    solver: Literal["adams", "dopri5"] = "adams",
    nfe: Evaluations = 64,
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    max_evaluations: Count = 10_000,
    truncation: Literal["corrected", "none", "bound"] = "corrected",
    t_min: Positive | Literal["auto"] | None = None,
    prior: Literal["matched", "sde"] = "matched",
    gaussian: Gaussian | None = None,
    data_std: Positive | None = None,
    levels: Levels | None = None,
    scale: Positive = 1.0,
    seeds: Sequence[int] | None = None,
    batch_size: Count | None = None,
    check: int | None = None,
    progress: bool = False,
) -> Likelihood:
    """log p(x) of each x (B, ...) under a score, with its errors; see the module for what it is.

    score: any callable score(x, t) that autograd can differentiate by x.
    divergence: "exact", "hutchinson", or "auto": exact up to 64 coordinates.
    probes, probe_kind: of Hutchinson's estimate; "rademacher" or "gaussian" (4 to 8 times noisier).
    solver: "adams", at most ``nfe`` evaluations of equal step; or "dopri5", where every sample has
        steps of its own, by ``rtol``, ``atol`` and at most ``max_evaluations``. The solver_error is
        the difference to the integral by one order less, of dopri5 the sum of its steps' errors;
        both enlarged by what a coarser solution of a few samples says (``check``).
    truncation: "corrected", "none" or "bound". t_min: where the flow starts; the process's own by
        default, or "auto" for the largest of those from there downwards by which smaller ones
        change less than 1e-3 nats on a few samples. The truncation_error is estimated on all
        samples and on a few at smaller levels, and where it is more than that, the result's
        ``advice``, and a warning, say which t_min would do.
    prior: "matched" or "sde".
    gaussian: a Gaussian near the data, of their mean and covariance for instance: the coordinates
        and its part of the divergence are made with it, the result does not depend on it. Else
        ``data_std`` or the spread of x takes its place.
    levels, scale: of discrete data, for bits/dim: the number of levels and the width of their whole
        range in the model's units (2 for [-1, 1]).
    seeds: one integer a sample, of its probes (and noise, for "bound").
    batch_size: run in batches of at most this many.
    check: how many samples are done again with fewer evaluations, and at smaller levels, to see
        how large errors are; by default one of eight, at most four. 0 leaves the estimates of the
        solution itself, and no check of t_min.

    Raises UserError for settings or states that make no sense, `ODEError` when an adaptive solve
    cannot go on or a result is not finite.
    """
    check_state(score, x)
    check_density(score)
    check = min(FEW, -(-len(x) // 8)) if check is None else check
    if check < (t_min == "auto"):
        raise UserError(f't_min="auto" is found on a few samples; check={check} leaves none.')
    start = sde.t_min if t_min is None or isinstance(t_min, str) else t_min
    solve = Solve(
        sde=sde, divergence=divergence, probes=probes, probe_kind=probe_kind, solver=solver,
        nfe=nfe, rtol=rtol, atol=atol, max_evaluations=max_evaluations, truncation=truncation,
        t_min=start, prior=prior,
    )  # fmt: skip
    seeds = check_seeds(seeds, len(x))
    solve = replace(solve, exact=solve.is_exact(x[0].numel()))
    frame, sd = frame_of(x, gaussian, data_std)
    clock = clock_of(frame, sd, solver == "dopri5")
    few = slice(0, min(check, len(x)))
    asked, smaller, advice = take(score, few, len(x)), Smaller(0.0), None
    if check:
        smaller = solve.smaller(asked, frame, clock, x[few], seeds[few])
    if t_min == "auto" and smaller.t_min is not None:
        solve = replace(solve, t_min=smaller.t_min)
        smaller = replace(smaller, change=min(smaller.change, TOLERANCE))
    elif smaller.change > TOLERANCE:
        advice = smaller.advice(solve.t_min)
        warnings.warn(advice, stacklevel=2)
    counted, found = Counted(score), []
    pieces = list(batches(counted, len(x), batch_size))
    for rows, part in tqdm(pieces, disable=not progress, unit="batch"):
        found.append(solve(part, frame, clock, x[rows], seeds[rows]))
    nats, error, cut, latent = (torch.cat(column) for column in zip(*found, strict=True))
    check_finite(nats)
    if check:
        coarse = solve.coarser()(Counted(asked), frame, clock, x[few], seeds[few])
        differs = (coarse.nats - nats[few]).mean(1).square().mean().sqrt()
        error = error * (differs / error[few].square().mean().sqrt()).nan_to_num(1.0).clamp(min=1.0)
    count = nats.shape[1]
    stderr = torch.full_like(error, 0.0 if solve.exact else math.nan)
    if count > 1:
        stderr = nats.std(1) / math.sqrt(count)
    return Likelihood(
        nats=nats.mean(1), stderr=stderr, latent=latent, nfe=counted.calls // len(pieces),
        solver_error=error, truncation_error=cut + smaller.change, settings=solve.settings(),
        advice=advice, levels=levels, scale=scale,
    )  # fmt: skip


def check_finite(nats: Tensor) -> None:
    """`ODEError` unless all log-likelihoods (B, K) are finite."""
    bad = ~torch.isfinite(nats).all(1)
    if bool(bad.any()):
        raise ODEError(
            f"{int(bad.sum())} of {len(nats)} log-likelihoods are not finite: the score is not "
            "(check the model), or x is far from all data."
        )


class Solved(NamedTuple):
    """Of one batch: log p(x) (B, K) by each probe, its errors (B,), and x_T like x."""

    nats: Tensor
    error: Tensor
    truncation_error: Tensor
    latent: Tensor


@dataclass(frozen=True)
class Smaller:
    """What smaller t_min say of this one: the change in nats, and the one that does (or None)."""

    change: float
    t_min: float | None = None

    def advice(self, t_min: float) -> str:
        """A sentence."""
        found = f"stopping at t_min={t_min:g} leaves an error of about {self.change:.2g} nats"
        if self.t_min is None:
            return f"{found}, and no smaller t_min that was tried does better."
        return f"{found}; t_min={self.t_min:.3g} leaves less than {TOLERANCE:g}."


@dataclass(frozen=True)
class Solve:
    """The settings of `log_likelihood`, checked; called with a batch, it solves the flow."""

    sde: SDE
    divergence: str
    probes: int
    probe_kind: str
    solver: str
    nfe: int
    rtol: float
    atol: float
    max_evaluations: int
    truncation: str
    t_min: float
    prior: str
    exact: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.sde.t_max:
            raise UserError(f"t_min must lie in (0, {self.sde.t_max}) (got {self.t_min}).")

    def is_exact(self, dim: int) -> bool:
        """Whether the divergence is exact for data of ``dim`` coordinates."""
        return self.divergence == "exact" or (self.divergence == "auto" and dim <= EXACT_UP_TO)

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on."""
        adaptive = {"rtol": self.rtol, "atol": self.atol, "max_evaluations": self.max_evaluations}
        return {
            "divergence": "exact" if self.exact else "hutchinson",
            "probes": None if self.exact else self.probes,
            "solver": self.solver,
            **({"nfe": self.nfe} if self.solver == "adams" else adaptive),
            "truncation": self.truncation,
            "t_min": self.t_min,
            "prior": self.prior,
        }

    def __call__(
        self, score: Counted, frame: Frame, clock: Clock, x: Tensor, seeds: Sequence[int]
    ) -> Solved:
        flow, source = self._flow(score, frame, clock, x, seeds)
        (low, high), before, y = levels(self.sde, self.t_min), score.whole.calls, x.flatten(1)
        y = y.to(work_dtype(x))
        noise = None
        if self.truncation == "bound":
            noise = source.draw().flatten(1).to(y)
            y = y + low * noise
        z = frame.to_z(y, low)
        look = flow.look(z, low, hessian=self.exact and self.truncation == "corrected")
        value, traces = look.score, look.traces
        correction, cut = torch.zeros_like(traces), torch.zeros_like(traces[:, 0])
        if self.truncation == "corrected":
            correction, cut = growth(flow, y, low, look)
        left = self.nfe - (score.whole.calls - before) - 2 * (self.prior == "matched")
        end, change = self._integrate(flow, z, flow.turn(z, low, value, traces), low, high, left)
        dim, latent = flow.dim, flow.state(end[:, : flow.dim], high)
        # Of log N(z; 0, I) - log p(z)'s growth, to first order.
        error = ((end * change)[:, :dim].sum(1) + change[:, dim:].mean(1)).abs()
        to_y = frame.log_scale(high, dim) - frame.log_scale(low, dim)
        to_y += dim * math.log(float(flow.time(high)[1]))
        log_p = self._log_prior(flow, latent) + to_y - end[:, dim:] - correction
        if noise is not None:
            off = low * noise + low**2 * frame.unrotate(value)  # D(y) - x
            log_p = log_p + 0.5 * (noise.square() - off.square() / low**2).sum(1, keepdim=True)
        return Solved(log_p, error, cut, latent)

    def coarser(self) -> Solve:
        """The same with fewer evaluations, which differs by about the error of this one."""
        fewer = max(9 * self.nfe // 16, 8)
        return replace(self, nfe=fewer, rtol=3 * self.rtol, atol=3 * self.atol)

    def smaller(
        self, score: ScoreFn, frame: Frame, clock: Clock, x: Tensor, seeds: Sequence[int]
    ) -> Smaller:
        """What smaller t_min say, on these few samples; nothing of a bound, which always holds."""
        if self.truncation != "corrected":
            return Smaller(0.0)
        flow, _ = self._flow(Counted(score), frame, clock, x, seeds)
        y, level = x.flatten(1).to(work_dtype(x)), levels(self.sde, self.t_min)[0]
        found = finer(flow, y, level, self.exact)
        change = float(found.change.square().mean().sqrt())
        if found.level is None or math.isnan(found.level):
            return Smaller(change)
        return Smaller(change, float(flow.time(torch.tensor(found.level, dtype=torch.float64))[0]))

    def _flow(
        self, score: Counted, frame: Frame, clock: Clock, x: Tensor, seeds: Sequence[int]
    ) -> tuple[Flow, SeededNoise]:
        """The flow of a batch, and its noise after the probes."""
        source = SeededNoise(seeds, x.shape[1:], x.dtype, x.device)
        shape = tuple(x.shape[1:])
        return Flow(self.sde, score, frame, clock, shape, x.dtype, self._probes(source)), source

    def _probes(self, source: SeededNoise) -> Tensor | None:
        """(K, B, ...) probes by the samples' seeds; None for an exact divergence."""
        if self.exact:
            return None
        drawn = torch.stack([source.draw() for _ in range(self.probes)])
        return drawn.sign() if self.probe_kind == "rademacher" else drawn

    def _integrate(
        self, flow: Flow, z: Tensor, first: Tensor, low: Tensor, high: Tensor, evaluations: int
    ) -> Solution:
        """(z, growth of log p(z)) (B, D + K) at the level ``high``."""
        start, end = flow.clock.u(float(low)), flow.clock.u(float(high))
        state = torch.cat([z, torch.zeros_like(first[:, flow.dim :])], 1)
        if self.solver == "adams":
            nodes = torch.linspace(start, end, evaluations + 1, dtype=torch.float64)
            return integrate(flow.slope, state, nodes, first=first)
        parts = (flow.dim, state.shape[1] - flow.dim)
        try:
            return integrate_each(
                flow, state, start, end, self.rtol, self.atol, self.max_evaluations, parts
            )
        except StoppedError as error:
            where = float(flow.time(flow.clock.level(torch.tensor(error.where).double()))[0])
            raise ODEError(
                f"The flow stopped at t={where:.3g} {error}. Check that the score is finite; else "
                "loosen rtol and atol, raise t_min, or use solver=adams with nfe."
            ) from error

    def _log_prior(self, flow: Flow, latent: Tensor) -> Tensor:
        """log p_T(x_T), (B, 1 or K)."""
        sde, dim, dtype = self.sde, flow.dim, work_dtype(latent)
        if self.prior == "sde":
            return sde.prior_log_prob(latent.to(dtype))[:, None]
        t = torch.tensor(sde.t_max, dtype=torch.float64)
        found = score_and_traces(flow.score, latent, t, flow.probes)
        with torch.no_grad():
            mirrored = flow.score(-latent, t)
        x, at_x, at_minus_x = (v.flatten(1).to(dtype) for v in (latent, found.score, mirrored))
        precision = -found.traces.T.to(x) / dim
        if not bool((precision > 0).all()):
            raise UserError(
                "the score at t_max is not that of anything like a Gaussian, so no prior matches "
                'it; take prior="sde".'
            )
        pull = 0.5 * (at_x + at_minus_x)  # A mu
        exponent = (x * (0.75 * at_x + 0.25 * at_minus_x)).sum(1, keepdim=True)
        exponent = exponent - 0.5 * pull.square().sum(1, keepdim=True) / precision
        return exponent + 0.5 * dim * (precision / (2 * math.pi)).log()
