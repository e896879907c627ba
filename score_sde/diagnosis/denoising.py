r"""What a denoiser does at every noise level, beside what others would do.

With x_t = alpha x_0 + sigma eps a model's error E|x_0 - D(x_t)|^2 is set beside three denoisers:

    trivial    the best scaling of x_t
    linear     the best affine map: that of a Gaussian with the data's mean and covariance
    optimal    the posterior mean over the training items, which no denoiser can better on them

Denoising also has identities that hold without knowing the truth (Tweedie to second order):

    E|x_0 - D|^2 = sigma^2/alpha E tr dD/dx           (calibration; 1 if the ratio of both is)
    dD/dx is symmetric                                (the learned field is a gradient: no curl)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.diagnosis.suggest import largest_distance, smallest_spread
from score_sde.evaluation import distances
from score_sde.evaluation.jackknife import block_of
from score_sde.evaluation.memorisation import FEWEST, memorisation
from score_sde.models import ScoreModel
from score_sde.processes.targets import TARGETS

LEVELS = 9
MOST_DIMS = 1500  # up to which covariances are formed


@dataclass(frozen=True)
class Subject:
    """What is examined.

    model, raw: the averaged weights and those as trained. train, held_out: items (n, ...) in the
    model's range; held_out None where there are none. spec: of the data. log: lines of the
    training log, oldest first. samples: (n, ...) in the model's range by the run's own sampler, and
    careful: by a careful one from the same seeds; None if they are not to be judged. trained: the
    range of sigma/alpha that holds 99 % of the training times, None if it is not known.
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


@dataclass(frozen=True)
class Level:
    """Errors of x_0 at one time, each per dimension and over the data's variance.

    at: sigma/alpha. model, raw: of averaged weights and as trained. held_out: of the model on
    held-out items, None without. deaf: of the model told the same time always. calibration:
    measured over expected error. curl: asymmetry of the Jacobian, 0 to 1.
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
    curl: float


def times_of(model: ScoreModel) -> Tensor:
    sde = model.sde
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    inside = torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64)
    return sde.time_of_log_snr(inside).clamp(sde.t_min, sde.t_max)


def _denoise(model: ScoreModel, x: Tensor, t: float, batch: int = 128) -> Tensor:
    parts = x.split(batch)
    with torch.no_grad():
        return torch.cat([model.denoise(part, torch.full((len(part),), t)) for part in parts])


def _deaf(model: ScoreModel) -> ScoreModel:
    """The model told one time always, in the middle of what it is used to."""
    other = copy.copy(model)
    middle = times_of(model)[LEVELS // 2].float()
    if other.time_table is None:
        label = model.time_scale * model._time(middle) + model.time_shift
        other.time_scale, other.time_shift = 0.0, float(label)
    return other


def _error(x0: Tensor, found: Tensor) -> float:
    return float((x0 - found).double().square().mean())


def measure(subject: Subject, t: float, n: int) -> Level:
    model, sde = subject.model, subject.model.sde
    x0 = _some(subject.train, n)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    eps = torch.randn_like(x0)
    x = alpha * x0 + sigma * eps
    flat, target = x.flatten(1).double(), x0.flatten(1).double()
    whole = subject.train.flatten(1).double()
    variance = float((whole - whole.mean(0)).square().mean())
    second = float(whole.square().mean())
    gain = alpha * second / (alpha**2 * second + sigma**2)
    found = _denoise(model, x, t)
    held_out = None
    if subject.held_out is not None:
        other = _some(subject.held_out, n)
        noisy = alpha * other + sigma * torch.randn_like(other)
        held_out = _error(other, _denoise(model, noisy, t)) / variance
    trace, curl = _jacobian(model, x[:64], t)
    expected = sigma**2 / alpha * trace
    return Level(
        t=t,
        at=sigma / alpha,
        model=_error(x0, found) / variance,
        raw=_error(x0, _denoise(subject.raw, x, t)) / variance,
        held_out=held_out,
        deaf=_error(x0, _denoise(_deaf(model), x, t)) / variance,
        trivial=_error(target, gain * flat) / variance,
        linear=_error(target, _linear(whole, flat, alpha, sigma)) / variance,
        optimal=_error(target, _posterior_mean(whole, flat, alpha, sigma)) / variance,
        calibration=_error(x0[:64], found[:64]) / expected if expected > 0 else math.nan,
        curl=curl,
    )


def _some(items: Tensor, n: int) -> Tensor:
    """n items at random, again and again if there are fewer."""
    return items[torch.randint(len(items), (n,))].float()


def _linear(whole: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] of a Gaussian with the data's moments."""
    mean = whole.mean(0)
    if whole.shape[1] > MOST_DIMS:
        values = (whole - mean).square().mean(0)
        return mean + (x - alpha * mean) * (alpha * values / (alpha**2 * values + sigma**2))
    values, axes = torch.linalg.eigh(torch.cov(whole[:5000].T))
    gain = alpha * values / (alpha**2 * values + sigma**2)
    return mean + (((x - alpha * mean) @ axes) * gain) @ axes.T


