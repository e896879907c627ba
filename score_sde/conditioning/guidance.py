r"""Guidance: one score steered away from another, as a score again.

With c the conditional score and u the one that it is set against - of the same model without a
condition (2207.12598) or with a negative prompt, or of a weaker model (2406.02507) - guidance is

    s(x, t) = u + w (c - u),        w = w(log-SNR of t), 0: u, 1: c,

a line that reads the same in noise, velocity and the denoised D = E[x_0 | x_t]. For w > 1 this is
the score of no density p_t, though often called that of p(x | c)^w p(x)^(1-w); `particles` samples
that law. Each rule below replaces the line by another; all of them keep c exactly where w is 1.
(Papers that write (1 + w) c - w u mean w - 1 by their w.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from score_sde.checks import UserError, checked, lookup
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.scores import Rows, ScoreError, ScoreFn, take

Weight = Callable[[Tensor], Tensor]
"""w as a function of log-SNR, like it."""


class Rule(Protocol):
    """How two values of a score become the guided one."""

    def __call__(self, look: Look, c: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """The guided score from c and u (B, ...) with w broadcast to them."""


@dataclass(frozen=True)
class Look:
    """Where a rule is asked: the process, x and t; ``memory`` is of this trajectory."""

    sde: SDE
    x: Tensor
    t: Tensor
    memory: dict[str, Any]

    def denoised(self, score: Tensor) -> Tensor:
        """D = (x + sigma^2 s) / alpha."""
        return self.sde.denoise(self.x, self.t, score)

    def score(self, denoised: Tensor) -> Tensor:
        """s = (alpha D - x) / sigma^2."""
        alpha, variance = self.sde.alpha(self.t), self.sde.sigma(self.t) ** 2
        return (expand(alpha, self.x) * denoised - self.x) / expand(variance, self.x)


@dataclass(frozen=True)
class ClassifierFree:
    """u + w (c - u) (2207.12598)."""

    def __call__(self, look: Look, c: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return torch.lerp(u, c, w)


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (2410.02416): D_c + (w - 1)(what of D_c - D_u is across D_c).

    eta: share of the part along D_c, which saturates colours. most: the difference's largest norm,
    inf for any. momentum: beta in difference + beta * running sum; negative in the paper (-0.5,
    -0.75), and kept from step to step of one trajectory.
    """

    eta: float = 0.0
    most: float = math.inf
    momentum: float = 0.0

    def __call__(self, look: Look, c: Tensor, u: Tensor, w: Tensor) -> Tensor:
        clean = look.denoised(c)
        delta = clean - look.denoised(u)
        if self.momentum:
            delta = _running(look, delta, self.momentum)
        norm = expand(delta.flatten(1).norm(dim=1), delta)
        delta = delta * (self.most / norm).clamp(max=1).nan_to_num(1.0)
        along = _projection(delta, clean)
        return look.score(clean + (w - 1) * (delta - along + self.eta * along))


def _running(look: Look, delta: Tensor, momentum: float) -> Tensor:
    """delta + momentum * the sum so far; a time that rises begins another trajectory."""
    if look.t.ndim:
        raise ScoreError(
            "momentum needs a sampler whose samples share their times (not rk45, adaptive_sde): "
            "take another one, or momentum=0."
        )
    t, memory = float(look.t), look.memory
    if memory.get("t", -1.0) < t or memory["sum"].shape != delta.shape:
        memory["sum"] = torch.zeros_like(delta)
    memory["t"], memory["sum"] = t, delta + momentum * memory["sum"]
    return memory["sum"]


