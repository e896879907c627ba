r"""A laboratory for score fields: what the Jacobian J = ds/dx of a score says of data and model.

    divergence   tr J, the curvature of log p_t
    curl         |J - J^T| / (2 |J|): 0 for a gradient, which a network need not be; 1 if it turns
    covariance   Cov[x_0 | x_t] = (sigma/alpha)^2 (I + sigma^2 J), by Tweedie's second order
    rank         (tr C)^2 / |C|^2 of that covariance: how many directions are still open at t
    dimension    of the data near x_0, by two ways (below)
    residual     of the Fokker-Planck equation that the scores of one process obey (2210.04296); in
                 y = x/alpha the data are convolved with N(0, r^2), r = sigma/alpha, whose scores
                 obey the heat equation

        ds/dr = grad[ r (tr J + |s|^2) ]

Dimension by the spectrum (2212.12611): near the data the score points to their manifold, so scores
at many noised copies of x_0 span what is normal to it; the largest gap of their singular values
says how many directions that are. By the slope of the likelihood (2406.03537): adding noise of
level u = sigma/alpha to a density on d of D dimensions makes it fall as u^(d - D), so

    d = D + d log p_u(x_0) / d log u = D + sigma^2 (tr J + |s|^2)    at alpha x_0.

All of it takes any score(x, t) that autograd can differentiate, and the first two any field, as a
denoiser; states are (B, ...), D their number of coordinates. Up to 64 coordinates Jacobians are
exact, D products each. Beyond, traces and norms are estimated by ``probes`` random directions, as
the functions say; one evaluation of the network and one or two products a probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.checks import Count, UserError, checked
from score_sde.noise import SeededNoise
from score_sde.ode.divergence import products
from score_sde.processes.expand import as_time, expand
from score_sde.processes.sdes import SDE
from score_sde.sampling import ScoreFn

EXACT_UP_TO = 64  # coordinates
PROBES = 8


@checked
def jacobian(score: ScoreFn, x: Tensor, t: Tensor | float) -> Tensor:
    """J (B, D, D) of the score at (x, t), J[b, i, j] = ds_i/dx_j, by D products."""
    x, value = _evaluated(score, x, t)
    dim = x[0].numel()
    rows = []
    for first in range(0, dim, EXACT_UP_TO):
        basis = torch.eye(dim, dtype=x.dtype, device=x.device)[first : first + EXACT_UP_TO]
        vectors = basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        rows.append(products(value, x, vectors).flatten(2).detach())
    return torch.cat(rows).transpose(0, 1)


class Invariants(NamedTuple):
    """Of J at each state, (B,) each: tr J, |J - J^T|^2 / 4 and |J|^2 (Frobenius)."""

    trace: Tensor
    antisymmetric: Tensor
    square: Tensor

    def curl(self) -> float:
        """The root of the mean antisymmetric part over the mean square, 0 to 1."""
        return float((self.antisymmetric.mean() / self.square.mean().clamp_min(1e-300)).sqrt())


@checked
def invariants(
    field: ScoreFn, x: Tensor, t: Tensor | float, probes: Count | None = None, seed: int = 0
) -> Invariants:
    """Trace, asymmetry and size of the Jacobian of a field(x, t).

    probes: signs v_1..v_K at random, at least two, for the unbiased estimates v.Jv of the trace,
    |J^T v|^2 of the square, and (v_i.J v_j - v_j.J v_i)^2 / 4 of the antisymmetric part, which are
    means over all v and all pairs. Exact when None up to 64 coordinates, else 8.
    """
    if (count := _probes(x, probes)) is None:
        J = jacobian(field, x, t)
        odd = (J - J.mT).flatten(1).square().sum(1) / 4
        return Invariants(J.diagonal(dim1=1, dim2=2).sum(1), odd, J.flatten(1).square().sum(1))
    count = max(count, 2)
    v = _signs(count, x, seed)
    x, value = _evaluated(field, x, t)
    found = products(value, x, v).detach().flatten(2)  # J^T v, (K, B, D)
    pairs = torch.einsum("ibd,jbd->bij", v.flatten(2), found)
    odd = (pairs - pairs.mT).square().sum((1, 2)) / (4 * count * (count - 1))
    trace = pairs.diagonal(dim1=1, dim2=2).mean(1)
    return Invariants(trace, odd, found.square().sum(2).mean(0))


@checked
def divergence(
    score: ScoreFn, x: Tensor, t: Tensor | float, probes: Count | None = None, seed: int = 0
) -> Tensor:
    """tr J (B,). probes: of Hutchinson's estimate, see `invariants`."""
    return invariants(score, x, t, probes, seed).trace


