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
of r^2. Endpoints are denoised on both sides then, so that they show the method alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from score_sde.checks import Index, Seed, Size, UserError, checked
from score_sde.exact import Gaussian, GaussianMixture
from score_sde.noise import generator_of
from score_sde.processes.sdes import SDE
from score_sde.sampling import SAMPLERS, ODEError, Predictor, make_sampler, sample

F64 = torch.float64
ROUNDING = 1e-12  # errors below it, relative to the data, say nothing about a method


@dataclass(frozen=True)
class VerifyRow:
    """What one number of steps gives; None where a figure does not apply.

    error_rms, error_median: endpoint error over samples and coordinates, and the median of the
    samples' own rms, in units of the data's std. w2: W_2 of the law around its mean, that is of
    data with mean 0. mean_bias: |m - mu| of data with its mean, so that W_2 in full is
    hypot(w2, mean_bias); both relative to sqrt(sum_d target variance). std_bias: sum of the stds
    over that of the target, less 1; negative when samples are too narrow. w2_stderr: 0 for a
    propagated law, the standard error of a Monte Carlo one.
    """

    steps: int
    nfe: int
    error_rms: float | None
    error_median: float | None
    w2: float | None
    mean_bias: float | None
    std_bias: float | None
    w2_stderr: float | None


