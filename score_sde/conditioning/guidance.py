r"""Guidance: one score steered away from another, as a score again.

With c the conditional score and u the one that it is set against - of the same model without a
condition (2207.12598) or with a negative prompt, or of a weaker model (2406.02507) - guidance is

    s(x, t) = u + w (c - u),        w = w(log-SNR of t), 0: u, 1: c,

a line that reads the same in noise, velocity and the denoised D = E[x_0 | x_t]. For w > 1 this is
the score of no density p_t, though often called that of p(x | c)^w p(x)^(1-w); `particles` samples
that law. Each of the other `rules` replaces the line by another; all keep c exactly where w is 1.
(Papers that write (1 + w) c - w u mean w - 1 by their w.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import Fraction, Share, UserError, checked, require
from score_sde.conditioning.rules import Look, Rule, make_rule, rescaled, thresholded
from score_sde.processes.expand import expand, on_rows
from score_sde.processes.sdes import SDE
from score_sde.scores import Rows, ScoreFn, check_like, take

Weight = Callable[[Tensor], Tensor]
"""w as a function of log-SNR, like it."""


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
    bounds: tuple[float, float]
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
            self.interval, self.rule, self.rescale, self.threshold, self.bounds, self.doubled,
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
        """The two scores, by one evaluation of twice the samples where both are of one model.

        UserError for scores that are not like x.
        """
        if not self.doubled:
            c, u = self.conditional(x, t), self.against(x, t)
            for score in (c, u):
                check_like(score, x, dtype=False)
            return c, u
        c, u = self._pair(len(x))(*_twice(x, t)).chunk(2)
        return c, u

    def _combined(self, x: Tensor, t: Tensor, c: Tensor, u: Tensor, w: Tensor) -> Tensor:
        wide = expand(on_rows(w.to(x.dtype), x), x)
        look = Look(self.sde, x, t, self.memory)
        guided = self.rule(look, c, u, wide.expand_as(x))
        if self.rescale:
            guided = rescaled(look, c, guided, self.rescale)
        if self.threshold is not None:
            guided = thresholded(look, guided, self.threshold, self.bounds)
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
    rescale: Fraction = 0.0,
    threshold: Share | None = None,
    bounds: tuple[float, float] = (-1.0, 1.0),
    sde: SDE | None = None,
) -> Guided:
    """A score led from ``against`` to ``conditional`` and beyond; for any sampler.

    conditional, against: bound scores, `model.bind(class_labels=y)` and `model.bind()` for
        classifier-free guidance, another prompt for a negative one, a weaker model with the same
        condition for autoguidance, or `classifier.told(score, y)` and that score for the guidance
        of a classifier. Two of one model are evaluated as one batch.
    scale: w, 1 for the conditional score as it is, 0 for the other; or a function of log-SNR.
    interval: log-SNR (from, to) within which w counts; outside of it w is 1 and only the
        conditional score is evaluated (2404.07724).
    rule: "cfg", "apg" (`Projected`), "zero_star" (`ZeroStar`), or a rule with settings.
    rescale: phi of 2305.08891, 0 for none. threshold: quantile of dynamic thresholding (0.995), of
        pictures whose values lie within ``bounds``.
    sde: the process; that of ``conditional`` unless given.

    Raises UserError for settings that make no sense.
    """
    sde = sde or getattr(conditional, "sde", None)
    check_guidance(sde, scale, interval, rescale, threshold)
    require(bounds[0] < bounds[1], f"bounds are the lower and the upper (got {bounds}).")
    assert sde is not None
    joins = getattr(conditional, "joins", None)
    doubled = joins is not None and joins(against)
    return Guided(
        conditional, against, sde, scale, interval, make_rule(rule), rescale, threshold, bounds,
        doubled,
    )  # fmt: skip


@checked("")
def check_guidance(
    sde: SDE | None,
    scale: float | Weight,
    interval: Sequence[float] | None,
    rescale: Fraction = 0.0,
    threshold: Share | None = None,
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