@checked
def curl(
    field: ScoreFn, x: Tensor, t: Tensor | float, probes: Count | None = None, seed: int = 0
) -> Tensor:
    """|J - J^T| / (2 |J|) (B,): 0 for the gradient of anything, 1 for a rotation.

    probes: see `invariants`.
    """
    found = invariants(field, x, t, probes, seed)
    return (found.antisymmetric / found.square).sqrt()


@checked
def posterior_covariance(sde: SDE, score: ScoreFn, x: Tensor, t: Tensor | float) -> Tensor:
    """Cov[x_0 | x_t = x] as (B, D, D): (sigma/alpha)^2 (I + sigma^2 J), made symmetric."""
    J = jacobian(score, x, t)
    alpha, sigma = _level(sde, t, x)
    eye = torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
    return (sigma / alpha) ** 2 * (eye + sigma**2 * (J + J.mT) / 2)


@checked
def effective_rank(
    sde: SDE, score: ScoreFn, x: Tensor, t: Tensor | float, probes: Count | None = None,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """(tr C)^2 / |C|^2 (B,) of C = Cov[x_0 | x_t]: the number of directions that are open.

    D for noise alone, d for data on d dimensions once the manifold is found, down to what is left
    of details. probes: C's trace and norm by v.Cv and |Cv|^2; see `divergence`.
    """
    if (count := _probes(x, probes)) is None:
        C = posterior_covariance(sde, score, x, t)
        trace, square = C.diagonal(dim1=1, dim2=2).sum(1), C.flatten(1).square().sum(1)
    else:
        x, value = _evaluated(score, x, t)
        v = _signs(count, x, seed)
        Cv = v + _level(sde, t, x)[1] ** 2 * products(value, x, v)  # but for the factor
        trace = (v * Cv).flatten(2).sum(2).mean(0).detach()
        square = Cv.flatten(2).square().sum(2).mean(0).detach()
    return trace**2 / square


class Dimension(NamedTuple):
    """The dimension of the data near each x_0 (B,), and the singular values (B, D), falling."""

    value: Tensor
    spectrum: Tensor


@checked
@torch.no_grad()
def dimension_by_spectrum(
    sde: SDE, score: ScoreFn, x0: Tensor, t: Tensor | float, samples: Count | None = None,
    seed: int = 0,
) -> Dimension:  # fmt: skip
    """The data's dimension near each x0 (B, ...) by the span of scores there (2212.12611).

    t: small, so that the noise is far below the data's own spread. samples: scores for each x0, at
    least D; 4 D when None.
    """
    dim = x0[0].numel()
    n = 4 * dim if samples is None else samples
    if n < dim:
        raise UserError(f"samples must be at least the {dim} coordinates of a state (got {n}).")
    alpha, sigma = _level(sde, t, x0)
    noise = SeededNoise(range(seed, seed + n), tuple(x0.shape[1:]), x0.dtype, x0.device).draw()
    spectra = []
    for x in x0:
        found = score(alpha * x + sigma * noise, as_time(t))
        spectra.append(torch.linalg.svdvals(found.flatten(1).double().cpu()))
    spectrum = torch.stack(spectra)
    normal = (spectrum[:, :-1] - spectrum[:, 1:]).argmax(1) + 1
    return Dimension(dim - normal, spectrum)


@checked
def dimension_by_slope(
    sde: SDE, score: ScoreFn, x0: Tensor, t: Tensor | float, probes: Count | None = None,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """The data's dimension near each x0 (B, ...), D + sigma^2 (tr J + |s|^2) (B,) (2406.03537).

    t, probes: as of `dimension_by_spectrum` and `divergence`.
    """
    alpha, sigma = _level(sde, t, x0)
    x = alpha * x0
    with torch.no_grad():
        size = score(x, as_time(t)).flatten(1).square().sum(1)
    return x[0].numel() + sigma**2 * (divergence(score, x, t, probes, seed) + size)


@checked
def fokker_planck_residual(
    sde: SDE, score: ScoreFn, x: Tensor, t: float, probes: Count | None = None, seed: int = 0
) -> Tensor:
    """|ds/dr - grad[...]|^2 over the mean of |ds/dr|^2 (B,): its mean is the share of the scores'
    change with noise that the equation does not explain, 0 if they are those of one process.

    ds/dr is a central difference over 2 % of r. probes: of the divergence, see `invariants`; they
    are taken in two halves whose errors are independent, so that the product of both residuals is
    unbiased, and may be below 0.
    """
    alpha, sigma = _level(sde, t, x)
    y, r, dim = x.detach() / alpha, float(sigma.reshape(-1)[0] / alpha.reshape(-1)[0]), x[0].numel()

    def of(y: Tensor, r: float) -> Tensor:
        time = sde.time_of_log_snr(torch.tensor(-2 * math.log(r), dtype=torch.float64))
        scale = expand(sde.alpha(time), y)
        return scale * score(scale * y, time)

    with torch.no_grad():
        change = (of(y, 1.01 * r) - of(y, 0.99 * r)) / (0.02 * r)
    if (count := _probes(x, probes)) is None:
        axes = torch.eye(dim, dtype=y.dtype, device=y.device).reshape(dim, 1, *y.shape[1:])
        first = second = change - _heat(of, y, r, axes.expand(-1, *y.shape), 1.0)
    else:
        halves = _signs(max(2 * (count // 2), 2), x, seed).chunk(2)
        first, second = (change - _heat(of, y, r, v, 1 / len(v)) for v in halves)
    left, whole = ((a * b).flatten(1).double().sum(1) for a, b in ((first, second), (change,) * 2))
    return left / whole.mean()


def _heat(
    score: Callable[[Tensor, float], Tensor], y: Tensor, r: float, probes: Tensor, weight: float
) -> Tensor:
    """grad[ r (tr J + |s|^2) ], with ``weight`` times the sum of v.Jv over the probes as tr J."""
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        value = score(y, r)
        inside = value.square().sum()
        for v in probes:
            (row,) = torch.autograd.grad(value, y, v, create_graph=True)
            inside = inside + weight * (row * v).sum()
        (found,) = torch.autograd.grad(r * inside, y)
    return found


def _evaluated(score: ScoreFn, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """x as a leaf and the score there with its graph; UserError for a score without one."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = score(x, as_time(t))
    if not value.requires_grad:
        raise UserError(
            "the score cannot be differentiated by x: it was computed without a graph (under "
            "no_grad, detached, or through numpy)."
        )
    return x, value


def _probes(x: Tensor, given: int | None) -> int | None:
    """How many probes, or None for exact Jacobians."""
    return PROBES if given is None and x[0].numel() > EXACT_UP_TO else given


def _signs(count: int, x: Tensor, seed: int) -> Tensor:
    """(K, B, ...) entries of +1 and -1."""
    seeds = range(seed, seed + count)
    return SeededNoise(seeds, tuple(x.shape), x.dtype, x.device).draw().sign()


def _level(sde: SDE, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at one time t, in the dtype of x."""
    time = as_time(t)
    if time.ndim:
        raise UserError(f"t must be one time, not {tuple(time.shape)}.")
    return expand(sde.alpha(time), x), expand(sde.sigma(time), x)
