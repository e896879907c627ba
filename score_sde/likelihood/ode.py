r"""Exact likelihood: log p(x) by the probability flow (2011.13456, section 4.3).

    log p(x_min) = log p_T(x_T) + int div f dt,   along the flow from x_min at t_min to x_T at t_max

solved in the coordinates of `flow`, where little is left to integrate. Three things besides the
solver decide what the number means, and are part of the result's settings:

*Divergence.* Exact (D products an evaluation), or Hutchinson's estimate with probes that stay the
same during one solve; then the standard error over probes is reported, per sample.

*Truncation.* The flow ends at t_min, not at 0. With v = s_min^2, the density of y = x/alpha obeys
the heat equation dp/dv = (1/2) Laplace p. So for data that are smooth on the scale of s_min

    corrected   log p_0(x) = log p_min(x) - int_0^v (tr H + |score_y|^2)/2 dv

where the first evaluation gives the integrand at v; with two more at 2v and 3v the integral is of
third order. For data that are not smooth (pixels are spread over 1/levels, which is often less) a
bound that always holds (2106.02808, thm. 3), with y = x + s_min eps and Tweedie's D,

    bound       log p_0(x) >= E_eps[log p_min(y) + log N(x; D(y), v I) - log N(y; x, v I)]

and "none" is log p_min(x) as it is, the number most often published.

*Prior.* "sde": what sampling starts from. "matched": the Gaussian N(mu, A^{-1}) whose score is the
model's at x_T and -x_T,

    log p_T(x) = (3/4) x.score(x) + (1/4) x.score(-x) - mu.A mu / 2 + log det(A / 2 pi) / 2,

with A mu = (score(x) + score(-x))/2 and log det A = D log(tr A / D), two evaluations. For data of
mean m the two differ by about alpha_T |m| / sigma_T nats: 0.007 |m| for VP, 0.02 |m| for VE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from score_sde.exact import Gaussian
from score_sde.likelihood.divergence import score_and_traces
from score_sde.likelihood.flow import Clock, Flow, Frame, levels, work_dtype
from score_sde.likelihood.result import Likelihood
from score_sde.noise import SeededNoise, fresh_seeds
from score_sde.ode.adams import (
    AdamsError,
    Slopes,
    Solution,
    integrate,
    integrate_adaptively,
    polynomial_weights,
)
from score_sde.ode.solve import SOLVERS, ODEError, solve_ode
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, check_density, take

EXACT_UP_TO = 64  # coordinates, for divergence="auto"
ADAMS = ("adams", "adaptive_adams")
TRUNCATIONS = ("corrected", "none", "bound")


def check_state(score: ScoreFn, x: Tensor) -> None:
    """ValueError for states or scores that no likelihood can be computed of."""
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x must be (B, ...) with B >= 1 and at least two axes; got {x.shape}.")
    if not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype}: give floating-point values in the model's range, dequantised if they "
            "are levels (`dequantize`)."
        )
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(f"x is not finite in {int(bad.sum())} of {len(x)} samples.")
    for module in score.modules() if isinstance(score, nn.Module) else ():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError("dropout is on, so the score is random; call score.eval() first.")


def frame_of(x: Tensor, gaussian: Gaussian | None, data_std: float | None) -> tuple[Frame, float]:
    """The frame of `flow`, and the data's scale for its clock.

    Without a Gaussian or a data_std the mean and the spread of all numbers in x: they set the
    coordinates, not the result.
    """
    options: dict[str, Any] = {"dtype": work_dtype(x), "device": x.device}
    if gaussian is not None:
        variances, axes = torch.linalg.eigh(gaussian.covariance())
        frame = [gaussian.mean().flatten(), variances.clamp_min(0), axes]
        return Frame(*(part.to(options["dtype"]).to(x.device) for part in frame)), gaussian.std()
    mean = 0.0 if data_std is not None else float(x.mean())
    spread, size = float((x - mean).square().mean().sqrt()), float(x.square().mean().sqrt())
    sd = data_std if data_std is not None else max(spread, 0.1 * size, 1e-3)
    if not (sd > 0 and math.isfinite(sd)):
        raise ValueError(f"data_std must be a positive number (got {sd}).")
    return Frame(torch.tensor(mean, **options), torch.tensor(sd**2, **options)), sd


def clock_of(frame: Frame, sd: float, adaptive: bool = False, finest: float | None = None) -> Clock:
    """k and c of `flow`, from the scales of the data. Adaptive steps need less help near them."""
    widest = float(frame.variances.max().sqrt())
    k = (0.1 if adaptive else 0.03) * sd
    return Clock(k if finest is None else min(k, finest / 4), 2 * max(widest, sd))


def _log_prior(flow: Flow, latent: Tensor, matched: bool) -> Tensor:
    """log p_T(x_T), (1 | K, B)."""
    sde, dim = flow.sde, latent[0].numel()
    if not matched:
        return sde.prior_log_prob(latent.to(work_dtype(latent)))[None]
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    found = score_and_traces(flow.score, latent, t, flow.probes)
    with torch.no_grad():
        mirrored = flow.score(-latent, t)
    flow.nfe += 2
    x, here, there = (v.flatten(1).to(work_dtype(latent)) for v in (latent, found.score, mirrored))
    precision = -found.traces.to(x) / dim
    if not bool((precision > 0).all()):
        raise ValueError(
            "the score at t_max is not that of anything like a Gaussian, so no prior matches it; "
            'take prior="sde".'
        )
    pull = 0.5 * (here + there)  # A mu
    exponent = (x * (0.75 * here + 0.25 * there)).sum(1) - 0.5 * pull.square().sum(1) / precision
    return exponent + 0.5 * dim * (precision / (2 * math.pi)).log()


def _probes(x: Tensor, seeds: Sequence[int], count: int, kind: str) -> tuple[Tensor, SeededNoise]:
    """(count, B, ...) probes, by sample's seed, and the stream behind them."""
    source = SeededNoise(seeds, x.shape[1:], x.dtype, x.device)
    drawn = [source.draw() for _ in range(count)]
    probes = torch.stack(drawn) if drawn else torch.empty(0)
    return (probes.sign() if kind == "rademacher" else probes), source


