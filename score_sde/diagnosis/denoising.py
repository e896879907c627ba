r"""What a denoiser does at every noise level, beside what others would do.

With x_t = alpha x_0 + sigma eps a model's error E|x_0 - D(x_t)|^2 is set beside three denoisers:

    trivial    the best scaling of x_t
    linear     the best affine map: that of a Gaussian with the data's mean and covariance
    optimal    the posterior mean over the training items, which no denoiser can better on them

Denoising also has identities that hold without knowing the truth (Tweedie to second order):

    E|x_0 - D|^2 = sigma^2/alpha E tr dD/dx           (calibration; 1 if the ratio of both is)
    dD/dx is symmetric                                (the learned field is a gradient: no curl)
    d score/dr = grad[r (div + |score|^2)]            (Fokker-Planck, see `derivatives`)

All denoisers of a level see the same items with the same noise, so that errors are compared item by
item: a ratio of two has the standard error of its paired differences.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.diagnosis.derivatives import fokker_planck_residual, products, relative_curl
from score_sde.evaluation import distances
from score_sde.models import ScoreModel

LEVELS = 9
MOST_DIMS = 1500  # up to which covariances are formed
FEW = 64  # items whose Jacobians are looked at
SURE = 4.0  # standard errors by which a ratio must pass a bound before it is called so


@dataclass(frozen=True)
class Subject:
    """What is examined.

    model, raw: the averaged weights and those as trained. train, held_out: items (n, ...) in the
    model's range; held_out None where there are none. labels: the classes (n,) that belong to
    train, None for a network that is told none; held_out_labels likewise. spec: of the data. log:
    lines of the training log, oldest first. samples: (n, ...) in the model's range by the run's own
    sampler, and careful: by a careful one from the same seeds; None if they are not to be judged.
    trained: the range of sigma/alpha that holds all but 0.2 % of the training times, None if not
    known. earlier: another checkpoint's weights as trained.
    """

    model: ScoreModel
    raw: ScoreModel
    train: Tensor
    held_out: Tensor | None
    spec: DataSpec
    log: Sequence[Mapping[str, Any]] = ()
    samples: Tensor | None = None
    careful: Tensor | None = None
    sampler: str = "the sampler"
    trained: tuple[float, float] | None = None
    labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    earlier: ScoreModel | None = None


class Ratio(NamedTuple):
    """The logarithm of a ratio of errors, and its standard error."""

    log: float
    stderr: float

    @property
    def value(self) -> float:
        """The ratio."""
        return math.exp(min(self.log, 700.0))

    def above(self, bound: float) -> bool:
        """Whether it is, by more than chance explains."""
        return self.log - SURE * self.stderr > math.log(bound)

    def below(self, bound: float) -> bool:
        """Whether it is, by more than chance explains."""
        return self.log + SURE * self.stderr < math.log(bound)


def ratio(a: Tensor, b: Tensor, paired: bool = True) -> Ratio:
    """Of the means of errors (n,) of the same items, or of others if not paired."""
    mean_a, mean_b = (float(v.mean().clamp_min(1e-12)) for v in (a, b))
    log = math.log(mean_a / mean_b)
    if paired:
        variance = float((a / mean_a - b / mean_b).var()) / len(a)
    else:
        variance = float((a / mean_a).var()) / len(a) + float((b / mean_b).var()) / len(b)
    return Ratio(log, math.sqrt(variance))


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """The geometric mean of independent ratios; 1 of none."""
    n = max(len(ratios), 1)
    return Ratio(sum(r.log for r in ratios) / n, math.sqrt(sum(r.stderr**2 for r in ratios)) / n)


@dataclass(frozen=True)
class Level:
    """Errors of x_0 at one time, each per dimension and over the data's variance.

    at: sigma/alpha. model, raw: of averaged weights and as trained. held_out: of the model on
    held-out items, None without. deaf: of the model told the same time always. calibration:
    measured over expected error. curl: asymmetry of the Jacobian, 0 to 1. fokker_planck: share of
    the score's change with noise that the equation does not explain, NaN where it is not looked at.
    errors: of each item, by the same names.
    """

    t: float
    at: float
    model: float
    raw: float
    held_out: float | None
    deaf: float
    trivial: float
    linear: float
    optimal: float
    calibration: float
    calibration_stderr: float
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
        spread = {k: float(v.std()) / len(v) ** 0.5 for k, v in self.errors.items()}
        return plain | {"stderr": spread}


def times_of(model: ScoreModel) -> Tensor:
    """Times evenly spaced in log SNR."""
    sde = model.sde
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    inside = torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64)
    return sde.time_of_log_snr(inside).clamp(sde.t_min, sde.t_max)


class Noisy(NamedTuple):
    """Items x0 (n, ...) with noise: x = alpha x0 + sigma eps at time t; labels (n,) or None."""

    x0: Tensor
    x: Tensor
    labels: Tensor | None
    t: float
    alpha: float
    sigma: float

    def first(self, n: int) -> Noisy:
        """The first n of them."""
        labels = None if self.labels is None else self.labels[:n]
        return self._replace(x0=self.x0[:n], x=self.x[:n], labels=labels)


def noisy(model: ScoreModel, items: Tensor, labels: Tensor | None, t: float, n: int) -> Noisy:
    """n items at random, again and again if there are fewer, with the noise of a time."""
    rows = torch.randint(len(items), (n,))
    x0 = items[rows].float()
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(model.sde.alpha(time)), float(model.sde.sigma(time))
    x = alpha * x0 + sigma * torch.randn_like(x0)
    return Noisy(x0, x, None if labels is None else labels[rows], t, alpha, sigma)


def denoised(model: ScoreModel, seen: Noisy, batch: int = 128) -> Tensor:
    """What a model makes of noisy items, told their classes."""
    device = next(model.parameters()).device
    told = model if seen.labels is None else model.bind(class_labels=seen.labels)
    parts = []
    with torch.no_grad():
        for start in range(0, len(seen.x), batch):
            rows = slice(start, start + batch)
            part = seen.x[rows].to(device)
            time = torch.full((len(part),), seen.t, device=device)
            parts.append(told.take(rows).denoise(part, time).cpu())
    return torch.cat(parts)


def errors_of(x0: Tensor, found: Tensor, variance: float = 1.0) -> Tensor:
    """(n,): mean square a dimension over the variance; what is not finite is huge."""
    squares = (x0.double() - found.double()).square().flatten(1).mean(1) / variance
    return torch.nan_to_num(squares, nan=1e12, posinf=1e12).clamp_max(1e12)


def deaf(model: ScoreModel) -> ScoreModel:
    """The model told one time always, in the middle of what it is used to."""
    other = copy.copy(model)
    middle = times_of(model)[LEVELS // 2].float()
    if other.time_table is None:
        label = model.time_scale * model._time(middle) + model.time_shift
        other.time_scale, other.time_shift = 0.0, float(label)
    return other


def measure(subject: Subject, t: float, n: int) -> Level:
    """All errors at a time."""
    model = subject.model
    seen = noisy(model, subject.train, subject.labels, t, n)
    whole = subject.train.flatten(1).double()
    variance = max(float((whole - whole.mean(0)).square().mean()), 1e-30)
    found = denoised(model, seen)
    guesses = {
        "model": found,
        "raw": denoised(subject.raw, seen),
        "deaf": denoised(deaf(model), seen),
        **simple_denoisers(whole, seen),
    }
    errors = {name: errors_of(seen.x0, guess, variance) for name, guess in guesses.items()}
    if subject.held_out is not None:
        other = noisy(model, subject.held_out, subject.held_out_labels, t, n)
        errors["held_out"] = errors_of(other.x0, denoised(model, other), variance)
    means = {name: float(value.mean()) for name, value in errors.items()}
    calibration, stderr, curl, residual = _identities(model, seen.first(FEW), errors["model"])
    return Level(
        t=t,
        at=seen.sigma / seen.alpha,
        **{k: means[k] for k in ("model", "raw", "deaf", "trivial", "linear", "optimal")},
        held_out=means.get("held_out"),
        calibration=calibration * variance,
        calibration_stderr=stderr * variance,
        curl=curl,
        fokker_planck=residual,
        errors=errors,
    )


def simple_denoisers(whole: Tensor, seen: Noisy) -> dict[str, Tensor]:
    """The three that need no network, from the training items (N, D); each like x0."""
    x, alpha, sigma = seen.x.flatten(1).double(), seen.alpha, seen.sigma
    second = float(whole.square().mean())
    gain = alpha * second / (alpha**2 * second + sigma**2)
    found = {
        "trivial": gain * x,
        "linear": linear(whole, x, alpha, sigma),
        "optimal": posterior_mean(whole, x, alpha, sigma),
    }
    return {name: value.reshape(seen.x0.shape) for name, value in found.items()}


def linear(whole: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] of a Gaussian with the data's moments."""
    mean = whole.mean(0)
    if whole.shape[1] > MOST_DIMS:
        values = (whole - mean).square().mean(0)
        return mean + (x - alpha * mean) * (alpha * values / (alpha**2 * values + sigma**2))
    values, axes = torch.linalg.eigh(torch.cov(whole[:5000].T).reshape(len(mean), -1))
    gain = alpha * values / (alpha**2 * values + sigma**2)
    return mean + (((x - alpha * mean) @ axes) * gain) @ axes.T