def _projection(a: Tensor, b: Tensor) -> Tensor:
    """The part of each a (B, ...) along b."""
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    share = (flat_a * flat_b).sum(1) / flat_b.square().sum(1).clamp_min(1e-30)
    return expand(share.to(a.dtype), a) * b


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero* for flow matching (2503.18886): u scaled to fit c, in velocity.

    v = a v_u + w (v_c - a v_u), a = <v_c, v_u>/|v_u|^2, with the probability flow's velocity
    v = f x - g^2 s/2. zero_below: the log-SNR below which v is 0 instead, in the paper for the
    first 4 % of the steps; -inf for never.
    """

    zero_below: float = -math.inf

    def __call__(self, look: Look, c: Tensor, u: Tensor, w: Tensor) -> Tensor:
        sde, x, t = look.sde, look.x, look.t
        drift, half = sde.drift(x, t), expand(0.5 * sde.diffusion(t) ** 2, x)
        v_c, v_u = drift - half * c, drift - half * u
        v = torch.lerp(_projection(v_c, v_u), v_c, w)
        moves = (sde.log_snr(t) >= self.zero_below).to(x.dtype)
        v = expand(moves, x) * v
        return (drift - v) / half


RULES: dict[str, Callable[..., Rule]] = {
    "cfg": ClassifierFree,
    "apg": Projected,
    "zero_star": ZeroStar,
}


def rescaled(look: Look, c: Tensor, guided: Tensor, share: float) -> Tensor:
    """The denoised picture with the standard deviation of the conditional one (2305.08891, eq. 15).

    share: of the rescaled picture in the result, phi; 0.7 in the paper.
    """
    clean, conditional = look.denoised(guided), look.denoised(c)
    stds = [v.flatten(1).std(1).clamp_min(1e-12) for v in (conditional, clean)]
    factor = share * (stds[0] / stds[1]) + (1 - share)
    return look.score(expand(factor, clean) * clean)


def thresholded(look: Look, guided: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding of the denoised picture in [-1, 1] (2205.11487, section 2.3)."""
    clean = look.denoised(guided)
    most = torch.quantile(clean.flatten(1).abs().float(), quantile, dim=1).clamp(min=1)
    bound = expand(most.to(clean.dtype), clean)
    return look.score(clean.clamp(-bound, bound) / bound)


@dataclass(frozen=True)
class PlusPlus:
    """CFG++ (2406.08070) as a weight: w = strength/(1 - k_s/k_t), k = sigma/alpha, of DDIM's steps.

    A step of `ddim` from t to s with this w is theirs, which renoises with the unconditional noise.
    It belongs to one grid: give the times that the sampler takes.
    """

    log_snr: tuple[float, ...]
    strength: float = 0.6

    @classmethod
    def of(cls, sde: SDE, times: Tensor, strength: float = 0.6) -> PlusPlus:
        """For these falling times."""
        return cls(tuple(sde.log_snr(times.double()).tolist()), strength)

    def __call__(self, log_snr: Tensor) -> Tensor:
        grid = torch.tensor(self.log_snr, dtype=torch.float64, device=log_snr.device)
        weights = self.strength / -torch.expm1(0.5 * (grid[:-1] - grid[1:]))
        weights = torch.cat([weights, weights.new_ones(1)])  # x_0 at the end as it is
        return weights[(log_snr.double()[..., None] - grid).abs().argmin(-1)].to(log_snr)