@dataclass(frozen=True)
class VerifyReport:
    """Accuracy of one method on one process; `print` it, or take `to_dict()`.

    claimed_order: what the method says of itself. observed_order: slope of log error_rms over
    log steps (deterministic methods). weak_order: the same of w2 (stochastic ones), down to the
    floor that the prior's mismatch leaves. law: how the law of the result was found.
    """

    process: str
    method: str
    settings: dict[str, Any]
    claimed_order: float | None
    observed_order: float | None
    weak_order: float | None
    law: str
    rows: tuple[VerifyRow, ...]

    @property
    def passed(self) -> bool | None:
        """Is the observed order at least the claimed one, less 0.15? None: nothing to compare."""
        if self.claimed_order is None or self.observed_order is None:
            return None
        return self.observed_order >= self.claimed_order - 0.15

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        names = [f.name for f in dataclasses.fields(VerifyRow)]
        table = [names] + [[_text(getattr(row, name)) for name in names] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.rjust, cells, widths)) for cells in table]
        verdict = {True: "as claimed", False: "BELOW ITS CLAIM", None: "no claim tested"}
        orders = (self.claimed_order, self.observed_order, self.weak_order)
        claimed, observed, weak = (_text(order) for order in orders)
        return "\n".join(
            [
                f"{self.method} on {self.process}: {settings}",
                f"order claimed {claimed}, observed {observed}, weak {weak}: "
                f"{verdict[self.passed]}; law: {self.law}",
                *lines,
            ]
        )

    def curve(self, name: str = "error_rms") -> tuple[list[int], list[float]]:
        """(evaluations, figures) of the rows that have this figure, for `plot_convergence`."""
        known = [(row.nfe, getattr(row, name)) for row in self.rows if getattr(row, name)]
        return [nfe for nfe, _ in known], [value for _, value in known]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dictionaries; "nan" and "inf" as strings, for strict JSON."""
        return cast(dict[str, Any], _plain(dataclasses.asdict(self) | {"passed": self.passed}))


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


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


class _Impulses:
    """Noise source for 2 + n samples: 0 draws zeros, 1 + j ones in draw j alone, the last noise.

    The last sample tests that the method is affine: it must be what the impulses add up to.
    """

    def __init__(self, seed: int):
        self._generator = generator_of(seed)
        self.probes: list[Tensor] = []  # what the last sample drew, (*shape) each

    @property
    def draws(self) -> int:
        return len(self.probes)

    def __call__(self, seeds: Sequence[int], shape: Sequence[int], dtype: Any, device: Any) -> Any:
        self._size, self._like = (len(seeds), *shape), {"dtype": dtype, "device": device}
        return self

    def draw(self, t: Any = None, s: Any = None, which: Tensor | None = None) -> Tensor:
        z = torch.zeros(self._size, **self._like)
        if self.draws + 2 < len(z):
            z[1 + self.draws] = 1
        z[-1] = torch.randn(z[-1].shape, generator=self._generator, dtype=F64).to(z)
        self.probes.append(z[-1].clone())  # a method may work in place on what it drew
        return z


class _Normals(_Impulses):
    """Noise source of ordinary independent normals, for Monte Carlo."""

    def draw(self, t: Any = None, s: Any = None, which: Tensor | None = None) -> Tensor:
        size = self._size if which is None else (len(which), *self._size[1:])
        z = torch.randn(size, generator=self._generator, dtype=F64).to(**self._like)
        self.probes.append(z[-1].clone())  # a method may work in place on what it drew
        return z


@dataclass(frozen=True)
class _Setup:
    """One method on one process, and what its results should be."""

    sde: SDE
    method: str | Predictor
    options: dict[str, Any]
    grid: Any
    denoise: bool

    def predictor(self, data: GaussianMixture | None = None) -> Predictor:
        """The method with its options, and the data's std where it wants one and has none."""
        method = make_sampler(self.method, **self.options)
        if data is None or getattr(method, "data_std", 0.0) is not None:
            return method
        return dataclasses.replace(cast(Any, method), data_std=data.std())

    def ends(self) -> Tensor:
        """(2,) the times where the grid starts and stops."""
        if self.grid is None or isinstance(self.grid, str):
            return torch.tensor([self.sde.t_max, self.sde.t_min], dtype=F64)
        return torch.as_tensor(getattr(self.grid, "times", self.grid), dtype=F64)[[0, -1]]

    def ratio(self) -> float:
        """r = sigma/alpha left in the results."""
        end = self.ends()[1]
        return 0.0 if self.denoise else float(self.sde.sigma(end) / self.sde.alpha(end))

    def run(
        self,
        data: GaussianMixture,
        source: Callable,
        steps: int | None,
        size: int,
        x_T: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """(x / alpha (size, *shape), evaluations) with the exact score of the data, float64."""
        score, calls = data.score(self.sde), 0
        # A recipe of `calibrate` sets options of its method, which `sample` takes by name only.
        recipe = hasattr(self.grid, "data_std")
        method: Any = self.method if recipe else self.predictor(data)
        options: dict[str, Any] = self.options if recipe else {}

        def counted(x: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return score(x, t)

        try:
            x = sample(
                self.sde,
                counted,
                (size, *data.shape) if x_T is None else None,
                x_T=x_T,
                method=method,
                steps=steps,
                grid=self.grid,
                seeds=range(size),  # unused, but without them the global generator would move
                denoise=self.denoise,
                noise=source,
                dtype=F64,
                **options,
            )
        except ODEError:  # not finite, or an adaptive method gave up: a result, not an accident
            x = torch.full((size, *data.shape), math.nan, dtype=F64)
        return x if self.denoise else x / self.sde.alpha(self.ends()[1]), calls

    def endpoint(self, data: GaussianMixture, x_T: Tensor) -> Tensor:
        """Where the probability flow carries x_T, as x / alpha or denoised (B, *shape)."""
        start, end = self.ends()
        x = data.flow(self.sde, x_T, start, end)
        return data.score(self.sde).denoise(x, end) if self.denoise else x / self.sde.alpha(end)


def _endpoint_error(setup: _Setup, data: GaussianMixture, steps: int | None, seed: int) -> tuple:
    """(rms, median of the samples' rms, evaluations), in units of the data's std."""
    generator = generator_of(seed)
    x_T = setup.sde.prior_sample((64, *data.shape), generator, dtype=F64)
    x, calls = setup.run(data, _Normals(seed), steps, len(x_T), x_T)
    squares = (x - setup.endpoint(data, x_T)).flatten(1).square().mean(1) / data.std() ** 2
    return float(squares.mean().sqrt()), float(squares.median().sqrt()), calls


def _propagate(setup: _Setup, data: Gaussian, steps: int | None, seed: int) -> tuple:
    """(mean (D,), std (D,), draws, evaluations) of the result; mean is None if it is not affine."""
    guess = 1 + (steps or 1)
    while True:
        source = _Impulses(seed)
        x, calls = setup.run(data, source, steps, guess + 2)
        if source.draws <= guess:
            break
        guess = source.draws  # two draws a step, say: once more with an impulse for each
    response = x[1:-1] - x[0]
    # Draws that never came left zeros.
    predicted = x[0] + (torch.stack(source.probes) * response[: source.draws]).sum(0)
    scale = x.abs().max()
    if bool((predicted - x[-1]).abs().max() > 1e-7 * scale):
        return None, None, source.draws, calls
    return x[0], response.square().sum(0).sqrt(), source.draws, calls


def _distance(
    mean: Tensor, std: Tensor, want_mean: Tensor, want_std: Tensor, samples: int | None
) -> dict[str, float]:
    """The figures of a law (D,) against the wanted one; of estimates from samples, without bias.

    An estimated mean has variance std^2 / n and an estimated std has std^2 / (2 n): they are taken
    off the squares, and propagated to second order into the standard error of w2.
    """
    scale = want_std.square().sum()
    off_mean, off_std = (mean - want_mean).square(), (std - want_std).square()
    noise = torch.zeros_like(std) if samples is None else std.square() / samples
    # torch's clamp keeps NaN, Python's max does not.
    mean_bias = ((off_mean - noise).sum() / scale).clamp_min(0).sqrt()
    w2 = ((off_std - noise / 2).sum() / scale).clamp_min(0).sqrt()
    error = (2 * off_std * noise + noise**2 / 2).sum().sqrt() / scale  # of w2^2
    return {
        "w2": float(w2),
        "mean_bias": float(mean_bias),
        "std_bias": float(std.sum() / want_std.sum() - 1),
        "w2_stderr": float(torch.minimum(error.sqrt(), error / (2 * w2))) if samples else 0.0,
    }


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


@checked
def verify(
    sde: SDE,
    method: str | Predictor = "heun",
    *,
    steps: Sequence[Size] = (16, 32, 64, 128, 256, 512),
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

    Not finite results are reported as they are. Raises ValueError for data that is not one
    Gaussian and for what `sample` refuses.
    """
    if data is not None and not isinstance(data, Gaussian):
        raise UserError(
            "data must be one Gaussian, whose flow is known: Gaussian(mean, covariance). Got a "
            f"mixture of {data.components}."
        )
    setup = _Setup(sde, method, options, grid, denoise)
    facts = setup.predictor()
    adaptive = getattr(facts, "evaluations", 1) == 0
    named = grid is None or isinstance(grid, str)
    fixed = facts.default_steps if named else len(getattr(grid, "times", grid)) - 1
    counts = [None] if adaptive or not named else sorted(steps)
    endpoints, law = data or two_humps(), _along_axes(data or stretched_gaussian())
    want = law.mean(), (law.covariance().diagonal() + setup.ratio() ** 2).sqrt()

    affine = bool(getattr(facts, "linear", True)) and not adaptive
    rows, draws = [], 0
    for count in counts:
        if affine:
            mean, std, draws, calls = _propagate(setup, law, count, seed)
            affine = mean is not None
        if not affine:
            source = _Normals(seed)
            x, calls = setup.run(law, source, count, max(monte_carlo, 2))
            (mean, std), draws = (x.mean(0), x.std(0)), source.draws
        figures: dict[str, float | None] = dict.fromkeys(
            ("error_rms", "error_median", "w2", "mean_bias", "std_bias", "w2_stderr")
        )
        if affine or monte_carlo:
            figures |= _distance(mean, std, *want, samples=None if affine else monte_carlo)
        if draws == 1:  # the start alone: a deterministic method
            rms, median, calls = _endpoint_error(setup, endpoints, count, seed)
            figures |= {"error_rms": rms, "error_median": median}
        rows.append(VerifyRow(steps=count or fixed, nfe=calls, **figures))

    used = [row.steps for row in rows]
    known = dataclasses.is_dataclass(facts)
    settings: dict[str, Any] = dataclasses.asdict(cast(Any, facts)) if known else {}
    default_grid = facts.default_grid or sde.natural_grid
    settings |= {"grid": (grid or default_grid) if named else "explicit", "denoise": denoise}
    claim = getattr(facts, "claimed_order", getattr(facts, "order", None))
    return VerifyReport(
        process=str(sde),
        method=method if isinstance(method, str) else type(method).__name__,
        settings=settings,
        claimed_order=claim if draws == 1 else None,
        observed_order=None if adaptive else _slope(used, [row.error_rms for row in rows]),
        weak_order=_slope(used, [row.w2 for row in rows]) if affine and draws > 1 else None,
        law="propagated exactly" if affine else f"Monte Carlo of {monte_carlo} samples",
        rows=tuple(rows),
    )


def verify_matrix(
    sdes: Sequence[SDE], methods: Sequence[str | Predictor] | None = None, **settings: Any
) -> list[VerifyReport]:
    """`verify` of every method (by default all of `SAMPLERS`) on every process, in this order."""
    chosen = list(SAMPLERS) if methods is None else methods
    return [verify(sde, method, **settings) for sde in sdes for method in chosen]
