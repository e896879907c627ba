r"""`posterior_score`: the score of p(x_t | y), for every sampler and every process.

    score_y(x_t, t) = (alpha E[x_0 | x_t, y] - x_t) / sigma^2

is Tweedie's formula for the law of x_0 given y; E[x_0 | x_t, y] is made of the prior's score by one
of `means.MEANS`. None of them knows that mean exactly but for Gaussian data, so samples are biased
as docs/restoration.md tells; `restore` has methods that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import Count, Device, UserError, check_count, check_names, checked, require
from score_sde.exact import Gaussian
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.restoration.checks import (
    check_gaussian,
    check_options,
    check_problem,
    check_reach,
    check_scale,
)
from score_sde.restoration.denoiser import Denoiser, least_nu
from score_sde.restoration.kernel import SampleDraws, gaussian_start
from score_sde.restoration.levels import humped, starting_level
from score_sde.restoration.means import MEANS, Method, mean_at, options_of
from score_sde.restoration.measurement import Noise, make_measurement
from score_sde.restoration.operators import Operator
from score_sde.restoration.reference import Reference, SmoothGaussian, White
from score_sde.restoration.residuals import Residuals
from score_sde.restoration.system import System
from score_sde.scores import Rows, ScoreFn, take


@dataclass(frozen=True)
class PosteriorScore:
    """The score of p(x_t | y), see `posterior_score`; ``take`` divides the measurements too."""

    sde: SDE
    score: ScoreFn
    system: System
    method: Method
    options: dict[str, Any] = field(default_factory=dict)

    def take(self, rows: Rows) -> PosteriorScore:
        """The score of some samples of the batch."""
        system = self.system.with_measurement(self.system.measurement.take(rows))
        return replace(self, score=take(self.score, rows), system=system)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x, y] as the method has it, like x; t () or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64)
        shape = self.system.measurement.shape
        require(tuple(x.shape[1:]) == shape, f"states are {shape} each; got {tuple(x.shape)}.")
        require(
            bool(((t > 0) & (t <= self.sde.t_max * (1 + 1e-9))).all())
            and t.shape in ((), (len(x),)),
            f"t must be one time or {len(x)}, within (0, {self.sde.t_max:g}]; got {t.tolist()}.",
        )
        if t.ndim == 0:
            return self._denoise(x, t)
        out = torch.empty_like(x)
        for value in t.unique():
            rows = (t == value).nonzero()[:, 0].to(x.device)
            out[rows] = self.take(rows)._denoise(x[rows], value)
        return out

    def _denoise(self, x: Tensor, t: Tensor) -> Tensor:
        measurement = self.system.measurement
        if len(measurement.y) != 1:
            check_count(len(measurement.y), len(x), "measurements")
        alpha, sigma = float(self.sde.alpha(t)), float(self.sde.sigma(t))
        denoiser = Denoiser(self.sde, self.score, tuple(x.shape[1:]), len(x), x.dtype)
        flat = x.flatten(1).to(measurement.y) / alpha
        _, D = mean_at(self.method, self.options, self.system, denoiser, flat, sigma / alpha)
        return D.to(x.dtype).reshape(x.shape)

    @checked("begin")
    def begin(
        self, seeds: Sequence[int], steps: Count, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """x_T (B, *shape), one for each seed, and falling times (steps + 1,) for `sample`.

        At five standard deviations of the data and above, all is Gaussian: there is nothing to
        evaluate the score for, and times from t_max on would be spent on it. Here x_T is a draw of
        the reference Gaussian given y with that much noise, and times are dense where the data
        decide (`levels.humped`): ``sample(sde, post, x_T=x_T, grid=times, method="dpmpp_2m")``.
        """
        require(len(seeds) > 0, "give at least one seed.")
        require(dtype.is_floating_point, f"states are of floating point; dtype is {dtype}.")
        system, size = self.system, self.system.lam.numel()
        denoiser = Denoiser(self.sde, self.score, system.measurement.shape)
        (low, high), largest = denoiser.range, float(system.lam.max().sqrt())
        levels = humped(starting_level(largest, high), low, steps + 1, largest)
        draws = SampleDraws(seeds, system.lam, size, system.measurement.y.shape[1])
        x = gaussian_start(system, draws, len(seeds), levels[0])
        times = torch.stack([denoiser.time(nu) for nu in levels])
        x_T = float(self.sde.alpha(times[0])) * x
        return x_T.to(dtype).reshape(-1, *system.measurement.shape), times

    def residual(self, x: Tensor) -> Tensor:
        """Mean squared residual of states x_0 over the noise's variance, (B,); 1 is right."""
        shape = self.system.measurement.shape
        require(tuple(x.shape[1:]) == shape, f"states are (B, *{shape}); got {tuple(x.shape)}.")
        return self.system.measurement.misfit(x.flatten(1).to(self.system.measurement.y))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        D = self.denoise(x, t)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return (expand(alpha, x) * D - x) / expand(sigma**2, x)