@dataclass(frozen=True)
class Guided:
    """The guided score; see `guide`, which makes it, for what its parts are."""

    conditional: ScoreFn
    against: ScoreFn
    sde: SDE
    scale: float | Weight
    interval: tuple[float, float] | None
    rule: Rule
    rescale: float
    threshold: float | None
    doubled: bool
    memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def no_density(self) -> str | None:
        """Why this is the score of no density, for who would need one; None where it is."""
        if not callable(self.scale) and self.scale in (0, 1):
            return None
        return (
            f"a score guided by {self.scale if not callable(self.scale) else 'a function'} is the "
            "score of no density, so it has no likelihood: take the scale 1, or the model without "
            "guidance."
        )

    def take(self, rows: Rows) -> Guided:
        """The score of some samples, see `scores.take`."""
        return Guided(
            take(self.conditional, rows), take(self.against, rows), self.sde, self.scale,
            self.interval, self.rule, self.rescale, self.threshold, self.doubled,
        )  # fmt: skip

    def weight(self, t: Tensor) -> Tensor:
        """w at time t, like t; 1 outside of the interval."""
        log_snr = self.sde.log_snr(t.double())
        w = self.scale(log_snr) if callable(self.scale) else torch.full_like(log_snr, self.scale)
        if self.interval is None:
            return w
        inside = (log_snr >= self.interval[0]) & (log_snr <= self.interval[1])
        return torch.where(inside, w, torch.ones_like(w))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided score at x (B, ...) and t () or (B,), like x."""
        t = torch.as_tensor(t)
        w = self.weight(t)
        if bool((w == 1).all()):
            return self.conditional(x, t)
        if bool((w == 0).all()):
            return self.against(x, t)
        c, u = self.both(x, t)
        return self._combined(x, t, c, u, w)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """D = (x + sigma^2 s) / alpha, like x."""
        return self.sde.denoise(x, torch.as_tensor(t), self(x, t))

    @property
    def score_and_v(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The guided score and the learned variances of the conditional one, if it has any."""
        if not hasattr(self.conditional, "score_and_v"):
            raise AttributeError("the conditional score has no learned variances")
        return self._score_and_v

    def _score_and_v(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        w = self.weight(t)
        if self.doubled and not bool((w == 1).all()):
            both = self._pair(len(x)).score_and_v(*_twice(x, t))  # type: ignore[attr-defined]
            (c, u), v = both[0].chunk(2), both[1].chunk(2)[0]
        else:
            c, v = self.conditional.score_and_v(x, t)  # type: ignore[attr-defined]
            u = c if bool((w == 1).all()) else self.against(x, t)
        return self._combined(x, t, c, u, w), v

    def _pair(self, n: int) -> ScoreFn:
        return self.conditional.joined(self.against, n)  # type: ignore[attr-defined]

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The two scores, by one evaluation of twice the samples where both are of one model."""
        if not self.doubled:
            return self.conditional(x, t), self.against(x, t)
        c, u = self._pair(len(x))(*_twice(x, t)).chunk(2)
        return c, u

    def _combined(self, x: Tensor, t: Tensor, c: Tensor, u: Tensor, w: Tensor) -> Tensor:
        wide = expand(w.to(x.dtype).to(x.device), x)
        look = Look(self.sde, x, t, self.memory)
        guided = self.rule(look, c, u, wide.expand_as(x))
        if self.rescale:
            guided = rescaled(look, c, guided, self.rescale)
        if self.threshold is not None:
            guided = thresholded(look, guided, self.threshold)
        if w.ndim == 0:
            return guided
        return torch.where(wide == 1, c, torch.where(wide == 0, u, guided))


def _twice(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t


@checked
def guide(
    conditional: ScoreFn,
    against: ScoreFn,
    scale: float | Weight = 2.0,
    *,
    interval: tuple[float, float] | None = None,
    rule: str | Rule = "cfg",
    rescale: float = 0.0,
    threshold: float | None = None,
    sde: SDE | None = None,
) -> Guided:
    """A score led from ``against`` to ``conditional`` and beyond; for any sampler.

    conditional, against: bound scores, `model.bind(class_labels=y)` and `model.bind()` for
        classifier-free guidance, another prompt for a negative one, or a weaker model with the
        same condition for autoguidance. Two of one model are evaluated as one batch.
    scale: w, 1 for the conditional score as it is, 0 for the other; or a function of log-SNR.
    interval: log-SNR (from, to) within which w counts; outside of it w is 1 and only the
        conditional score is evaluated (2404.07724).
    rule: "cfg", "apg" (`Projected`), "zero_star" (`ZeroStar`), or a rule with settings.
    rescale: phi of 2305.08891, 0 for none. threshold: quantile of dynamic thresholding (0.995), for
        pictures in [-1, 1].
    sde: the process; that of ``conditional`` unless given.

    Raises UserError for settings that make no sense.
    """
    sde = sde or getattr(conditional, "sde", None)
    check_guidance(sde, scale, interval, rescale, threshold)
    assert sde is not None
    chosen: Rule = lookup(RULES, rule, "guidance rule")() if isinstance(rule, str) else rule
    joins = getattr(conditional, "joins", None)
    doubled = joins is not None and joins(against)
    return Guided(conditional, against, sde, scale, interval, chosen, rescale, threshold, doubled)


def check_guidance(
    sde: SDE | None,
    scale: float | Weight,
    interval: Sequence[float] | None,
    rescale: float,
    threshold: float | None,
) -> None:
    """UserError for what guidance cannot be."""
    if sde is None:
        raise UserError("the conditional score does not say of which process it is: give sde.")
    if not callable(scale) and not (scale >= 0 and math.isfinite(scale)):
        raise UserError(
            f"guidance must be a number of at least 0 (got {scale}): 1 is the conditional score, 0 "
            "the other one."
        )
    if interval is not None and (len(interval) != 2 or not interval[0] < interval[1]):
        raise UserError(f"the interval is (lower, upper) in log-SNR; got {tuple(interval)}.")
    if not 0 <= rescale <= 1:
        raise UserError(f"rescale must lie in [0, 1] (got {rescale}).")
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"threshold is a quantile in (0, 1] (got {threshold}).")