def log_likelihood(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    *,
    divergence: str = "auto",
    probes: int = 4,
    probe_kind: str = "rademacher",
    solver: str = "adams",
    nfe: int = 64,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
    truncation: str = "corrected",
    t_min: float | None = None,
    prior: str = "matched",
    gaussian: Gaussian | None = None,
    data_std: float | None = None,
    finest: float | None = None,
    levels: int | None = None,
    scale: float = 1.0,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Likelihood:
    """log p(x) of each x (B, ...) under a score, with its errors; see the module for what it is.

    score: any callable score(x, t) that autograd can differentiate by x.
    divergence: "exact", "hutchinson", or "auto": exact up to 64 coordinates.
    probes, probe_kind: of Hutchinson's estimate; "rademacher" or "gaussian" (4 to 8 times noisier).
    solver: "adams", at most ``nfe`` evaluations of equal step, or "adaptive_adams", with steps by
        ``rtol``, ``atol`` and at most ``max_evaluations``; their solver_error is the difference
        to the integral by one order less. Or one of torchdiffeq's: dopri5, dopri8, bosh3, ... with
        the same settings; its solver_error is that of a few samples (1 in 32, at most 4) from a
        second solve at ten times the tolerance, else nan.
    truncation: "corrected", "none" or "bound". t_min: where the flow starts; the process's own.
    prior: "matched" or "sde".
    gaussian: a Gaussian near the data, of their mean and covariance for instance: the coordinates
        and its part of the divergence are made with it, the result does not depend on it. Else
        ``data_std`` or the spread of x takes its place.
    finest: the smallest spread of thin data, if known: equal steps then resolve noise down to a
        quarter of it. Start the flow below it as well (``t_min``).
    levels, scale: of discrete data, for bits/dim: the number of levels and the width of their whole
        range in the model's units (2 for [-1, 1]).
    seeds: one integer a sample, of its probes (and noise, for "bound").
    batch_size: run in batches of at most this many.

    Raises ValueError for settings or states that make no sense, `ODEError` when an adaptive solve
    cannot go on or a result is not finite.
    """
    check_state(score, x)
    check_density(score)
    for name, value, choices in (
        ("divergence", divergence, ("auto", "exact", "hutchinson")),
        ("probe_kind", probe_kind, ("rademacher", "gaussian")),
        ("solver", solver, (*ADAMS, *SOLVERS)),
        ("truncation", truncation, TRUNCATIONS),
        ("prior", prior, ("matched", "sde")),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r} is unknown; choose from {list(choices)}.")
    if probes < 1:
        raise ValueError(f"probes must be >= 1 (got {probes}).")
    if nfe < 8:
        raise ValueError(f"nfe must be >= 8 (got {nfe}).")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be >= 1 (got {batch_size}).")
    if levels is not None and (levels < 2 or not scale > 0):
        raise ValueError(f"levels must be >= 2 and scale positive (got {levels}, {scale}).")
    if t_min is not None and not 0 < t_min < sde.t_max:
        raise ValueError(f"t_min must lie in (0, {sde.t_max}) (got {t_min}).")
    if finest is not None and not finest > 0:
        raise ValueError(f"finest must be positive (got {finest}).")
    dim = x[0].numel()
    exact = divergence == "exact" or (divergence == "auto" and dim <= EXACT_UP_TO)
    seeds = fresh_seeds(len(x)) if seeds is None else list(seeds)
    if len(seeds) != len(x):
        raise ValueError(f"{len(x)} samples need {len(x)} seeds; got {len(seeds)}.")
    frame, sd = frame_of(x, gaussian, data_std)
    tolerances = {"rtol": rtol, "atol": atol, "max_evaluations": max_evaluations}
    fixed = {"nfe": nfe} if solver == "adams" else tolerances
    clock = clock_of(frame, sd, solver != "adams", finest)
    solve = _Solve(
        sde, score, frame, clock, solver, fixed, truncation, t_min, prior,
        None if exact else (probes, probe_kind),
    )  # fmt: skip
    parts, batch = [], batch_size or len(x)
    for first in tqdm(range(0, len(x), batch), disable=not progress, unit="batch"):
        rows = slice(first, first + batch)
        parts.append(replace(solve, score=take(score, rows))(x[rows], seeds[rows]))
    nats, errors, latents = (torch.cat(column) for column in zip(*(p[:3] for p in parts)))  # noqa: B905
    if not bool(torch.isfinite(nats).all()):
        raise ODEError(
            f"{int((~torch.isfinite(nats)).any(1).sum())} of {len(x)} log-likelihoods are not "
            "finite: the score is not (check the model), or x is far from all data."
        )
    count = nats.shape[1]
    stderr = nats.std(1) / math.sqrt(count) if count > 1 else torch.full_like(errors, math.nan)
    settings: dict[str, Any] = {"divergence": "exact" if exact else "hutchinson"}
    settings |= {"probes": None if exact else probes, "solver": solver, **fixed}
    settings |= {"truncation": truncation, "t_min": sde.t_min if t_min is None else t_min}
    settings |= {"prior": prior}
    return Likelihood(
        nats=nats.mean(1), stderr=torch.zeros_like(errors) if exact else stderr, latent=latents,
        nfe=parts[0][3], solver_error=errors, settings=settings, levels=levels, scale=scale,
    )  # fmt: skip


@dataclass(frozen=True)
class _Solve:
    """One batch with all settings: nats (B, K), solver error (B,), latents, evaluations."""

    sde: SDE
    score: ScoreFn
    frame: Frame
    clock: Clock
    solver: str
    settings: dict[str, Any]
    truncation: str
    t_min: float | None
    prior: str
    hutchinson: tuple[int, str] | None

    def __call__(self, x: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, int]:
        count, kind = self.hutchinson or (0, "rademacher")
        probes, source = _probes(x, seeds, count, kind)
        flow = Flow(
            self.sde, self.score, self.frame, self.clock, tuple(x.shape[1:]), x.dtype,
            None if self.hutchinson is None else probes,
        )  # fmt: skip
        low, high = levels(self.sde, self.t_min)
        y = x.flatten(1).to(work_dtype(x))
        noise = source.draw().flatten(1).to(y) if self.truncation == "bound" else None
        z = self.frame.to_z(y if noise is None else y + low * noise, low)
        first = flow.slopes(z, self.clock.u(low))
        assert flow.first is not None
        score, traces = flow.first
        correction = torch.zeros_like(traces)
        if self.truncation == "corrected":
            heat = [traces + score.square().sum(1)]
            for v in (2, 3):
                level = math.sqrt(v) * low
                score, traces = flow.score_y(self.frame.to_z(y, level), level)
                heat.append(traces + score.square().sum(1))
            weights = polynomial_weights([1, 2, 3], 0, 1)
            for weight, value in zip(weights, heat, strict=True):
                correction = correction + 0.5 * low**2 * weight * value

        end, growth, error = self._integrate(flow, z, first, low, high)
        latent = flow.state(end, high)
        dim = z.shape[1]
        to_y = self.frame.log_scale(high, dim) - self.frame.log_scale(low, dim)
        to_y += dim * math.log(flow.time(high)[1])
        log_p = _log_prior(flow, latent, self.prior == "matched") + to_y - growth  # (K, B)
        log_p = log_p - correction
        if noise is not None:
            denoised_error = low * noise + low**2 * self._unrotated(score)  # D(y) - x
            log_p = log_p + 0.5 * (noise.square() - denoised_error.square() / low**2).sum(1)
        return log_p.T, error, latent, flow.nfe

    def _unrotated(self, v: Tensor) -> Tensor:
        return v if self.frame.axes is None else v @ self.frame.axes.T

    def _integrate(
        self, flow: Flow, z: Tensor, first: Slopes, low: float, high: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z at the end (B, D), growth of log p(z) (K, B), and the error of its mean (B,)."""
        start, end = self.clock.u(low), self.clock.u(high)
        if self.solver in ADAMS:
            found = self._adams(flow, z, first, start, end)
            # Of log N(z; 0, I) - growth, to first order.
            change = (found.z * found.z_change).sum(1) + found.growth_change.mean(0)
            return found.z, found.growth, change.abs()
        width = z.shape[1]
        state = torch.cat([z, torch.zeros_like(first[1].T)], 1)
        whole = self._adapt(flow, state, start, end, 1.0)
        few = min(4, 1 + len(z) // 32)
        # Errors are in proportion to the tolerance, so ten times it changes the result by nine.
        loose = self._adapt(flow.part(few), state[:few], start, end, 10.0)
        error = torch.full_like(z[:, 0], math.nan)
        error[:few] = (_at_end(whole[:few], width) - _at_end(loose, width)).abs() / 9
        return whole[:, :width], whole[:, width:].T, error

    def _adams(self, flow: Flow, z: Tensor, first: Slopes, start: float, end: float) -> Solution:
        if self.solver == "adams":
            steps = self.settings["nfe"] - flow.nfe - 2 * (self.prior == "matched")
            return integrate(flow.slopes, z, start, end, steps, first=first)
        try:
            return integrate_adaptively(flow.slopes, z, start, end, first=first, **self.settings)
        except AdamsError as error:
            raise ODEError(
                f"The flow stopped after {flow.nfe} evaluations: {error}. Check that the score is "
                "finite; else loosen rtol and atol, raise t_min, or use solver=adams with nfe."
            ) from error

    def _adapt(self, flow: Flow, state: Tensor, start: float, end: float, factor: float) -> Tensor:
        """(z, growth) (B, D + K) at time end, by torchdiffeq at a multiple of the tolerance."""
        width = len(state[0]) - (1 if flow.probes is None else len(flow.probes))

        def field(u: Tensor, state: Tensor) -> Tensor:
            dz, growth = flow.slopes(state[:, :width], float(u))
            return torch.cat([dz, growth.T], 1)

        u = torch.tensor([start, end], dtype=torch.float64)
        rtol, atol = self.settings["rtol"] * factor, self.settings["atol"] * factor
        most = self.settings["max_evaluations"]
        return solve_ode(field, state, u[0], u[1], rtol, atol, self.solver, most)


def _at_end(state: Tensor, width: int) -> Tensor:
    """log N(z; 0, I) - growth, up to a constant, (B,): what an error of the state changes."""
    return -0.5 * state[:, :width].square().sum(1) - state[:, width:].mean(1)
