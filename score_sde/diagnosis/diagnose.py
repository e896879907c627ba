r"""Why a model fails: measurements of a denoiser at every noise level, and the causes they show.

With x_t = alpha x_0 + sigma eps a model's error E|x_0 - D(x_t)|^2 is set beside three denoisers:

    trivial    the best scaling of x_t
    linear     the best affine map: that of a Gaussian with the data's mean and covariance
    optimal    the posterior mean over the training items, which no denoiser can better on them

Denoising also has identities that hold without knowing the truth (Tweedie to second order):

    E|x_0 - D|^2 = sigma^2/alpha E tr dD/dx           (calibration; 1 if the ratio of both is)
    dD/dx is symmetric                                (the learned field is a gradient: no curl)

Each finding names the cause, the evidence with its figures, and the fix. See `CHECKS`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.diagnosis.suggest import largest_distance, smallest_spread
from score_sde.evaluation import distances
from score_sde.evaluation.jackknife import block_of
from score_sde.evaluation.memorisation import FEWEST, memorisation
from score_sde.models import ScoreModel
from score_sde.processes.expand import expand
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


@dataclass(frozen=True)
class Finding:
    """A cause by its name, the evidence with its figures, and what to change."""

    cause: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found: the findings, worst first, all levels, and what was checked."""

    findings: tuple[Finding, ...]
    levels: tuple[Level, ...]
    facts: Mapping[str, Any]
    checked: tuple[str, ...] = field(default=())

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of the causes, worst first."""
        return tuple(f.cause for f in self.findings)

    def table(self) -> str:
        """Errors by noise level."""
        names = ("at", "model", "raw", "held_out", "trivial", "linear", "optimal", "calibration",
                 "curl")  # fmt: skip
        rows = ["  ".join(f"{n:>11s}" for n in ("sigma/alpha", *names[1:]))]
        for level in self.levels:
            values = [getattr(level, n) for n in names]
            rows.append("  ".join(f"{'-' if v is None else format(v, '.4g'):>11s}" for v in values))
        return "\n".join(rows)

    def __str__(self) -> str:
        if self.findings:
            said = "\n".join(f"{f.cause}: {f.evidence}\n  fix: {f.fix}" for f in self.findings)
        else:
            said = f"nothing found; checked were {', '.join(self.checked)}."
        return f"{self.table()}\n\n{said}"


def diagnose_model(subject: Subject, n: int = 512, seed: int = 0) -> Diagnosis:
    """Measure a model and name what is wrong with it.

    n: items at each of nine noise levels between t_min and t_max, evenly spaced in log SNR.
    """
    broken = _not_finite(subject)
    if broken is not None:
        return Diagnosis((broken,), (), {}, ("weights",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        levels = tuple(_measure(subject, float(t), n) for t in _times(subject.model))
        facts = _facts(subject, n)
    found = [(name, check(subject, levels, facts)) for name, check in CHECKS.items()]
    findings = tuple(f for _, f in found if f is not None)
    hidden = {cause for f in findings for cause in HIDES.get(f.cause, ())}
    kept = tuple(f for f in findings if f.cause not in hidden)
    return Diagnosis(kept, levels, facts, tuple(CHECKS))


def _not_finite(subject: Subject) -> Finding | None:
    for name, model in (("averaged", subject.model), ("raw", subject.raw)):
        bad = [k for k, v in model.net.state_dict().items() if not bool(torch.isfinite(v).all())]
        if bad:
            return Finding(
                "weights not finite",
                f"{len(bad)} of the {name} tensors hold NaN or infinity, the first {bad[0]}",
                "go back to an earlier checkpoint; train with a lower training.lr, "
                "training.grad_clip=1 and training fp32",
            )
    return None


# Measurements -------------------------------------------------------------------------------------


def _times(model: ScoreModel) -> Tensor:
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
    middle = _times(model)[LEVELS // 2].float()
    if other.time_table is None:
        label = model.time_scale * model._time(middle) + model.time_shift
        other.time_scale, other.time_shift = 0.0, float(label)
    return other


def _error(x0: Tensor, found: Tensor) -> float:
    return float((x0 - found).double().square().mean())


def _measure(subject: Subject, t: float, n: int) -> Level:
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


def _facts(subject: Subject, n: int) -> dict[str, Any]:
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
    """How far the raw network's output is from each target, over the target's variance."""
    model = subject.raw
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    for t in _times(model)[1:-1:2]:
        x0 = _some(subject.train, n)
        eps = torch.randn_like(x0)
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        with torch.no_grad():
            out = model.output((alpha * x0 + sigma * eps).float(), t.float().expand(n))
        for name, make in TARGETS.items():
            a, b = make(model.sde, t, model.data_std)
            target = expand(a, x0) * x0 + expand(b, x0) * eps
            spread = float(target.double().square().mean())
            found[name].append(_error(target, out) / max(spread, 1e-30))
    return {name: sum(values) / len(values) for name, values in found.items()}


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


# Causes -------------------------------------------------------------------------------------------

Levels = tuple[Level, ...]
Check = Callable[[Subject, Levels, Mapping[str, Any]], Finding | None]


def _learnable(levels: Levels) -> list[Level]:
    """Where there is something to learn: the optimum betters the trivial guess by a tenth."""
    return [v for v in levels if v.optimal < 0.9 * v.trivial and v.at > 0.02] or list(levels)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _geometric(levels: Sequence[Level], a: str, b: str) -> float:
    """The geometric mean over levels of the ratio of two errors."""
    logs = [math.log(max(getattr(v, a), 1e-12) / max(getattr(v, b), 1e-12)) for v in levels]
    return math.exp(_mean(logs))


def _data_range(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    std, mean = facts["data_std"], facts["data_mean"]
    sde = subject.model.sde
    unit = float(sde.alpha(torch.tensor(sde.t_max))) < 0.5  # the signal fades, as VP's does
    worst = max(std, abs(mean))
    if (unit and (worst > 3 or std < 0.05)) or worst > 30:
        return Finding(
            "wrong data range",
            f"training items lie in [{facts['low']:.3g}, {facts['high']:.3g}] with standard "
            f"deviation {std:.3g} as the model sees them; the process is made for about 1",
            "set data.scaling=standard (or symmetric), and data.range if the bounds are wrong",
        )
    return None


def _target(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    own, targets = subject.raw.target, facts["targets"]
    best = min(targets, key=lambda name: targets[name])
    if best != own and targets[best] < 0.6 * targets[own] and targets[own] > 0.5:
        return Finding(
            "wrong prediction type",
            f"the output misses the declared target {own!r} by {targets[own]:.2f} of its power, "
            f"{best!r} by {targets[best]:.2f}",
            f"set model.target={best}, or train again as {own}",
        )
    return None


def _ema(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    ratio = _geometric(_learnable(levels), "model", "raw")
    if ratio > 1.5 and facts["ema_distance"] > 0.05:
        trivial = _geometric(_learnable(levels), "model", "trivial")
        never = trivial > 0.9
        return Finding(
            "EMA never updated" if never else "EMA lags",
            f"averaged weights err {ratio:.2f} times as much as raw ones, {trivial:.2f} times the "
            f"trivial guess, and differ from them by {facts['ema_distance']:.0%} of their norm",
            "sample with --weights model now; train with training.ema_sigma_rel=0.1, which needs "
            "not know the run's length, or a smaller ema_decay",
        )
    return None


def _time(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    inner = levels[:-1]
    ratio = max(max(v.deaf, v.model) / max(min(v.deaf, v.model), 1e-12) for v in inner)
    if ratio < 1.005 and _geometric(_learnable(levels), "model", "trivial") < 0.99:
        return Finding(
            "ignored t",
            f"told the same time at all noise levels, errors change by {ratio - 1:.1%} at most",
            "let forward(x, noise_label) use its noise_label: an embedding that is added to or "
            "scales the features of every block; check model.time_scale",
        )
    return None


def _sigma_max(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    snr, kl = facts["terminal_snr"], facts["prior_kl"]
    if snr > 0.02 or kl > 0.05:
        return Finding(
            "sigma_max too small",
            f"at t_max the data still stand out: SNR {snr:.2g}, {kl:.2g} nats a dimension between "
            f"x_T and the prior; the data's diameter is {facts['diameter']:.3g}, sigma/alpha there "
            f"{levels[-1].at:.3g}",
            f"raise sde.sigma_max to {facts['diameter']:.2g} (VE), or beta_max or t_max, and train "
            "again",
        )
    return None


def _t_min(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    noise, spread = facts["noise_at_t_min"], facts["smallest_spread"]
    lost = levels[0].optimal
    if lost > 0.02 and noise > facts["smallest_spread"] / 3:
        return Finding(
            "t_min too large",
            f"at t_min = {subject.model.sde.t_min:g} the noise is {noise:.3g} of the signal, the "
            f"data's smallest spread {spread:.3g}: {lost:.1%} of the variance is lost there",
            "lower sde.t_min (--mode suggest gives a value)",
        )
    return None


def _learning_rate(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    losses = [float(v["loss"]) for v in subject.log if _finite(v.get("loss"))]
    skipped = max((int(v.get("skipped_steps") or 0) for v in subject.log), default=0)
    worse = _geometric(_learnable(levels), "raw", "trivial")
    late = losses[len(losses) // 2 :]
    peaks = max(late) / (sorted(late)[len(late) // 2] + 1e-12) if len(late) >= 4 else 1.0
    noisy = _geometric(_learnable(levels), "raw", "model")
    if skipped or worse > 1.1 or peaks > 5 or noisy > 1.5:
        return Finding(
            "learning rate too high",
            f"raw weights err {worse:.2g} times the trivial guess and {noisy:.2g} times their "
            f"average; {skipped} updates without a finite gradient; the largest late loss is "
            f"{peaks:.2g} times the median",
            "divide training.lr by 3 to 10, with training.grad_clip=1 and warmup_steps",
        )
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _coverage(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    """Noise levels that sampling asks about, training does not, and the model knows nothing of."""
    if subject.trained is None:
        return None
    low, high = subject.trained
    outside = [v for v in levels if v.at < low / 1.5 or v.at > 1.5 * high]
    bad = [
        v
        for v in outside
        if v.model > 1.3 * v.linear
        or (v.at > 0.02 and v.linear - v.model < 0.3 * (v.linear - v.optimal) - 0.05 * v.linear)
    ]
    if bad:
        at = ", ".join(f"{v.at:.2g}" for v in bad)
        return Finding(
            "noise levels not trained",
            f"99 % of the training times lie at sigma/alpha from {low:.2g} to {high:.2g}; at {at} "
            f"the model errs up to {max(v.model / v.linear for v in bad):.3g} times as much as a "
            f"linear denoiser, {max(v.model / max(v.optimal, 1e-12) for v in bad):.3g} times the "
            "optimum",
            "widen the density of training times: loss.times=uniform, or a larger "
            "loss.log_sigma_std, and loss.t_min at or below sde.t_min",
        )
    return None


def _overfit(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    pairs = [v for v in _learnable(levels) if v.held_out is not None]
    gaps = [(v.held_out or 0) / max(v.model, 1e-12) for v in pairs]
    copies = facts.get("memorisation")
    found = copies is not None and copies.found
    gap = max(gaps, default=1.0)
    if (gap > 1.5 and sorted(gaps)[len(gaps) // 2] > 1.25) or (found and gap > 1.2):
        said = f"held-out items are denoised with up to {gap:.2f} times the error of training items"
        return Finding(
            "overfit",
            said + (f"; {copies.sentence()}" if copies is not None else ""),
            f"more data than {facts['n_train']} items, a smaller network, dropout, or an earlier "
            "checkpoint (training.keep_every)",
        )
    return None


def _undertrained(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    """No better than a Gaussian's denoiser where a better one exists."""
    better = [v for v in levels if v.optimal < 0.9 * v.linear and v.at > 0.02]
    if not better:
        return None
    worse = _geometric(better, "model", "linear")
    gain = sum(v.linear - v.model for v in better) / sum(v.linear - v.optimal for v in better)
    # In few dimensions the optimum over many items is that of their law; else it knows them all.
    reachable = subject.train[0].numel() <= 20 and len(subject.train) >= 1000
    updates = int(subject.log[-1]["step"]) if subject.log else None
    if worse > 0.97 or (reachable and gain < 0.7):
        return Finding(
            "undertrained",
            f"the model errs {worse:.2f} times as much as a linear denoiser, and has learned "
            f"{max(gain, 0):.0%} of what can be bettered on it"
            + (f", after {updates} updates" if updates else ""),
            "train longer (--resume with more training.steps); if the loss no longer falls, a "
            "larger network",
        )
    return None


