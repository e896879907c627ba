"""Why a model fails: the causes that its errors show, each with the evidence and the fix.

What is measured is in `denoising`; each check of `CHECKS` looks at it for one cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from score_sde.diagnosis.denoising import Level, Subject, facts_of, measure, times_of
from score_sde.noise import seed_torch


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
        seed_torch(seed)
        levels = tuple(measure(subject, float(t), n) for t in times_of(subject.model))
        facts = facts_of(subject, n)
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
    # Better than a linear denoiser: a network that has learned nothing is not taken for another.
    if best != own and targets[best] < min(-0.1, targets[own] - 0.4):
        return Finding(
            "wrong prediction type",
            f"read as {own!r}, as declared, the output errs {math.exp(targets[own]):.3g} times as "
            f"much as a linear denoiser; read as {best!r}, {math.exp(targets[best]):.3g} times",
            f"set model.target={best}, or train again as {own}",
        )
    return None


def _ema(subject: Subject, levels: Levels, facts: Mapping[str, Any]) -> Finding | None:
    ratio = _geometric(_learnable(levels), "model", "raw")
    if ratio > 1.15 and facts["ema_distance"] > 0.05:
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
    if worse > 0.97 or (reachable and gain < 0.4):
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
