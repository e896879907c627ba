"""The probability flow of one batch, from t_min to t_max, solved for log p: `Solve`.

What it solves and corrects is told in `ode`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import Count, Positive, Size, UserError, validated
from score_sde.likelihood.truncation import growth
from score_sde.noise import SeededNoise
from score_sde.ode.adaptive import StoppedError, integrate_each
from score_sde.ode.along import LESS, Along
from score_sde.ode.clock import Clock
from score_sde.ode.divergence import score_and_traces
from score_sde.ode.flow import Counted, Flow, levels, work_dtype
from score_sde.ode.frames import Frame
from score_sde.ode.multistep import integrate
from score_sde.ode.solve import ODEError
from score_sde.processes.sdes import SDE

AGAIN = 2  # of the first states that are corrected, and asked about again, so that a path is smooth
EXACT_UP_TO = 64  # coordinates, for divergence="auto"
Evaluations = Annotated[Size, Field(ge=8)]


class Solved(NamedTuple):
    """Of one batch: log p(x) (B, K) by each probe, its errors (B,), and x_T like x."""

    nats: Tensor
    error: Tensor
    truncation_error: Tensor
    latent: Tensor


class End(NamedTuple):
    """What a flow has come to.

    z: where (B, D). asked: where its density is known to have grown by ``growth`` (B, K), as far as
    ``error`` (B,).
    """

    z: Tensor
    asked: Tensor
    growth: Tensor
    error: Tensor


@validated("likelihood")
@dataclass(frozen=True)
class Settings:
    """How `log_likelihood` solves, which tells what each of them is."""

    divergence: Literal["auto", "exact", "hutchinson"] = "auto"
    probes: Count = 4
    probe_kind: Literal["rademacher", "gaussian"] = "rademacher"
    solver: Literal["adams", "dopri5"] = "adams"
    nfe: Evaluations = 64
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    max_evaluations: Count = 10_000
    truncation: Literal["corrected", "none", "bound"] = "corrected"
    t_min: Positive | Literal["auto"] | None = None
    prior: Literal["matched", "sde"] = "matched"

    def __post_init__(self) -> None:
        if self.t_min == "auto" and self.truncation != "corrected":
            raise UserError(
                f't_min="auto" is the one below which the correction finds nothing; truncation='
                f'"{self.truncation}" has none. Give a number, or take truncation="corrected".'
            )

    def start(self, sde: SDE) -> float:
        """The t_min from which a process is solved, at first; UserError for one outside of it."""
        t_min = sde.t_min if self.t_min is None or isinstance(self.t_min, str) else self.t_min
        if not 0 < t_min < sde.t_max:
            raise UserError(f"t_min must lie in (0, {sde.t_max}) (got {t_min}).")
        return t_min

    def is_exact(self, dim: int) -> bool:
        """Whether the divergence is exact for data of ``dim`` coordinates."""
        return self.divergence == "exact" or (self.divergence == "auto" and dim <= EXACT_UP_TO)


@dataclass(frozen=True)
class Solve:
    """Called with a batch, it solves the flow by the settings, from t_min on."""

    sde: SDE
    by: Settings
    t_min: float
    exact: bool

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on."""
        by = self.by
        adaptive = {"rtol": by.rtol, "atol": by.atol, "max_evaluations": by.max_evaluations}
        return {
            "divergence": "exact" if self.exact else "hutchinson",
            "probes": None if self.exact else by.probes,
            "solver": by.solver,
            **({"nfe": by.nfe} if by.solver == "adams" else adaptive),
            "truncation": by.truncation,
            "t_min": self.t_min,
            "prior": by.prior,
        }

    def __call__(
        self, score: Counted, frame: Frame, clock: Clock, x: Tensor, seeds: Sequence[int]
    ) -> Solved:
        flow, source = self.flow(score, frame, clock, x, seeds)
        (low, high), before, y = levels(self.sde, self.t_min), score.whole.calls, x.flatten(1)
        y = y.to(work_dtype(x))
        noise = None
        if self.by.truncation == "bound":
            noise = source.draw().flatten(1).to(y)
            y = y + low * noise
        z = frame.to_z(y, low)
        look = flow.look(z, low, hessian=self.exact and self.by.truncation == "corrected")
        value, traces = look.score, look.traces
        correction, cut = torch.zeros_like(traces), torch.zeros_like(traces[:, 0])
        if self.by.truncation == "corrected":
            correction, cut = growth(flow, y, low, look)
        left = self.by.nfe - (score.whole.calls - before) - 2 * (self.by.prior == "matched")
        end = self._integrate(flow, z, flow.turn(z, low, value, traces), low, high, left)
        dim = flow.dim
        to_y = frame.log_scale(high, dim) - frame.log_scale(low, dim)
        to_y += dim * math.log(float(flow.time(high)[1]))
        log_p = self._log_prior(flow, flow.state(end.asked, high)) + to_y - end.growth - correction
        if noise is not None:
            off = low * noise + low**2 * frame.unrotate(value)  # D(y) - x
            log_p = log_p + 0.5 * (noise.square() - off.square() / low**2).sum(1, keepdim=True)
        return Solved(log_p, end.error, cut, flow.state(end.z, high))

    def finer(self) -> Solve:
        """The same with half as many evaluations more, or a third of the tolerance."""
        by = self.by
        more = replace(by, nfe=3 * by.nfe // 2, rtol=by.rtol / 3, atol=by.atol / 3)
        return replace(self, by=more)

    def flow(
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
        drawn = torch.stack([source.draw() for _ in range(self.by.probes)])
        return drawn.sign() if self.by.probe_kind == "rademacher" else drawn

    def _integrate(
        self, flow: Flow, z: Tensor, first: Tensor, low: Tensor, high: Tensor, evaluations: int
    ) -> End:
        """What the flow comes to at the level ``high``."""
        start, end = flow.clock.u(float(low)), flow.clock.u(float(high))
        state, dim = torch.cat([z, torch.zeros_like(first[:, flow.dim :])], 1), flow.dim
        if self.by.solver == "adams":
            again = AGAIN if evaluations > 4 * AGAIN else 0
            nodes = torch.linspace(start, end, evaluations - again + 1, dtype=torch.float64)
            paths = Along(nodes), Along(nodes, LESS)

            def visit(u: Tensor, state: Tensor, slope: Tensor) -> None:
                node = flow.node(state, slope, u)
                for path in paths:
                    path.visit(node)

            reached = integrate(flow.slope, state, nodes, first=first, again=again, visit=visit)
            growth, less = (path.change for path in paths)
            error = (growth - less).mean(1).abs()
            return End(reached[:, :dim], paths[0].held[-1].state, growth, error)
        parts = [dim, state.shape[1] - dim]
        try:
            found = integrate_each(
                flow, state, start, end, self.by.rtol, self.by.atol, self.by.max_evaluations, parts
            )
        except StoppedError as error:
            where = float(flow.time(flow.clock.level(torch.tensor(error.where).double()))[0])
            raise ODEError(
                f"The flow stopped at t={where:.3g} {error}. Check that the score is finite; else "
                "loosen rtol and atol, raise t_min, or use solver=adams with nfe."
            ) from error
        (z, growth), change = found.state.split(parts, 1), found.state * found.change
        # Of log N(z; 0, I) - log p(z)'s growth, to first order.
        off = change[:, :dim].sum(1) + found.change[:, dim:].mean(1)
        return End(z, z, growth, off.abs())

    def _log_prior(self, flow: Flow, latent: Tensor) -> Tensor:
        """log p_T(x_T), (B, 1 or K)."""
        sde, dim, dtype = self.sde, flow.dim, work_dtype(latent)
        if self.by.prior == "sde":
            return sde.prior_log_prob(latent.to(dtype))[:, None]
        t = torch.tensor(sde.t_max, dtype=torch.float64)
        found = score_and_traces(flow.score, latent, t, flow.probes)
        with torch.no_grad():
            mirrored = flow.score(-latent, t)
        x, at_x, at_minus_x = (v.flatten(1).to(dtype) for v in (latent, found.score, mirrored))
        precision = -found.traces.T.to(x) / dim
        if not bool(torch.isfinite(precision).all()):
            raise ODEError(
                "the score is not finite where the flow ends, at t_max: check the model, that x is "
                "in its range, and data_std."
            )
        if not bool((precision > 0).all()):
            raise UserError(
                "the score at t_max is not that of anything like a Gaussian, so no prior matches "
                'it; take prior="sde".'
            )
        pull = 0.5 * (at_x + at_minus_x)  # A mu
        exponent = (x * (0.75 * at_x + 0.25 * at_minus_x)).sum(1, keepdim=True)
        exponent = exponent - 0.5 * pull.square().sum(1, keepdim=True) / precision
        return exponent + 0.5 * dim * (precision / (2 * math.pi)).log()