def _sampler(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    if "samples" not in facts:
        return None
    mine, careful, error = facts["samples"], facts["careful"], facts["samples_stderr"]
    floor = 0.005 * facts["spread"]
    if mine > 2 * max(careful, 0) + 4 * error + floor:
        return Finding(
            "bad sampler settings",
            f"samples by {subject.sampler} are {mine:.3g} +- {error:.1g} from the data (energy "
            f"distance), by a careful solver of the same model {careful:.3g}",
            "more steps, or a better method at this cost: --sampler heun --nfe 39 --grid karras",
        )
    return None


CHECKS: dict[str, Check] = {
    "data range": _data_range,
    "prediction type": _target,
    "EMA": _ema,
    "learning rate": _learning_rate,
    "use of t": _time,
    "overfit": _overfit,
    "sigma_max": _sigma_max,
    "t_min": _t_min,
    "noise levels": _coverage,
    "length of training": _undertrained,
    "sampler": _sampler,
}
HIDES: dict[str, tuple[str, ...]] = {  # what one cause explains is not said again
    "wrong data range": (
        "sigma_max too small", "t_min too large", "undertrained", "noise levels not trained",
        "learning rate too high", "bad sampler settings", "ignored t", "wrong prediction type",
        "EMA lags",
    ),
    "wrong prediction type": (
        "learning rate too high", "undertrained", "noise levels not trained",
        "bad sampler settings", "ignored t", "EMA lags", "EMA never updated", "overfit",
    ),
    "EMA never updated": (
        "undertrained", "noise levels not trained", "bad sampler settings", "ignored t", "overfit",
    ),
    "EMA lags": ("undertrained", "noise levels not trained", "bad sampler settings"),
    "learning rate too high": (
        "undertrained", "noise levels not trained", "ignored t", "bad sampler settings",
    ),
    "ignored t": ("undertrained", "noise levels not trained", "bad sampler settings"),
    "noise levels not trained": ("undertrained", "bad sampler settings"),
    "undertrained": ("bad sampler settings",),
    "sigma_max too small": ("bad sampler settings",),
    "overfit": ("bad sampler settings", "noise levels not trained"),
}  # fmt: skip
