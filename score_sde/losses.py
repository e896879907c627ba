r"""Denoising score matching (Vincent 2011; 2011.13456, eq. 7) and DDPM's simplified bound.

The score of p_t is the minimiser of E || s(x_t, t) - grad log p(x_t | x_0) ||^2, and that gradient
is -eps / sigma: a network learns the score by guessing the noise. All published objectives are

    L = E_{t ~ p} E_{x_0, eps} [ w(t) mean_d (eps_hat - eps)^2 ]

with another weight w on the error of the noise and another density p of times:

    simple       1                             DDPM's L_simple, Song's weight sigma^2 on the score
    likelihood   g^2 / sigma^2                 bounds the likelihood (2101.09258, thm. 1)
    edm          1 + (sigma / (alpha sd))^2    2206.00364, table 1: unit weight on the output F
    min_snr      min(SNR, 5) / SNR             2303.09556, on x_0
    output       ((alpha b - a sigma)/alpha)^2 plain squared error of the network's own output

DDPM's discrete objective (2006.11239, eq. 14) is `simple` on a `TableSDE` with times "discrete".
With learned variances Improved DDPM's hybrid (2102.09672, eq. 16) adds the terms of the bound,
whose gradient is kept from the means:

    KL( q(x_s | x_t, x_0) || N(mean(x_0_hat), beta^v beta~^(1 - v) I) ),    t = i/n, s = (i - 1)/n
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import Count, NonNegative, Positive, lookup, require, validated
from score_sde.processes.expand import expand
from score_sde.processes.gaussians import first_stds, gaussian_kl, log_normal, reverse_std
from score_sde.processes.sdes import SDE


class NoisePredictor(Protocol):
    """What an objective asks of a model (`models.ScoreModel` has it)."""

    sde: SDE
    data_std: float

    def eps(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The predicted noise in x (B, ...), like x."""

    def eps_and_v(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The predicted noise and the share v of the variance, for models that learn it."""

    def row(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) with the network's output = a x_0 + b eps, like t."""

    def log_variance(self, t: Tensor) -> Tensor:
        """How uncertain the network says it is, (B,), for models that learn it."""


def _simple(model: NoisePredictor, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _likelihood(model: NoisePredictor, t: Tensor) -> Tensor:
    return (model.sde.diffusion(t) / model.sde.sigma(t)) ** 2


def _edm(model: NoisePredictor, t: Tensor) -> Tensor:
    return 1 + (-model.sde.log_snr(t)).exp() / model.data_std**2


def _min_snr(model: NoisePredictor, t: Tensor) -> Tensor:
    return (5 * (-model.sde.log_snr(t)).exp()).clamp(max=1)


def _output(model: NoisePredictor, t: Tensor) -> Tensor:
    a, b = model.row(t)
    alpha = model.sde.alpha(t)
    return ((alpha * b - a * model.sde.sigma(t)) / alpha) ** 2


WEIGHTINGS: dict[str, Callable[[NoisePredictor, Tensor], Tensor]] = {
    "simple": _simple,
    "likelihood": _likelihood,
    "edm": _edm,
    "min_snr": _min_snr,
    "output": _output,
}


class LossTerms(NamedTuple):
    """One value per sample, each (B,): the loss, its time, and an error that is easier to read.

    That is the mean squared error of eps; of a classifier, 1 where it is wrong.
    """

    loss: Tensor
    t: Tensor
    error: Tensor


@validated("loss")
@dataclass(frozen=True)
class ScoreMatching:
    """An objective: `objective(model, x0, **condition)` -> `LossTerms`.

    weighting: a key of `WEIGHTINGS`, or a function (model, t (B,)) -> w (B,), or its dotted path.
    times: density of t. "uniform" on [t_min, t_max]; "discrete": t = i t_max/steps with i uniform
        on 1..steps; "lognormal": log(sigma/alpha) ~ N(log_sigma_mean, log_sigma_std^2), EDM's;
        "importance": p(t) in proportion to w(t), so every time counts the same and the estimate
        of the uniform-t objective has less variance (2101.09258, section 5.1). Or a
        function (objective, model, u (B,)) -> t (B,) of uniform numbers u in [0, 1), or its path.
    t_min: smallest training time; that of the process when None. Song trains down to 1e-5.
    stratified: spread the batch evenly over the density (2107.00630, appendix I.1).
    reduction: "mean" over the coordinates, or Song's "half_sum".
    variance_weight: of the bound's terms, for models with learned variances and discrete times;
        0.001 in the paper, times ``steps`` terms, in bits per coordinate.
    uncertainty: each time's error is divided by the variance exp(u) that the network expects there,
        L / exp(u) + u: all times then count alike, however the weighting has them (2312.02696,
        eq. 16). For networks that learn u.
    """

    measures: ClassVar[str] = "eps_error"
    weighting: str | Callable[..., Any] = "simple"
    times: str | Callable[..., Any] = "uniform"
    t_min: Positive | None = None
    steps: Count = 1000
    log_sigma_mean: float = -1.2
    log_sigma_std: Positive = 1.2
    stratified: bool = False
    reduction: Literal["mean", "half_sum"] = "mean"
    variance_weight: NonNegative = 0.0
    uncertainty: bool = False
    weight: Callable[[NoisePredictor, Tensor], Tensor] = field(
        init=False, repr=False, compare=False
    )
    density: Callable[[ScoreMatching, NoisePredictor, Tensor], Tensor] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name, given, what, table in (
            ("weight", self.weighting, "loss.weighting", WEIGHTINGS),
            ("density", self.times, "loss.times", TIMES),
        ):
            found = given if callable(given) else lookup(table, given, what)
            object.__setattr__(self, name, found)
        require(
            self.variance_weight == 0 or (self.times == "discrete" and self.steps >= 2),
            f"loss.variance_weight={self.variance_weight:g} needs loss.times=discrete and "
            "loss.steps >= 2: a variance belongs to a step.",
        )

    def check(self, sde: SDE) -> None:
        """Raise UserError for training times that the process does not have."""
        require(
            self.t_min is None or self.t_min < sde.t_max,
            f"loss.t_min={self.t_min} must lie below the process's t_max={sde.t_max:g}.",
        )

    def first(self, sde: SDE) -> float:
        """The smallest training time."""
        return sde.t_min if self.t_min is None else self.t_min

    def trivial(self, model: NoisePredictor, t: Tensor, data_std: float) -> Tensor:
        """The error of a model that has learned nothing, like t; see `trivial_error`."""
        return trivial_error(model.sde, t, data_std)

    def draw_times(self, model: NoisePredictor, n: int, device: torch.device | str) -> Tensor:
        """n times from the density, float32 (n,). float64 inside where the device has it."""
        u = torch.rand(n, device=device)
        if self.stratified:
            u = (torch.randperm(n, device=device) + u) / n
        return self.density(self, model, u)

    def _importance_table(self, model: NoisePredictor) -> tuple[Tensor, Tensor, float]:
        """Times, the cumulative mass of w below each, and the mean of w; float64."""
        t_min = self.first(model.sde)
        ends = (math.log(t_min), math.log(model.sde.t_max))
        times = torch.linspace(*ends, 4001, dtype=torch.float64).exp()
        # The trapezoidal rule in log t, where a weight that falls like 1/t is flat.
        density = self.weight(model, times) * times
        pieces = 0.5 * (density[1:] + density[:-1]) * times.log().diff()
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
        total = float(mass[-1])
        return times, mass / total, total / (model.sde.t_max - t_min)

    def weights(self, model: NoisePredictor, t: Tensor) -> Tensor:
        """w(t), or its constant importance-sampled counterpart, like t."""
        if self.times == "importance":
            return torch.full_like(t, self._importance_table(model)[2])
        return self.weight(model, t)

    def __call__(
        self,
        model: NoisePredictor,
        x0: Tensor,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        **condition: Any,
    ) -> LossTerms:
        """The loss of each x0 (B, ...); t (B,) and eps (like x0) are drawn unless given."""
        require(x0.is_floating_point(), "x0 must hold floating-point values in the model's range.")
        t = self.draw_times(model, x0.shape[0], x0.device) if t is None else t
        eps = torch.randn_like(x0) if eps is None else eps
        mean, std = model.sde.marginal(x0, t)
        x = mean + std * eps
        bound: Tensor | float = 0.0
        if self.variance_weight > 0:
            guess, share = model.eps_and_v(x, t, **condition)
            terms = self._variance_terms(model.sde, x0, x, guess.detach(), share, t)
            bound = (self.variance_weight * self.steps * terms).to(x)
        else:
            guess = model.eps(x, t, **condition)
        squared = (guess - eps).square().flatten(1)
        error = squared.mean(1) if self.reduction == "mean" else 0.5 * squared.sum(1)
        loss = self.weights(model, t).to(error) * error + bound
        if self.uncertainty:
            u = model.log_variance(t)
            loss = loss / u.exp() + u
        return LossTerms(loss, t, squared.detach().mean(1))

    def _variance_terms(
        self, sde: SDE, x0: Tensor, x: Tensor, eps: Tensor, share: Tensor, t: Tensor
    ) -> Tensor:
        """The terms of the bound at t = i t_max/n, in bits per coordinate, (B,)."""
        step = sde.t_max / self.steps
        first = t < 1.5 * step
        s = (t - step).clamp(min=0.5 * step)  # of the first step nothing is used but x_0
        guess = (x - expand(sde.sigma(t), x) * eps) / expand(sde.alpha(t), x)
        std = reverse_std(sde, s, t, share)
        mean, exact_std = sde.posterior(x0, x, s, t)
        kl = gaussian_kl(mean, exact_std, sde.posterior(guess, x, s, t)[0], std)
        low, high = first_stds(sde, torch.tensor([step, 2 * step], dtype=torch.float64))
        spread = expand(low, x) ** (1 - share) * expand(high, x) ** share
        log_p = log_normal(x0, guess, spread)
        return torch.where(first, -log_p, kl) / (x0[0].numel() * math.log(2))


def _uniform(objective: ScoreMatching, model: NoisePredictor, u: Tensor) -> Tensor:
    t_min = objective.first(model.sde)
    return t_min + (model.sde.t_max - t_min) * u


def _discrete(objective: ScoreMatching, model: NoisePredictor, u: Tensor) -> Tensor:
    steps = objective.steps
    index = torch.floor(u * steps).clamp(max=steps - 1) + 1
    return index * (model.sde.t_max / steps)


def _lognormal(objective: ScoreMatching, model: NoisePredictor, u: Tensor) -> Tensor:
    # The inverse normal distribution function, on the CPU: not every device has it in float64.
    # u in float32 may be exactly 0 or 1.
    normal = torch.special.ndtri(u.cpu().double().clamp(1e-6, 1 - 1e-6))
    log_sigma = objective.log_sigma_mean + objective.log_sigma_std * normal
    return model.sde.time_of_log_snr(-2 * log_sigma).clamp(min=objective.first(model.sde)).to(u)


def _importance(objective: ScoreMatching, model: NoisePredictor, u: Tensor) -> Tensor:
    times, mass, _ = objective._importance_table(model)
    return torch.from_numpy(np.interp(u.cpu().double(), mass, times)).to(u)


TIMES: dict[str, Callable[[ScoreMatching, NoisePredictor, Tensor], Tensor]] = {
    "uniform": _uniform,
    "discrete": _discrete,
    "lognormal": _lognormal,
    "importance": _importance,
}


def trivial_error(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    """Mean squared error of eps of the best linear guess from data of this standard deviation.

    alpha^2 sd^2 / (alpha^2 sd^2 + sigma^2), like t: a model that is no better has learned nothing.
    """
    signal = (sde.alpha(t) * data_std) ** 2
    return signal / (signal + sde.sigma(t) ** 2)
