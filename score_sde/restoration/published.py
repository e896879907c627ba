r"""Published samplers that are no score: they act on x_t, go back, or draw in inner loops.

Each is a function (system, denoiser, seeds, nfe, options) -> draws (B, D), of at most nfe
evaluations a draw, in the coordinates x = x_t / alpha, nu = sigma / alpha. `means` has the others.
Their settings are the papers'; docs/restoration.md has how far each is from the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_sde.checks import Count, Fraction, Positive, UserError, checked
from score_sde.restoration.chains import ancestral, begin, gibbs, mala
from score_sde.restoration.denoiser import Denoiser
from score_sde.restoration.kernel import SampleDraws
from score_sde.restoration.levels import karras
from score_sde.restoration.system import System


def _pinv(system: System, u: Tensor) -> Tensor:
    """A^+ u, (B, D)."""
    m = system.measurement
    return m.operator.pinv(u.reshape(len(u), *m.operator.measured(m.shape)), m.shape).flatten(1)


def _overwritten(system: System, x: Tensor, s: float, draws: SampleDraws) -> Tensor:
    """x with what A sees of it replaced by y with noise of level s."""
    m = system.measurement
    return x + _pinv(system, m.residual(x) + s * m.predict(draws.state()))


@checked
def projection(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, corrector: bool = False
) -> Tensor:
    """After each ancestral step what A sees is overwritten by noised y (2011.13456, appendix I).

    corrector: every second evaluation is a Langevin step of signal-to-noise ratio 0.16 instead. The
    hidden part never learns of what y says later; noise in y is taken for signal. 1 evaluation a
    step.
    """
    levels, draws, x = begin(system, denoiser, seeds, nfe // (1 + corrector))
    for nu, s in zip(levels, [*levels[1:], 0.0], strict=True):
        if corrector:
            score = (denoiser(x, nu) - x) / nu**2
            e = draws.state()
            step = 2 * (0.16 * e.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)) ** 2
            x = _overwritten(system, x + step * score + (2 * step).sqrt() * e, nu, draws)
        D = denoiser(x, nu)
        x = _overwritten(system, ancestral(x, D, nu, s, draws.state()), s, draws)
    return x


@checked
def repaint(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, redos: Count = 5
) -> Tensor:
    """`projection`, each step being undone by noise and done again (2201.09865, algorithm 1).

    redos: times that each step is done. The paper's are 10 with 250 levels and jumps of 10 levels;
    here jumps are of one. 1 evaluation a step.
    """
    levels, draws, x = begin(system, denoiser, seeds, max(2, nfe // redos))
    for nu, s in zip(levels, [*levels[1:], 0.0], strict=True):
        for again in reversed(range(redos if s > 0 else 1)):
            D = denoiser(x, nu)
            x = _overwritten(system, ancestral(x, D, nu, s, draws.state()), s, draws)
            if again:
                x = x + math.sqrt(nu**2 - s**2) * draws.state()
    return x


@checked
def dps(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, zeta: Positive = 1.0
) -> Tensor:
    """Ancestral steps, each followed by x_t <- x_t - zeta grad |y - A D(x_t)| (2209.14687, alg. 1).

    The norm is that of each sample. Neither the noise of y nor the length of the step appears, so
    results depend on the number of steps; the paper takes 1000. 2 evaluations a step.
    """
    levels, draws, x = begin(system, denoiser, seeds, nfe // 2)
    m, alpha = system.measurement, denoiser.sde.alpha
    for nu, s in zip(levels, [*levels[1:], 0.0], strict=True):
        D, product = denoiser.with_products(x, nu)
        r = m.residual(D)
        unit = r / r.norm(dim=1, keepdim=True).clamp_min(1e-300)
        pull = product(m.vjp(D, unit)) / nu**2 / float(alpha(denoiser.time(nu)))
        scale = float(alpha(denoiser.time(s))) if s > 0 else 1.0
        x = ancestral(x, D, nu, s, draws.state()) + zeta / scale * pull
    return x


@checked
def ddrm(
    system: System,
    denoiser: Denoiser,
    seeds: Sequence[int],
    nfe: int,
    eta: Fraction = 0.85,
    eta_b: Fraction = 1.0,
) -> Tensor:
    """Each singular direction of A on its own, in closed form (2201.11793, eq. 7 and 8).

    With A = U diag(d) V', noise std c and y_i = (U'y)_i / d_i of noise c/d_i, at level s

        unseen              D_i + s (sqrt(1 - eta^2) (x - D)_i/nu + eta e)
        s <  c/d_i          D_i + s (sqrt(1 - eta^2) (y_i - D_i) d_i/c + eta e)
        s >= c/d_i          (1 - eta_b) D_i + eta_b y_i + sqrt(s^2 - (eta_b c/d_i)^2) e

    Needs the singular values, and noise that is the same for all. 1 evaluation a step.
    """
    m = system.measurement
    std = float(m.variance.mean().sqrt())
    u, d, v = torch.linalg.svd(system.gaussian.from_axes(system.matrix()), full_matrices=True)
    seen = d > 1e-6 * d.max()
    d, count = d[seen], int(seen.sum())
    target, c = (m.y @ u[:, :count]) / d, std / d
    levels, draws, x = begin(system, denoiser, seeds, nfe)
    for nu, s in zip(levels, [*levels[1:], 0.0], strict=True):
        D = denoiser(x, nu)
        Dv, xv, e = D @ v.mT, x @ v.mT, draws.state()
        new = Dv + s * (math.sqrt(1 - eta**2) * (xv - Dv) / nu + eta * e)
        Ds, es = Dv[:, :count], e[:, :count]
        exact = s * (math.sqrt(1 - eta**2) * (target - Ds) / c + eta * es) + Ds
        spare = (s**2 - (eta_b * c) ** 2).clamp_min(0).sqrt()
        noisy = (1 - eta_b) * Ds + eta_b * target + spare * es
        new[:, :count] = torch.where(s < c, exact, noisy)
        x = new @ v
    return x


@checked
def daps(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, inner: Count = 5
) -> Tensor:
    """x_0 by the flow, then given y with N(x_0, nu^2 I) for a prior, then noise (2407.01521).

    inner: evaluations of each flow, by Euler's method. The paper's Langevin steps are made here in
    one exact draw. The prior N(x_0, nu^2 I) knows no direction of the data. ``inner`` evaluations a
    level.
    """
    levels, draws, x = begin(system, denoiser, seeds, nfe // inner)
    low = denoiser.range[0]
    m = system.measurement
    for nu, s in zip(levels, [*levels[1:], 0.0], strict=True):
        path = karras(nu, low, inner) if nu > low else [nu]
        x0 = x
        for a, b in zip(path, [*path[1:], 0.0], strict=True):
            D = denoiser(x0, a)
            x0 = D + b / a * (x0 - D)
        level = system.isotropic(nu**2, x0)
        off = nu * draws.state()
        x0 = x0 + off + level.gain(m.residual(x0) + m.noise(draws.measured()) - m.jvp(x0, off))
        if s == 0:
            return x0
        x = x0 + s * draws.state()
    raise AssertionError("the last level is 0")


@checked
def pnpdm(
    system: System,
    denoiser: Denoiser,
    seeds: Sequence[int],
    nfe: int,
    rho_max: Positive = 10.0,
    rho_min: Positive = 0.1,
    inner: Count = 5,
) -> Tensor:
    """Split Gibbs: z given x and y in closed form, x given z by denoising from rho (2405.18782).

    rho falls from rho_max to rho_min; at the end x is a draw of a posterior whose noise is S_y +
    rho_min^2 A A', not S_y. inner: evaluations of each denoising, by ancestral steps.
    """
    rounds = max(1, nfe // inner)
    low, high = denoiser.range
    rhos = karras(min(rho_max, high), max(rho_min, 1.01 * low), max(2, rounds), 1.0)[:rounds]
    _, draws, x = begin(system, denoiser, seeds, 2)
    m = system.measurement
    for rho in rhos:
        off = rho * draws.state()
        z = x + off
        level = system.isotropic(rho**2, x)
        z = z + level.gain(m.residual(x) + m.noise(draws.measured()) - m.jvp(x, off))
        path = karras(rho, low, inner)
        x = z
        for nu, s in zip(path, [*path[1:], 0.0], strict=True):
            x = ancestral(x, denoiser(x, nu), nu, s, draws.state())
    return x


@checked
def sdedit(
    system: System, denoiser: Denoiser, seeds: Sequence[int], nfe: int, strength: Fraction = 0.5
) -> Tensor:
    """A picture made of y, noised to a middle time and denoised again (2108.01073, alg. 1).

    The guide is A^+ y, and the mean of the data where nothing is seen. strength: that time, as a
    share of the process's; the paper has 0.3 to 0.6. There is no likelihood: near 0 the guide stays
    as it is, near 1 nothing of y does. 1 evaluation a step.
    """
    if strength == 0:
        raise UserError("strength must be above 0: at 0 the guide would stay as it is.")
    m, sde = system.measurement, denoiser.sde
    _, draws, _ = begin(system, denoiser, seeds, 2)
    mean = system.mean.expand(len(seeds), -1)
    guide = mean + _pinv(system, m.residual(mean).expand(len(seeds), -1))
    t = torch.tensor(sde.t_min + strength * (sde.t_max - sde.t_min), dtype=torch.float64)
    levels = karras(float(sde.sigma(t) / sde.alpha(t)), denoiser.range[0], max(2, nfe))
    x = guide + levels[0] * draws.state()
    for nu, s in zip(levels, [*levels[1:], 0.0], strict=True):
        x = ancestral(x, denoiser(x, nu), nu, s, draws.state())
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "projection": projection,
    "repaint": repaint,
    "dps": dps,
    "ddrm": ddrm,
    "daps": daps,
    "pnpdm": pnpdm,
    "sdedit": sdedit,
    "gibbs": gibbs,
    "mala": mala,
}