def posterior_mean(whole: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] if x_0 is one of the training items."""
    parts = []
    for rows in x.split(64):
        squared = distances.squared_distances(rows, alpha * whole)
        parts.append(torch.softmax(-squared / (2 * sigma**2), 1) @ whole)
    return torch.cat(parts)


def _identities(
    model: ScoreModel, seen: Noisy, errors: Tensor
) -> tuple[float, float, float, float]:
    """Calibration times the variance and its standard error, relative curl, and Fokker-Planck."""
    device, t = next(model.parameters()).device, torch.full((len(seen.x),), seen.t)
    told = model if seen.labels is None else model.bind(class_labels=seen.labels)
    found = products(lambda x: told.denoise(x, t.to(device)), seen.x.to(device))
    expected = seen.sigma**2 / seen.alpha * found.trace / seen.x0[0].numel()
    measured = errors[: len(seen.x)]
    mean = float(expected.mean())
    if not mean > 0:
        return math.nan, math.nan, relative_curl(found), math.nan
    value = float(measured.mean()) / mean
    off = (measured - value * expected.cpu()) / mean
    residual = math.nan
    if seen.x0[0].numel() <= MOST_DIMS and bool(torch.isfinite(found.value).all()):
        few = FEW if seen.x0[0].numel() <= 500 else FEW // 4
        residual = _fokker_planck(told.take(slice(few)), seen.first(few))
    return value, float(off.std()) / len(off) ** 0.5, relative_curl(found), residual


def _fokker_planck(model: ScoreModel, seen: Noisy) -> float:
    """Of the score in y = x/alpha, whose noise is r = sigma/alpha."""
    sde, device = model.sde, next(model.parameters()).device

    def score(y: Tensor, r: float) -> Tensor:
        log_snr = torch.tensor(-2 * math.log(r), dtype=torch.float64)
        t = sde.time_of_log_snr(log_snr).to(torch.float32).to(device)
        alpha = float(sde.alpha(t.double()))
        return alpha * model(alpha * y, t.expand(len(y)))

    try:
        return fokker_planck_residual(
            score, seen.x.to(device) / seen.alpha, seen.sigma / seen.alpha
        )
    except RuntimeError:  # a layer without second derivatives
        return math.nan
