r"""How near the draws of a restoration method are to the posterior: `verify_restoration`.

Data are mixtures of Gaussians, so that the posterior of a linear measurement is known exactly
(`GaussianMixture.measured`), and a method can be held to it. Figures with `_x` are ratios to what
as many exact draws get, so 1 is perfect, and luck below 1 counts as 1 in means:

    sw2_x     sliced Wasserstein-2 to the posterior
    wsw2_x    the same whitened by the posterior's covariance: what is measured weighs as much as
              what is free
    modes     total variation between the weights of the modes and the exact ones
    fit       E |y - A x|^2 over its exact expectation: 1 is right, 0.2 is over-fitted
    sbc_x     largest distance of the ranks of x in draws given y(x) from uniform, mean of random
              functionals (1804.06788); about 1 for exact draws, above 1.6 a rejection at 1 %
    tarp_x    the same of the share of draws nearer to a random point than x is (2302.03026)
    spread    12 E (rank - 1/2)^2: 1; above it draws are too narrow, below too wide

Cost counts rows: an evaluation of the score is one, a vector-Jacobian product one more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import lookup
from score_sde.exact import Gaussian, GaussianMixture
from score_sde.noise import generator_of
from score_sde.processes.sdes import SDE, VPSDE
from score_sde.restoration.operators import Matrix
from score_sde.restoration.restore import METHODS, restore

AnyMethod = str | Callable[..., Tensor]
F64 = torch.float64
DIRECTIONS, LARGE = 128, 16
"""Of sliced distances; how many times more exact draws the posterior's quantiles are made of."""


@dataclass(frozen=True)
class Problem:
    """A mixture, what is measured of it, and a measurement: y = A x_0 + noise."""

    name: str
    data: GaussianMixture
    A: Tensor
    noise: float
    y: Tensor

    @cached_property
    def posterior(self) -> GaussianMixture:
        """The exact law of x_0 given y."""
        return self.data.measured(self.A, self.noise, self.y)

    @cached_property
    def gaussian(self) -> Gaussian:
        """What a method is told of the data: mean and covariance."""
        return Gaussian(self.data.mean(), self.data.covariance())

    def redrawn(self, seed: int) -> tuple[Problem, Tensor]:
        """The same for another (x, y) of the joint law, and that x (D,)."""
        x = self.data.sample(1, seed=10_000 + seed)[0]
        e = torch.randn(len(self.A), generator=generator_of(20_000 + seed), dtype=F64)
        return Problem(self.name, self.data, self.A, self.noise, self.A @ x + self.noise * e), x

    def draw(
        self,
        method: AnyMethod,
        sde: SDE,
        n: int,
        nfe: int,
        seed: int,
        **options: Any,
    ) -> Tensor:
        """n draws (n, D) by a method of `restore`, or by anything that is called like it."""
        call: Callable[..., Any] = restore if isinstance(method, str) else method
        if isinstance(method, str):
            options = {**options, "method": method, "dtype": F64}
        seeds = [(seed * n + i) % 2**64 for i in range(n)]
        x = call(sde, self.data.score(sde), self.y, Matrix(self.A), noise_std=self.noise,
                 gaussian=self.gaussian, n=n, nfe=nfe, seeds=seeds, **options)  # fmt: skip
        return x.detach().to(F64).reshape(n, -1)


def _settled_less(data: GaussianMixture, A: Tensor, noise: float) -> Tensor:
    """A measurement whose posterior has more than one mode, by trying draws in turn."""
    y = A @ data.sample(1, seed=500)[0]
    for seed in range(200):
        x = data.sample(1, seed=500 + seed)[0]
        y = A @ x + noise * torch.randn(len(A), generator=generator_of(900 + seed), dtype=F64)
        largest = data.weights_given(A, noise, y).max()
        if data.components == 1 or 0.35 < float(largest) < 0.8:
            break
    return y


def _pictures(side: int = 6, modes: int = 6) -> GaussianMixture:
    """Smooth pictures about a few smooth means, each with its own covariance; flat (side^2,)."""
    places = torch.cartesian_prod(*[torch.arange(side, dtype=F64)] * 2)
    near = torch.exp(-(torch.cdist(places, places) ** 2) / 4.5)
    root = torch.linalg.cholesky(near + 1e-6 * torch.eye(side**2))
    smooth = torch.randn(2, modes, side**2, generator=generator_of(2), dtype=F64) @ root.T
    means, gains = 0.6 * torch.tanh(2 * smooth[0]), 0.45 * torch.exp(0.5 * torch.tanh(smooth[1]))
    covariances = gains[:, :, None] * near * gains[:, None] + 0.05**2 * torch.eye(side**2)
    return GaussianMixture(0.4 + torch.rand(modes, generator=generator_of(3)), means, covariances)


