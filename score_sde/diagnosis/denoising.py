r"""What a denoiser does at every noise level, beside what others would do.

With x_t = alpha x_0 + sigma eps a model's error E|x_0 - D(x_t)|^2 is set beside four denoisers:

    trivial    the best scaling of x_t
    linear     the best affine map: that of a Gaussian with the data's mean and covariance
    optimal    the posterior mean over the training items, which no denoiser can better on them
    unseen     that over the other items, smoothed as suits best: what can be known of an item from
               the others, where the law is not smoother than they show

Denoising also has identities that hold without knowing the truth (Tweedie to second order):

    E|x_0 - D|^2 = sigma^2/alpha E tr dD/dx           (calibration; 1 if the ratio of both is)
    E x_0.(D - E D) = E D.(D - E D)                   (Tweedie: x_0 on D has the slope 1)
    E|score|^2 = -E score.eps / sigma                 (energy: eps on its guess has the slope 1)
    dD/dx is symmetric                                (the learned field is a gradient: no curl)
    d score/dr = grad[r (div + |score|^2)]            (Fokker-Planck, see `fields`)

All denoisers of a level see the same items with the same noise, so that errors are compared item by
item: a ratio of two has the standard error of its paired differences.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.diagnosis import fields
from score_sde.diagnosis.closed_forms import MOST_DIMS, leave_one_out, posterior_mean
from score_sde.diagnosis.ratios import Ratio, Slope, errors_of, ratio, slope
from score_sde.diagnosis.subject import Subject
from score_sde.models import ScoreModel

LEVELS = 9
FEW = 64  # items whose Jacobians are looked at
EXACT_DIMS = 16  # coordinates up to which the Fokker-Planck equation's divergence is exact
SIMPLE = ("trivial", "linear", "optimal", "unseen")
SMOOTHED = (0.0, 0.5, 1.0, 2.0)  # by times the usual distance of an item to its nearest other
PROBES = 4  # random directions of it beyond; half as many of calibration and curl


@dataclass(frozen=True)
class Level:
    """Errors of x_0 at one time, each per dimension and over the data's variance.

    at: sigma/alpha. model, raw: of averaged weights and as trained. held_out: of the model on
    held-out items, None without. deaf: of the model told the same time always, and heard: how much
    of the network's own part in its guesses that changes. calibration: measured over expected
    error. tweedie: slope of x_0 on the guess; energy: that of the noise on what is taken for it;
    both 1 for any posterior mean. curl: asymmetry of the Jacobian, 0 to 1. fokker_planck: share of
    the score's change with noise that the equation does not explain, NaN where it is not looked at.
    errors: of each item, by the same names.
    """

    t: float
    at: float
    model: float
    raw: float
    held_out: float | None
    deaf: float
    heard: float
    trivial: float
    linear: float
    optimal: float
    unseen: float
    calibration: float
    calibration_stderr: float
    tweedie: Slope
    energy: Slope
    curl: float
    fokker_planck: float
    errors: Mapping[str, Tensor] = field(repr=False, default_factory=dict)

    def ratio(self, a: str, b: str) -> Ratio:
        """Of the errors of two denoisers."""
        paired = "held_out" not in (a, b)
        return ratio(self.errors[a], self.errors[b], paired)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the standard errors of the errors."""
        plain = {k: v for k, v in vars(self).items() if k != "errors"}
        for name in ("tweedie", "energy"):
            plain |= {name: plain[name].value, f"{name}_stderr": plain[name].stderr}
        spread = {k: float(v.std()) / len(v) ** 0.5 for k, v in self.errors.items()}
        return plain | {"stderr": spread}


def times_of(model: ScoreModel) -> Tensor:
    """Times evenly spaced in log SNR."""
    sde = model.sde
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    inside = torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64)
    return sde.time_of_log_snr(inside).clamp(sde.t_min, sde.t_max)


class Noisy(NamedTuple):
    """Items x0 (n, ...) with noise: x = alpha x0 + sigma eps at time t; labels (n,) or None.

    rows: the places (n,) of the items in their set.
    """

    x0: Tensor
    x: Tensor
    labels: Tensor | None
    rows: Tensor
    t: float
    alpha: float
    sigma: float

    def first(self, n: int) -> Noisy:
        """The first n of them."""
        labels = None if self.labels is None else self.labels[:n]
        return self._replace(x0=self.x0[:n], x=self.x[:n], labels=labels, rows=self.rows[:n])


def noisy(
    model: ScoreModel, items: Tensor, labels: Tensor | None, t: float, n: int,
    generator: torch.Generator,
) -> Noisy:  # fmt: skip
    """n items at random, again and again if there are fewer, with the noise of a time."""
    rows = torch.randint(len(items), (n,), generator=generator)
    x0 = items[rows].float()
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(model.sde.alpha(time)), float(model.sde.sigma(time))
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)
    return Noisy(x0, x, None if labels is None else labels[rows], rows, t, alpha, sigma)


