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
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from score_sde.checks import Count, Index, Positive, Several, UserError, checked
from score_sde.exact import Gaussian
from score_sde.likelihood.few import Few, Smaller, how_many
from score_sde.likelihood.result import Likelihood
from score_sde.likelihood.setting import check_state, clock_of, frame_of
from score_sde.likelihood.solve import Evaluations, Settings, Solve
from score_sde.likelihood.truncation import TOLERANCE
from score_sde.noise import check_seeds
from score_sde.ode.flow import Counted
from score_sde.ode.solve import ODEError
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, batches, check_density, take


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
    levels: Several | None = None,
    scale: Positive = 1.0,
    seeds: Sequence[int] | None = None,
    batch_size: Count | None = None,
    check: Index | None = None,
    progress: bool = False,
) -> Likelihood:
    """log p(x) of each x (B, ...) under a score, with its errors; see the module for what it is.

    score: any callable score(x, t) that autograd can differentiate by x.
    divergence: "exact", "hutchinson", or "auto": exact up to 64 coordinates.
    probes, probe_kind: of Hutchinson's estimate; "rademacher" or "gaussian" (4 to 8 times noisier).
    solver: "adams", at most ``nfe`` evaluations of equal step; or "dopri5", where every sample has
        steps of its own, by ``rtol``, ``atol`` and at most ``max_evaluations``. How large the
        solver_error is, a finer solution of a few samples says (``check``); of dopri5 it is shared
        out over samples by their steps' errors.
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
    check: how many samples are done again with half as many evaluations more, and at smaller
        levels, to see how large errors are; by default one of eight, two to sixteen. 0 leaves the
        estimates of the solution itself, and no check of t_min.

    Raises UserError for settings or states that make no sense, `ODEError` when an adaptive solve
    cannot go on or a result is not finite.
    """
    check_state(score, x)
    check_density(score)
    check = how_many(len(x)) if check is None else check
    if t_min == "auto" and not check:
        raise UserError('t_min="auto" is found on a few samples; check=0 leaves none.')
    by = Settings(
        divergence, probes, probe_kind, solver, nfe, rtol, atol, max_evaluations, truncation,
        t_min, prior,
    )  # fmt: skip
    solve = Solve(sde, by, by.start(sde), by.is_exact(x[0].numel()))
    seeds = check_seeds(seeds, len(x))
    frame, sd = frame_of(x, gaussian, data_std)
    clock = clock_of(frame, sd, solver == "dopri5")
    rows = slice(0, min(check, len(x)))
    few = Few(take(score, rows, len(x)), frame, clock, x[rows], seeds[rows])
    smaller, advice = few.smaller(solve) if check else Smaller(), None
    if t_min == "auto" and smaller.t_min is not None:
        solve, smaller = replace(solve, t_min=smaller.t_min), Smaller(smaller.left)
    elif smaller.change > TOLERANCE:
        advice = smaller.advice(solve.t_min)
        warnings.warn(advice, stacklevel=2)
    counted = Counted(score)
    pieces = list(batches(counted, len(x), batch_size))
    found = [
        solve(part, frame, clock, x[mine], seeds[mine])
        for mine, part in tqdm(pieces, disable=not progress, unit="batch")
    ]
    nats, error, cut, latent = (torch.cat(column) for column in zip(*found, strict=True))
    check_finite(nats)
    if check:
        error = few.solver_error(solve, nats[rows], error)
        cut = torch.hypot(cut, torch.full_like(cut, smaller.unseen(cut[rows])))
    stderr = torch.full_like(error, 0.0 if solve.exact else math.nan)
    if nats.shape[1] > 1:
        stderr = nats.std(1) / math.sqrt(nats.shape[1])
    return Likelihood(
        nats=nats.mean(1), stderr=stderr, latent=latent, nfe=counted.calls // len(pieces),
        solver_error=error, truncation_error=cut, settings=solve.settings(), advice=advice,
        levels=levels, scale=scale, told_by=len(x[rows]),
    )  # fmt: skip


def check_finite(nats: Tensor) -> None:
    """`ODEError` unless all log-likelihoods (B, K) are finite."""
    bad = ~torch.isfinite(nats).all(1)
    if bool(bad.any()):
        raise ODEError(
            f"{int(bad.sum())} of {len(nats)} log-likelihoods are not finite: the score is not "
            "(check the model), or x is far from all data."
        )