def _posterior_mean(whole: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] if x_0 is one of the training items."""
    parts = []
    for rows in x.split(64):
        squared = distances.squared_distances(rows, alpha * whole)
        parts.append(torch.softmax(-squared / (2 * sigma**2), 1) @ whole)
    return torch.cat(parts)


def _jacobian(model: ScoreModel, x: Tensor, t: float) -> tuple[float, float]:
    """Mean of the trace of dD/dx per dimension, and |v'Ju - u'Jv| over its usual size."""
    times = torch.full((len(x),), t)
    u, v = torch.randn_like(x), torch.randn_like(x)
    with torch.enable_grad():
        inputs = x.clone().requires_grad_(True)
        out = model.denoise(inputs, times)
        if not out.requires_grad:
            return math.nan, math.nan
        (ju,) = torch.autograd.grad(out, inputs, u, retain_graph=True)
        (jv,) = torch.autograd.grad(out, inputs, v)
    pair = [(a * b).flatten(1).sum(1).double() for a, b in ((ju, v), (jv, u))]
    trace = float((ju * u).double().mean())
    size = (ju.double().square().mean() + jv.double().square().mean()).sqrt()
    curl = float((pair[0] - pair[1]).square().mean().sqrt()) / (
        float(size) * x[0].numel() ** 0.5 * math.sqrt(2) + 1e-12
    )
    return trace, curl


def facts_of(subject: Subject, n: int) -> dict[str, Any]:
    """Numbers that do not belong to one noise level."""
    x = _some(subject.train, min(1000, len(subject.train))).double().flatten(1)
    model, sde = subject.model, subject.model.sde
    std = float(subject.train.double().std())
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    apart = [
        (a.double() - b.double()).square().sum()
        for a, b in zip(model.net.parameters(), subject.raw.net.parameters(), strict=True)
    ]
    size = sum(b.double().square().sum() for b in subject.raw.net.parameters())
    facts: dict[str, Any] = {
        "n_train": len(subject.train),
        "data_std": std,
        "data_mean": float(subject.train.double().mean()),
        "low": float(subject.train.min()),
        "high": float(subject.train.max()),
        "diameter": largest_distance(x),
        "smallest_spread": smallest_spread(x, subject.spec)[0],
        "noise_at_t_min": float(sigma[0] / alpha[0]),
        "terminal_snr": float((alpha[1] * std / sigma[1]) ** 2),
        "prior_kl": _prior_kl(x, float(alpha[1]), float(sigma[1]), sde.prior_std()),
        "ema_distance": float((sum(apart) / size) ** 0.5),  # type: ignore[operator]
        "targets": _targets(subject, n),
    }
    if subject.samples is not None and subject.careful is not None:
        facts |= _sample_facts(subject)
    return facts


def _prior_kl(x: Tensor, alpha: float, sigma: float, prior: float) -> float:
    """KL( Gaussian with the moments of x_T || prior ), nats a dimension, of one variance."""
    ratio = (alpha**2 * float((x - x.mean(0)).square().mean()) + sigma**2) / prior**2
    shift = alpha**2 * float(x.mean(0).square().mean()) / prior**2
    return 0.5 * (ratio - 1 - math.log(ratio) + shift)


def _targets(subject: Subject, n: int) -> dict[str, float]:
    """What errors are if the raw network's output is read as each target: the mean logarithm of
    their ratio to a linear denoiser's, over noise of 0.05 to 20 times the signal."""
    sde, whole = subject.raw.sde, subject.train.flatten(1).double()
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    for time in times_of(subject.raw):
        alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
        if not 0.05 < sigma / alpha < 20:
            continue
        x0 = _some(subject.train, n)
        x = alpha * x0 + sigma * torch.randn_like(x0)
        linear = _linear(whole, x.flatten(1).double(), alpha, sigma)
        usual = _error(x0.flatten(1).double(), linear)
        for name in TARGETS:
            read = copy.copy(subject.raw)
            read.target, read.row_of = name, TARGETS[name]
            error = _error(x0, _denoise(read, x, float(time)))
            found[name].append(math.log(max(error, 1e-30) / usual) if error == error else math.inf)
    return {name: sum(values) / max(len(values), 1) for name, values in found.items()}


def _sample_facts(subject: Subject) -> dict[str, Any]:
    """Energy distances of both samplers' samples to the data, and whether there are copies."""
    assert subject.samples is not None and subject.careful is not None
    real = subject.train[torch.randperm(len(subject.train))[:2000]].flatten(1)
    found: dict[str, Any] = {}
    for name, x in (("samples", subject.samples), ("careful", subject.careful)):
        flat = x.flatten(1).double()
        if not bool(torch.isfinite(flat).all()):
            found[name], found[f"{name}_stderr"] = math.inf, 0.0
            continue
        estimate = distances.kernel_distance(
            distances.negative_distance, flat, block_of(len(flat), 10), real
        )
        found[name], found[f"{name}_stderr"] = estimate.value, estimate.stderr
    found["spread"] = float((real.double() - real.double().mean(0)).norm(dim=1).mean())
    if len(subject.train) >= FEWEST and bool(torch.isfinite(subject.careful).all()):
        found["memorisation"] = memorisation(subject.careful, subject.train, subject.held_out)
    return found