def deaf(model: ScoreModel) -> ScoreModel:
    """The model told one time always, in the middle of what it is used to."""
    other = copy.copy(model)
    middle = times_of(model)[LEVELS // 2].float()
    label = model.time_scale * model._time(middle) + model.time_shift
    other.time_scale, other.time_shift = 0.0, float(label)
    if other.time_table is not None:
        other.time_table = (1.0,)  # one level, the nearest always
    return other


def output_of(model: ScoreModel, seen: Noisy, batch: int = 128) -> Tensor:
    """What the network itself says of noisy items, told their classes."""
    device = next(model.parameters()).device
    told = model if seen.labels is None else model.bind(class_labels=seen.labels)
    parts = []
    with torch.no_grad():
        for start in range(0, len(seen.x), batch):
            rows = slice(start, start + batch)
            part = seen.x[rows].to(device)
            time = torch.full((len(part),), seen.t, device=device)
            parts.append(told.take(rows).output(part, time).cpu())
    return torch.cat(parts)


def guessed(model: ScoreModel, seen: Noisy, output: Tensor | float) -> Tensor:
    """The x_0 behind an output of the network, in float64."""
    time = torch.tensor(seen.t, dtype=torch.float64)
    return model._split(seen.x.double(), time, torch.as_tensor(output).double().expand_as(seen.x))[
        0
    ]


def denoised(model: ScoreModel, seen: Noisy) -> Tensor:
    """What a model makes of noisy items, told their classes."""
    return guessed(model, seen, output_of(model, seen)).float()


def measure(subject: Subject, t: float, n: int, generator: torch.Generator) -> Level:
    """All errors at a time."""
    model = subject.model
    seen = noisy(model, subject.train, subject.labels, t, n, generator)
    whole = subject.train.flatten(1).double()
    variance = max(float((whole - whole.mean(0)).square().mean()), 1e-30)
    found, unheard = denoised(model, seen), denoised(deaf(model), seen)
    own = (found - guessed(model, seen, 0.0)).square().mean()
    guesses = {
        "model": found,
        "raw": denoised(subject.raw, seen),
        "deaf": unheard,
        **simple_denoisers(subject, seen),
    }
    errors = {name: errors_of(seen.x0, guess, variance) for name, guess in guesses.items()}
    if subject.held_out is not None:
        other = noisy(model, subject.held_out, subject.held_out_labels, t, n, generator)
        errors["held_out"] = errors_of(other.x0, denoised(model, other), variance)
    means = {name: float(value.mean()) for name, value in errors.items()}
    calibration, stderr, curl, residual = _identities(model, seen.first(FEW), errors["model"])
    guess, x0 = found.flatten(1).double(), seen.x0.flatten(1).double()
    noise = ((seen.x.flatten(1).double() - seen.alpha * v) / seen.sigma for v in (x0, guess))
    return Level(
        t=t,
        at=seen.sigma / seen.alpha,
        **{k: means[k] for k in ("model", "raw", "deaf", *SIMPLE)},
        held_out=means.get("held_out"),
        calibration=calibration * variance,
        calibration_stderr=stderr * variance,
        heard=float((found - unheard).square().mean() / own.clamp_min(1e-30)) ** 0.5,
        tweedie=slope(x0 - guess.mean(0), guess - guess.mean(0)),
        energy=slope(*noise),
        curl=curl,
        fokker_planck=residual,
        errors=errors,
    )


def simple_denoisers(subject: Subject, seen: Noisy) -> dict[str, Tensor]:
    """The four that need no network, from the training items; each like x0."""
    x, alpha, sigma = seen.x.flatten(1).double(), seen.alpha, seen.sigma
    whole = subject.train.flatten(1).double()
    second = float(whole.square().mean())
    gain = alpha * second / (alpha**2 * second + sigma**2)
    found = {
        "trivial": gain * x,
        "linear": subject.linear(x, alpha, sigma),
        "optimal": posterior_mean(whole, x, alpha, sigma),
    }
    widths = [factor * subject.gap for factor in SMOOTHED]
    others = leave_one_out(whole, seen.rows, x, alpha, sigma, widths)
    x0 = seen.x0.flatten(1).double()
    found["unseen"] = min(others, key=lambda guess: float((guess - x0).square().mean()))
    return {name: value.reshape(seen.x0.shape) for name, value in found.items()}


def _identities(
    model: ScoreModel, seen: Noisy, errors: Tensor
) -> tuple[float, float, float, float]:
    """Calibration times the variance and its standard error, relative curl, and Fokker-Planck."""
    told = model if seen.labels is None else model.bind(class_labels=seen.labels)
    x, dim = seen.x.to(next(model.parameters()).device), seen.x0[0].numel()
    few = None if dim <= EXACT_DIMS else PROBES
    found = fields.invariants(told.denoise, x, seen.t, few and few // 2)
    expected = (seen.sigma**2 / seen.alpha * found.trace / dim).double().cpu()
    mean = float(expected.mean())
    if not mean > 0:
        return math.nan, math.nan, found.curl(), math.nan
    measured = errors[: len(x)]
    value = float(measured.mean()) / mean
    off = (measured - value * expected) / mean
    residual = math.nan
    if dim <= MOST_DIMS and math.isfinite(mean):
        rows = slice(FEW if dim <= 500 else FEW // 4)
        try:
            residual = float(fields.fokker_planck_residual(
                model.sde, told.take(rows), x[rows], seen.t, few).mean())  # fmt: skip
        except RuntimeError:  # a layer without second derivatives
            residual = math.nan
    return value, float(off.std()) / len(off) ** 0.5, found.curl(), residual
