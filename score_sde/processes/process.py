r"""Diffusion processes: two functions of time, and everything that follows from them.

A process gradually turns data into noise. Time runs from 0 (data) to ``t_max`` (noise), and

    p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)                                   (closed form)

is all that has to be stated. It is the law of the linear SDE (2011.13456, eq. 5)

    dx = f(t) x dt + g(t) dw,    f = alpha'/alpha,    g^2 = 2 sigma (sigma' - sigma alpha'/alpha)

whose transition between two times s < t is again Gaussian (2107.00630, appendix A),

    p(x_t | x_s) = N(a x_s, b^2 I),    a = alpha_t / alpha_s,    b^2 = sigma_t^2 - a^2 sigma_s^2

and whose time reversal needs nothing but the score (2011.13456, eq. 6; eta = 0 is eq. 13):

    dx = [f x - (1 + eta^2)/2 g^2 score(x, t)] dt + eta g dw.

DDPM is the same thing on a grid: `VPSDE.discretize(n)` is its Markov chain, and
`sde.posterior(x0, x, s, t)` its q(x_{t-1} | x_t, x_0) between any two times.

A new process is a frozen dataclass with `alpha` and `sigma`:

    @dataclass(frozen=True)
    class Quarter(SDE):
        def alpha(self, t): return torch.cos(t * math.pi / 2)
        def sigma(self, t): return torch.sin(t * math.pi / 2)

Coefficients are computed in the precision of ``t``, those of numbers, integers and half precision
in float64; `expand` casts them to that of the state.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from score_sde.checks import BatchShape, NonNegative, UserError, check_size, checked, shown
from score_sde.processes.drawing import curves_svg
from score_sde.processes.expand import as_state, as_time, expand, like_state


@dataclass(frozen=True, kw_only=True)
class SDE(abc.ABC):
    """A process p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I) for 0 <= t <= t_max.

    ``t_min`` is where sampling stops and likelihood starts: the score of real data grows without
    bound as t -> 0. All methods take t of shape () or (B,), a number too, and states (B, ...).
    Raises UserError for times at which the process has no signal or no finite noise.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    natural_grid: ClassVar[str] = "uniform"  # the time grid that suits Euler-like methods

    def _repr_html_(self) -> str:
        """Its name, and alpha and sigma over t, for notebooks."""
        t = torch.linspace(self.t_min, self.t_max, 60, dtype=torch.float64)
        curves = {"alpha": self.alpha(t).tolist(), "sigma": self.sigma(t).tolist()}
        return curves_svg(str(self), t.tolist(), curves)

    def __init_subclass__(cls) -> None:
        """What a process defines of time takes numbers and any dtype of tensors, see `as_time`.

        Its ends are checked when all its __post_init__ are over, whether they call one another
        or not.
        """
        super().__init_subclass__()
        finish = cls.__post_init__

        @functools.wraps(finish)
        def post_init(self: SDE) -> None:
            finish(self)
            if type(self) is cls:
                check_ends(self)

        cls.__post_init__ = post_init  # type: ignore[method-assign]
        for name in ("alpha", "sigma", "derivatives", "diffusion", "log_snr"):
            if name in cls.__dict__:
                setattr(cls, name, _of_time(cls.__dict__[name]))

    def __post_init__(self) -> None:  # noqa: B027 (a process may leave it out)
        """What a process checks or derives of its fields; nothing here."""

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in x_t, like t; 1 at t = 0."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in x_t, like t. Write 1 - exp(y) as -expm1(y)."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha'(t), sigma'(t)), by forward-mode differentiation unless a process knows better."""
        t = as_time(t)
        # A jvp at a 0-d float32 t can return a float64 tangent, hence the cast.
        dalpha = torch.func.jvp(self.alpha, (t,), (torch.ones_like(t),))[1].to(t.dtype)
        dsigma = torch.func.jvp(self.sigma, (t,), (torch.ones_like(t),))[1].to(t.dtype)
        return dalpha, dsigma

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), like t; falls with t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The t in (0, t_max] with this log-SNR, like it; bisection in log t by default."""
        target = log_snr if log_snr.device.type == "mps" else log_snr.double()
        low = torch.full_like(target, math.log(self.t_max) - 40.0)
        high = torch.full_like(target, math.log(self.t_max))
        for _ in range(64):
            middle = (low + high) / 2
            noisier = self.log_snr(middle.exp()) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return high.exp().to(log_snr.dtype)

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (like x0) and standard deviation (broadcastable) of p(x_t | x_0)."""
        t = as_time(t)
        check_time(self, t)
        x = as_state(x0)
        return like_state(expand(self.alpha(t), x) * x, x0), expand(self.sigma(t), x)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of p(x_t | x_s) = N(a x_s, b^2 I) for s <= t, like t."""
        s, t = as_time(s), as_time(t)
        check_order(s, t)
        alpha_ratio = self.alpha(t) / self.alpha(s)
        # sigma_t^2 - a^2 sigma_s^2 = -sigma_t^2 expm1(log-SNR difference): no cancellation.
        variance = -(self.sigma(t) ** 2) * torch.expm1(self.log_snr(t) - self.log_snr(s))
        return alpha_ratio, variance.clamp_min(0).sqrt()

    def posterior(self, x0: Tensor, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(x_s | x_t = x, x_0) for s < t (2006.11239, eq. 7)."""
        a, b = self.transition(s, t)
        noise_ratio = (self.sigma(s) / self.sigma(t)) ** 2
        from_x0 = self.alpha(s) * (b / self.sigma(t)) ** 2
        x0, wide = as_state(x0), as_state(x)
        mean = expand(a * noise_ratio, wide) * wide + expand(from_x0, wide) * x0
        return like_state(mean, x), expand(b * noise_ratio.sqrt(), wide)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t) x with f = alpha'/alpha, like x."""
        wide = as_state(x)
        return like_state(expand(self.derivatives(t)[0] / self.alpha(t), wide) * wide, x)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = sqrt(2 sigma (sigma' - sigma alpha'/alpha)), like t."""
        dalpha, dsigma = self.derivatives(t)
        sigma = self.sigma(t)
        return (2 * sigma * (dsigma - sigma * dalpha / self.alpha(t))).clamp_min(0).sqrt()

    def prior_std(self) -> float:
        """Standard deviation of the Gaussian that stands in for p(x_{t_max})."""
        return float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))

    @checked
    def prior_sample(
        self,
        shape: BatchShape,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x_T ~ N(0, prior_std^2 I) of the given shape (B, ...)."""
        check_size(4 * math.prod(shape), "draws of the prior of this shape")
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return self.prior_std() * noise

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log density of `prior_sample` at x, in nats, shape (B,)."""
        std = self.prior_std()
        z = as_state(x).flatten(1) / std
        return -0.5 * z.square().sum(1) - z.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))

    def denoise(
        self, x: Tensor, t: Tensor, score: Callable[[Tensor, Tensor], Tensor] | Tensor
    ) -> Tensor:
        """Tweedie's E[x_0 | x] = (x + sigma^2 score) / alpha; score is a function or its value."""
        value = score(x, as_time(t)) if callable(score) else score
        wide = as_state(x)
        x0 = (wide + expand(self.sigma(t) ** 2, wide) * value) / expand(self.alpha(t), wide)
        return like_state(x0, x)

    @checked
    def reverse(
        self, score: Callable[[Tensor, Tensor], Tensor], eta: NonNegative = 1.0
    ) -> ReverseSDE:
        """The process run backwards; eta = 1 is the reverse SDE, eta = 0 the probability flow."""
        return ReverseSDE(self, score, eta)


def _of_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of t that takes a number, and tensors of any dtype."""

    @functools.wraps(method)
    def of_time(self: SDE, t: Tensor | float) -> Any:
        return method(self, as_time(t))

    return of_time


def check_ends(sde: SDE) -> None:
    """Raises UserError unless the process has signal and finite noise from t_min to t_max, and
    ever less signal for its noise."""
    if not 0 < sde.t_min < sde.t_max < math.inf:
        raise UserError(
            f"sde.t_min ({sde.t_min}) must be above 0 and below sde.t_max ({sde.t_max})."
        )
    check_functions(sde)
    if _is_usable(sde, sde.t_max):
        check_falls(sde)
        return
    low, high = sde.t_min, sde.t_max
    if not _is_usable(sde, low):
        raise UserError(f"{sde} has no finite alpha > 0 and sigma > 0 at sde.t_min ({low}).")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_usable(sde, middle, 1e3) else (low, middle)
    raise UserError(
        f"{sde} cannot end at sde.t_max ({sde.t_max}): alpha, by which x_0 is read off x_t, is 0 "
        f"or almost so there, or sigma is not finite. Usable is sde.t_max={low - low % 1e-4:.4f}."
    )


def check_functions(sde: SDE) -> None:
    """Raises UserError unless alpha and sigma are functions of many times at once."""
    t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
    for name in ("alpha", "sigma"):
        value = getattr(sde, name)(t)
        if not isinstance(value, Tensor) or value.shape not in ((), t.shape):
            raise UserError(
                f"{name}(t) of {type(sde).__name__} must be a tensor of the shape of t "
                f"{tuple(t.shape)} (got {shown(value)}); of a constant, c * torch.ones_like(t)."
            )


def check_falls(sde: SDE) -> None:
    """Raises UserError unless alpha/sigma falls with time."""
    log_snr = sde.log_snr(torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64))
    if not (log_snr[-1] < log_snr[0] and bool((log_snr.diff() < 1e-9).all())):
        found = ", ".join(f"{r / 2:.3g}" for r in log_snr.tolist())
        raise UserError(
            f"alpha/sigma of {sde} must fall from t_min to t_max, since time runs from data to "
            f"noise; its logarithms at equal steps are {found}."
        )


def _is_usable(sde: SDE, t: float, rate: float = 1.01e7) -> bool:
    """Whether alpha and sigma are finite at t, and t alpha'/alpha of the drift at most ``rate``."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    if not (1e-30 < alpha < 1e15 and 0 < sigma < 1e15):
        return False
    return abs(float(sde.derivatives(time)[0])) / alpha * t <= rate


def check_time(sde: SDE, t: Tensor) -> None:
    """Raises UserError for times outside 0 <= t <= t_max, where to look costs no waiting."""
    if _holds((t >= 0) & (t <= sde.t_max * (1 + 1e-4))) is False:
        raise UserError(
            f"times must lie between 0 and sde.t_max ({sde.t_max}); got {float(t.min()):g} to "
            f"{float(t.max()):g}. Step i of a chain of n is t = i t_max/n."
        )


def check_order(s: Tensor, t: Tensor) -> None:
    """Raises UserError unless s <= t, where to look costs no waiting."""
    if _holds(s <= t) is False:
        raise UserError(
            "a transition leads from s to a later or equal t (got s up to "
            f"{float(s.max()):g}, t from {float(t.min()):g})."
        )


def _holds(condition: Tensor) -> bool | None:
    """Whether a condition holds of all; None where that would have to be waited for."""
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        return bool(condition.all())
    except RuntimeError:  # under a transform of torch.func there are no values to look at
        return None


@dataclass(frozen=True)
class ReverseSDE:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, from t_max down to t_min."""

    sde: SDE
    score: Callable[[Tensor, Tensor], Tensor]
    eta: float = 1.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The bracket above, like x. Steps run backwards: x_s = x_t - drift (t - s) + ..."""
        t, wide = as_time(t), as_state(x)
        weight = 0.5 * (1 + self.eta**2) * self.sde.diffusion(t) ** 2
        return like_state(self.sde.drift(wide, t) - expand(weight, wide) * self.score(x, t), x)

    def diffusion(self, t: Tensor) -> Tensor:
        """eta g(t), like t."""
        return self.eta * self.sde.diffusion(t)