@checked
def posterior_score(
    sde: SDE,
    score: ScoreFn,
    y: Tensor,
    operator: Operator | Callable[[Tensor], Tensor],
    *,
    noise_std: Noise,
    gaussian: Gaussian | SmoothGaussian | None = None,
    residuals: Residuals | None = None,
    method: str = "hybrid",
    shape: tuple[int, ...] | None = None,
    device: Device = "cpu",
    **options: Any,
) -> PosteriorScore:
    """The score of p(x_t | y), y = operator(x_0) + noise, for `sample` and everything else.

    score: of the prior, score(x, t). y: one measurement for all samples, or one for each
    (B, *measured). operator: see `operators`; any callable is taken to be linear. noise_std: in the
    model's range; a number, a tensor like y, `Covariance` or `Poisson`. gaussian: of the data, see
    `reference_gaussian`; hybrid, pcg and reference need it. residuals: what the network leaves
    unknown, see `measure_residuals`; worth having for pictures. method: a key of `means.MEANS`,
    whose ``options`` (zeta, iterations, strength, ...) may follow. shape: of one state, where no
    Gaussian tells it.

    Raises UserError for measurements that do not fit, in a sentence each (`checks`).
    """
    system = make_system(y, operator, noise_std, gaussian, shape, device).with_residuals(residuals)
    check_reach(system, least_nu(sde))
    return PosteriorScore(sde, score, system, find_mean(method, options, gaussian), options)


def make_system(
    y: Tensor,
    operator: Operator | Callable[[Tensor], Tensor],
    noise: Noise,
    gaussian: Gaussian | SmoothGaussian | None,
    shape: tuple[int, ...] | None,
    device: torch.device | str = "cpu",
) -> System:
    """The measurement and the reference Gaussian, checked; a white one if there is none."""
    if gaussian is not None and shape is not None and tuple(shape) != tuple(gaussian.shape):
        raise UserError(f"shape={tuple(shape)} is not that of the Gaussian, {gaussian.shape}.")
    shape = tuple(gaussian.shape) if gaussian is not None else tuple(shape or ())
    check_problem(y, operator, noise, shape)
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    measurement = make_measurement(operator, y, noise, shape, dtype, device)
    reference: Reference = White(shape) if gaussian is None else gaussian
    system = System(reference, measurement)
    check_gaussian(system)
    if gaussian is not None:
        check_scale(y, _largest(system), float(measurement.variance.max().sqrt()))
    return system


def _largest(system: System) -> float:
    """The largest entry of measurements of a few draws of the reference Gaussian."""
    g = torch.Generator().manual_seed(0)
    e = torch.randn(8, system.lam.numel(), generator=g, dtype=torch.float64).to(system.lam)
    x = system.mean + system.gaussian.from_axes(system.lam.sqrt() * e)
    return float(system.measurement.predict(x).abs().max())


def find_mean(
    name: str, options: dict[str, Any], gaussian: Gaussian | SmoothGaussian | None
) -> Method:
    """The method of this name; UserError for unknown names and options, or no Gaussian."""
    also = ". Samplers that are no score (particles, repaint, ddrm, ...) are methods of `restore`"
    check_names([name], MEANS, "method of a posterior score", also=also)
    method = MEANS[name]
    check_options(name, list(options), options_of(method.mean))
    if gaussian is None and method.source == "here":
        raise UserError(
            f"method={name!r} needs gaussian=, the mean and covariance of the data: run.gaussian, "
            "or reference_gaussian(data)."
        )
    return method