@cache
def problems() -> dict[str, Problem]:
    """Gaussian data, modes in the plane, and pictures: hidden, pooled, blurred by projections."""
    g = generator_of(4)
    angles = torch.arange(12, dtype=F64) * (2 * math.pi / 12)
    ring = GaussianMixture(0.3 + torch.rand(12, generator=g),
                           1.2 * torch.stack([angles.cos(), angles.sin()], 1), 0.1**2)  # fmt: skip
    line = torch.linspace(-1.4, 1.4, 5, dtype=F64)
    grid = GaussianMixture(0.05 + torch.rand(25, generator=g) ** 2,
                           torch.cartesian_prod(line, line), 0.08**2)  # fmt: skip
    q = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=F64))[0]
    stretched = Gaussian(torch.zeros(16), (q * torch.logspace(0.3, -2, 16, dtype=F64)) @ q.T)
    pictures = _pictures()
    side, dim = 6, 36
    line_means = torch.kron(torch.eye(side // 3, dtype=F64), torch.full((1, 3), 1 / 3, dtype=F64))
    projections = torch.randn(8, dim, generator=g, dtype=F64) / math.sqrt(dim)
    cases = {
        "gauss16": (stretched, torch.randn(6, 16, generator=g, dtype=F64) / 4, 0.1),
        "ring": (ring, torch.tensor([[1.0, 0.0]], dtype=F64), 0.1),
        "grid": (grid, torch.tensor([[0.9, 0.45]], dtype=F64), 0.15),
        "inpaint": (pictures, torch.eye(dim, dtype=F64)[:12], 0.1),
        "pool": (pictures, torch.kron(line_means, line_means), 0.05),
        "project": (pictures, projections, 0.1),
    }
    return {
        name: Problem(name, data, A, noise, _settled_less(data, A, noise))
        for name, (data, A, noise) in cases.items()
    }


class _Meter:
    """Distances of draws of one problem from its posterior."""

    def __init__(self, problem: Problem, n: int):
        self.problem, post = problem, problem.posterior
        spread = post.covariance()
        variances, axes = torch.linalg.eigh(spread)
        v = torch.randn(problem.data.dim, DIRECTIONS, generator=generator_of(11), dtype=F64)
        v = v / v.norm(dim=0)
        self.maps = [v / (spread.trace() / len(spread)).sqrt(),
                     (axes / variances.clamp_min(1e-12).sqrt()) @ v]  # fmt: skip
        many = post.sample(LARGE * n, seed=7_000_001).flatten(1)
        self.quantiles = [
            (many @ m).T.sort(1).values.reshape(DIRECTIONS, n, LARGE).mean(2) for m in self.maps
        ]
        off = problem.y - problem.A @ post.mean().flatten()
        self.misfit = off.square().sum() + (problem.A @ spread @ problem.A.T).trace()
        exact = [self.raw(post.sample(n, seed=100 + i)) for i in range(6)]
        self.floor = [math.sqrt(sum(e[i] ** 2 for e in exact) / len(exact)) for i in (0, 1)]

    def raw(self, x: Tensor) -> tuple[float, float, float, float]:
        """sw2, whitened sw2, modes, fit."""
        x = torch.nan_to_num(x, nan=1e3).clamp(-1e3, 1e3)
        sliced = [
            float(((x @ m).T.sort(1).values - q).square().mean().sqrt())
            for m, q in zip(self.maps, self.quantiles, strict=True)
        ]
        post, p = self.problem.posterior, self.problem
        share = post.responsibilities(x).mean(0)
        modes = float(0.5 * (share - post.weights).abs().sum())
        fit = float((p.y - x @ p.A.T).square().sum(1).mean() / self.misfit)
        return sliced[0], sliced[1], modes, fit

    def __call__(self, x: Tensor) -> tuple[float, float, float, float]:
        sw2, wsw2, modes, fit = self.raw(x)
        return sw2 / self.floor[0], wsw2 / self.floor[1], modes, fit


@dataclass(frozen=True)
class RestorationRow:
    """A method on one problem at one budget, means over seeds."""

    problem: str
    nfe: int
    sw2_x: float
    wsw2_x: float
    modes: float
    fit: float


@dataclass(frozen=True)
class RestorationReport:
    """What `verify_restoration` measured; calibration of one problem if asked for."""

    method: str
    process: str
    n: int
    seeds: int
    rows: list[RestorationRow]
    calibration: dict[str, float] = field(default_factory=dict)

    def mean(self, figure: str, nfe: int) -> float:
        """Geometric mean over problems, each at least 1, of a ratio; of modes, the mean."""
        values = [getattr(row, figure) for row in self.rows if row.nfe == nfe]
        if figure == "modes":
            return sum(values) / len(values)
        return math.exp(sum(math.log(max(v, 1.0)) for v in values) / len(values))

    def __str__(self) -> str:
        lines = [f"{self.method} on {self.process}, {self.n} draws, {self.seeds} seeds"]
        lines.append(f"{'problem':10s} {'cost':>5s} {'sw2_x':>7s} {'wsw2_x':>7s} modes   fit")
        for r in self.rows:
            lines.append(f"{r.problem:10s} {r.nfe:5d} {r.sw2_x:7.2f} {r.wsw2_x:7.2f} "
                         f"{r.modes:5.3f} {r.fit:5.2f}")  # fmt: skip
        for nfe in sorted({row.nfe for row in self.rows}):
            sw2, wsw2, modes = (self.mean(f, nfe) for f in ("sw2_x", "wsw2_x", "modes"))
            lines.append(f"{'mean':10s} {nfe:5d} {sw2:7.2f} {wsw2:7.2f} {modes:5.3f}")
        if self.calibration:
            figures = ", ".join(f"{k} {v:.2f}" for k, v in self.calibration.items())
            lines.append(f"calibration: {figures}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verify_restoration(
    method: AnyMethod = "particles",
    sde: SDE | None = None,
    *,
    nfe: Sequence[int] = (20, 60),
    n: int = 512,
    seeds: Sequence[int] = (0, 1),
    names: Sequence[str] | None = None,
    cases: Mapping[str, Problem] | None = None,
    calibrate: int = 0,
    **options: Any,
) -> RestorationReport:
    """Measure a method on the `problems` whose posterior is known, at some budgets.

    method: of `restore`, a dotted path, or anything that is called as `restore` is. sde: VP unless
    given. cases: problems of your own in place of `problems`. calibrate: how many (x, y) to draw
    for sbc_x and tarp_x (on the ring, at the largest budget); 0 is none.
    """
    sde = sde or VPSDE()
    name = method if isinstance(method, str) else getattr(method, "__name__", "yours")
    if isinstance(method, str):
        method = lookup({m: m for m in METHODS}, method, "restoration")
    rows, chosen = [], dict(cases or problems())
    for problem in (chosen[key] for key in names or chosen):
        meter = _Meter(problem, n)
        for budget in nfe:
            found = [meter(problem.draw(method, sde, n, budget, seed, **options)) for seed in seeds]
            mean = [sum(column) / len(found) for column in zip(*found, strict=True)]
            rows.append(RestorationRow(problem.name, budget, *mean))
    calibration = {}
    if calibrate:
        calibration = _calibration(problems()["ring"], method, sde, max(nfe), calibrate, options)
    return RestorationReport(name, type(sde).__name__, n, len(seeds), rows, calibration)


def _calibration(
    problem: Problem,
    method: AnyMethod,
    sde: SDE,
    nfe: int,
    draws: int,
    options: dict[str, Any],
    n: int = 63,
) -> dict[str, float]:
    g, dim = generator_of(40_000), problem.data.dim
    v = torch.randn(dim, 6, generator=generator_of(5), dtype=F64)
    ranks, shares = [], []
    for i in range(draws):
        other, truth = problem.redrawn(i)
        x = torch.nan_to_num(other.draw(method, sde, n, nfe, i, **options), nan=1e3)
        below = ((x @ v) < truth.flatten() @ v).double().sum(0)
        ranks.append((below + torch.rand(6, generator=g, dtype=F64)) / (n + 1))
        point = problem.data.sample(1, seed=50_000 + i).flatten()
        near = ((x - point).norm(dim=1) < (truth.flatten() - point).norm()).double().sum()
        shares.append((near + torch.rand(1, generator=g, dtype=F64)) / (n + 1))
    unit = 0.87 / math.sqrt(draws)
    u = torch.stack(ranks)
    return {
        "sbc_x": _from_uniform(u) / unit,
        "tarp_x": _from_uniform(torch.stack(shares)) / unit,
        "spread": float(12 * (u - 0.5).square().mean()),
    }


def _from_uniform(u: Tensor) -> float:
    """Kolmogorov's distance of numbers (N, K) from uniform, the mean over K."""
    u, count = u.sort(0).values, len(u)
    i = torch.arange(1, count + 1, dtype=F64)[:, None]
    return float(torch.maximum((i / count - u).amax(0), (u - (i - 1) / count).amax(0)).mean())
