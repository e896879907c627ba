r"""Rules of guidance: what becomes of the conditional score c and of u, that it is led away from.

The plain rule is a line, u + w (c - u); the others change the denoised picture D or the velocity,
and all of them keep c exactly where w is 1 (`guidance.Guided` sees to it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import Extended, check_names, lookup, validated
from score_sde.processes.expand import expand
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreError


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


@validated("apg")
@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (2410.02416): D_c + (w - 1)(what of D_c - D_u is across D_c).

    eta: share of the part along D_c, which saturates colours. most: the difference's largest norm,
    inf for any. momentum: beta in difference + beta * running sum; negative in the paper (-0.5,
    -0.75), and kept from step to step of one trajectory.
    """

    eta: float = 0.0
    most: Annotated[Extended, Field(gt=0)] = math.inf
    momentum: Annotated[float, Field(gt=-1, lt=1)] = 0.0

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


@validated("zero_star")
@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero* for flow matching (2503.18886): u scaled to fit c, in velocity.

    v = a v_u + w (v_c - a v_u), a = <v_c, v_u>/|v_u|^2, with the probability flow's velocity
    v = f x - g^2 s/2. zero_below: the log-SNR below which v is 0 instead, in the paper for the
    first 4 % of the steps; -inf for never.
    """

    zero_below: Extended = -math.inf

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


BESIDE = ("rescale", "threshold")  # options of every rule, see `guidance.guide`


def make_rule(rule: str | Rule, options: Mapping[str, Any] | None = None) -> Rule:
    """A rule by its name in `RULES`, with these fields of it; or one that is made already.

    Raises UserError for a name or an option that is not there.
    """
    if not isinstance(rule, str):
        return rule
    make = lookup(RULES, rule, "guidance rule")
    if isinstance(make, type):
        known, what = [f.name for f in fields(make)], f"{rule}: the guidance option"
        check_names(options or {}, known, what, also=f" and, beside it, {', '.join(BESIDE)}")
    return make(**dict(options or {}))


def rescaled(look: Look, c: Tensor, guided: Tensor, share: float) -> Tensor:
    """The denoised picture with the standard deviation of the conditional one (2305.08891, eq. 15).

    share: of the rescaled picture in the result, phi; 0.7 in the paper.
    """
    clean, conditional = look.denoised(guided), look.denoised(c)
    stds = [v.flatten(1).std(1).clamp_min(1e-12) for v in (conditional, clean)]
    factor = share * (stds[0] / stds[1]) + (1 - share)
    return look.score(expand(factor, clean) * clean)


def thresholded(
    look: Look, guided: Tensor, quantile: float, bounds: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """Dynamic thresholding of the denoised picture (2205.11487, section 2.3).

    bounds: of the values of pictures; about their middle, everything is divided by the quantile of
    the distances where that lies beyond them.
    """
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    clean = (look.denoised(guided) - middle) / half
    most = torch.quantile(clean.flatten(1).abs().float(), quantile, dim=1).clamp(min=1)
    bound = expand(most.to(clean.dtype), clean)
    return look.score(middle + half * (clean.clamp(-bound, bound) / bound))


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
