"""What can be wrong with a model: each check looks at what was measured for one cause.

A check speaks only where its figure passes a bound that matters by four standard errors
(`Ratio.above`, `Ratio.below`), so that few items make it silent rather than wrong. `HIDES` says
which causes explain which others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from score_sde.diagnosis.denoising import SURE, Level, Ratio, Subject, mean_ratio
from score_sde.diagnosis.readings import INNER, ClassReading, Reading, misread


@dataclass(frozen=True)
class Finding:
    """A cause by its name, the evidence with its figures, and what to change."""

    cause: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Measured:
    """All that checks look at. classes: None for a network that is told none."""

    subject: Subject
    levels: tuple[Level, ...]
    facts: Mapping[str, Any]
    readings: Mapping[str, list[Reading]]
    classes: ClassReading | None = None

    def pooled(self, a: str, b: str, levels: Sequence[Level] | None = None) -> Ratio:
        """The ratio of two denoisers' errors, the geometric mean over levels (`learnable` ones)."""
        return mean_ratio([v.ratio(a, b) for v in (self.learnable if levels is None else levels)])

    @property
    def learnable(self) -> list[Level]:
        """Where there is something to learn: the optimum betters the trivial guess by a tenth."""
        found = [v for v in self.levels if v.optimal < 0.9 * v.trivial and v.at > 0.02]
        return found or list(self.levels)

    @property
    def seen(self) -> list[Level]:
        """Those that training drew times of."""
        low, high = self.subject.trained or (0.0, math.inf)
        return [v for v in self.learnable if low <= v.at <= high]

    @property
    def bettering(self) -> list[Level]:
        """Those of them where the optimum betters a linear denoiser by a tenth."""
        return [v for v in self.seen if v.optimal < 0.9 * v.linear and v.at > 0.02]


Check = Callable[[Measured], Finding | None]


def _data_range(m: Measured) -> Finding | None:
    std, mean = m.facts["data_std"], m.facts["data_mean"]
    sde = m.subject.model.sde
    fades = float(sde.alpha(torch.tensor(sde.t_max))) < 0.5  # the signal, as VP's does
    worst = max(std, abs(mean))
    if (fades and (worst > 3 or std < 0.05)) or worst > 30 or std < 0.02 or abs(mean) > 4 * std + 1:
        return Finding(
            "wrong data range",
            f"training items lie in [{m.facts['low']:.3g}, {m.facts['high']:.3g}] with mean "
            f"{mean:.3g} and standard deviation {std:.3g} as the model sees them; the process is "
            "made for about 0 and 1",
            "set data.scaling=standard (or symmetric), and data.range if the bounds are wrong",
        )
    return None


def _data_std(m: Measured) -> Finding | None:
    """The scale that the preconditioning of F and of scaled inputs is made for."""
    model, std = m.subject.model, m.facts["data_std"]
    if (model.target == "F" or model.scale_input) and abs(math.log(model.data_std / std)) > 0.9:
        return Finding(
            "wrong data_std",
            f"model.data_std is {model.data_std:.3g}, the data's standard deviation {std:.3g}: "
            f"inputs and targets of the network are off by up to a factor "
            f"{max(model.data_std / std, std / model.data_std):.3g}",
            f"set model.data_std={std:.2g} and train again",
        )
    return None


def _target(m: Measured) -> Finding | None:
    found = misread(m.readings, "target", better=0.8)
    if found is None:
        return None
    own = m.readings["declared"][0]
    return Finding(
        "wrong prediction type",
        f"read as {own.name!r}, as declared, the output errs {own.over_linear.value:.3g} times as "
        f"much as a linear denoiser; read as {found.name!r}, {found.over_linear.value:.3g} times",
        f"set model.target={found.name}, or train again as {own.name}",
    )


def _labels(m: Measured) -> Finding | None:
    """Noise labels that are not those of training: another scale, or another process."""
    found = [misread(m.readings, kind, better=0.93) for kind in ("label scale", "time")]
    best = min((r for r in found if r is not None), key=lambda r: r.over_declared.log, default=None)
    if best is None:
        return None
    own = m.readings["declared"][0].over_linear.value
    said = f"as declared it errs {own:.3g} times as much as a linear denoiser; "
    if best is found[0]:
        told = f"told noise labels {best.name} times as large, {best.over_linear.value:.3g} times"
        scale = float(best.name) * m.subject.raw.time_scale
        return Finding(
            "wrong noise labels", said + told,
            f"set model.time_scale={scale:.4g}; if it is right, model.time_input is not",
        )  # fmt: skip
    return Finding(
        "wrong noise labels",
        said + f"told other times, {best.over_linear.value:.3g} times: sigma/alpha {best.name}",
        "give the process (sde.*), time_input and time_shift that the network was trained with",
    )


def _gain(m: Measured) -> Finding | None:
    found = misread(m.readings, "gain", better=0.95)
    if found is None or abs(math.log(max(float(found.name), 1e-9))) < 0.1:
        return None
    return Finding(
        "output scaled",
        f"the output times {found.name} errs {found.over_declared.value:.3g} times as much as the "
        "output as it is: a least-squares fit needs no such factor",
        "train and sample with the same scaling of the target, and the same data_std",
    )


def _ema(m: Measured) -> Finding | None:
    lag = m.pooled("model", "raw", m.levels)
    if lag.above(1.1) and m.facts["ema_distance"] > 0.05:
        trivial = m.pooled("model", "trivial").value
        return Finding(
            "EMA never updated" if trivial > 0.9 else "EMA lags",
            f"averaged weights err {lag.value:.2f} times as much as raw ones, {trivial:.2f} times "
            f"the trivial guess, and differ from them by {m.facts['ema_distance']:.0%}",
            "sample with --weights model now; train with training.ema_sigma_rel=0.1, which needs "
            "not know the run's length, or a smaller ema_decay",
        )
    mean: Ratio | None = m.facts.get("mean_over_model")
    if mean is not None and mean.below(0.9):
        return Finding(
            "EMA too short",
            f"the mean of two checkpoints' weights errs {mean.value:.2f} times as much as the "
            "averaged weights do",
            "a longer average: training.ema_sigma_rel=0.1 or a larger ema_decay; or let the "
            "learning rate fall (training.decay)",
        )
    return None


def _time(m: Measured) -> Finding | None:
    most = max(abs(v.ratio("deaf", "model").log) for v in m.levels[:-1])
    if most < 0.005 and any(v.ratio("model", "trivial").below(0.97) for v in m.learnable):
        return Finding(
            "ignored t",
            f"told the same time at all noise levels, errors change by {most:.1%} at most",
            "let forward(x, noise_label) use its noise_label: an embedding that is added to or "
            "scales the features of every block; check model.time_scale",
        )
    return None


def _sigma_max(m: Measured) -> Finding | None:
    snr, kl = m.facts["terminal_snr"], m.facts["prior_kl"]
    if snr > 0.02 or kl > 0.05:
        return Finding(
            "sigma_max too small",
            f"at t_max the data still stand out: SNR {snr:.2g}, {kl:.2g} nats a dimension between "
            f"x_T and the prior; the data's diameter is {m.facts['diameter']:.3g}, sigma/alpha "
            f"there {m.levels[-1].at:.3g}",
            f"raise sde.sigma_max to {m.facts['diameter']:.2g} (VE), or beta_max or t_max, and "
            "train again",
        )
    return None


def _t_min(m: Measured) -> Finding | None:
    noise, spread = m.facts["noise_at_t_min"], m.facts["smallest_spread"]
    lost = m.levels[0].optimal
    if lost > 0.02 and noise > spread / 3:
        return Finding(
            "t_min too large",
            f"at t_min = {m.subject.model.sde.t_min:g} the noise is {noise:.3g} of the signal, the "
            f"data's smallest spread {spread:.3g}: {lost:.1%} of the variance is lost there",
            "lower sde.t_min (--mode suggest gives a value)",
        )
    return None


def _learning_rate(m: Measured) -> Finding | None:
    losses = [float(v["loss"]) for v in m.subject.log if _finite(v.get("loss"))]
    skipped = max((int(v.get("skipped_steps") or 0) for v in m.subject.log), default=0)
    worse, noisy = m.pooled("raw", "trivial", m.seen), m.pooled("raw", "model", m.seen)
    late = sorted(losses[len(losses) // 2 :])
    peaks = late[-1] / (late[len(late) // 2] + 1e-12) if len(late) >= 4 else 1.0
    if skipped or worse.above(1.05) or peaks > 10 or noisy.above(2):
        return Finding(
            "learning rate too high",
            f"raw weights err {worse.value:.2g} times the trivial guess and {noisy.value:.2g} "
            f"times their average; {skipped} updates without a finite gradient; the largest late "
            f"loss is {peaks:.2g} times the median",
            "divide training.lr by 3 to 10, with training.grad_clip=1 and warmup_steps",
        )
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _overfit(m: Measured) -> Finding | None:
    pairs = [v for v in m.learnable if v.held_out is not None]
    if not pairs:
        return None
    gap = m.pooled("held_out", "model", pairs)
    copies = m.facts.get("memorisation")
    found = copies is not None and copies.found
    if gap.above(1.2) or (found and gap.above(1.1)):
        return Finding(
            "overfit",
            f"held-out items are denoised with {gap.value:.2f} times the error of training items"
            + (f"; {copies.sentence()}" if copies is not None else ""),
            f"more data than {m.facts['n_train']} items, a smaller network, dropout, or an earlier "
            "checkpoint (training.keep_best, --step best)",
        )
    return None


def _weak(m: Measured) -> tuple[float, float] | None:
    """Of a model no better than a Gaussian's denoiser where a better one exists: its error over
    that one's, and what share of the possible gain it has."""
    better = m.bettering
    if not better:
        return None
    worse = m.pooled("model", "linear", better)
    possible = sum(v.linear - v.optimal for v in better)
    gain = sum(v.linear - v.model for v in better) / possible
    squares = [float((v.errors["linear"] - v.errors["model"]).var()) / len(v.errors["model"])
               for v in better]  # fmt: skip
    unsure = SURE * math.sqrt(sum(squares)) / possible
    # In few dimensions the optimum over many items is that of their law; else it knows them all.
    reachable = m.subject.train[0].numel() <= 20 and len(m.subject.train) >= 1000
    if worse.above(0.93) or (reachable and gain + unsure < 0.5):
        return worse.value, gain
    return None


def _coverage(m: Measured) -> Finding | None:
    """Noise levels that sampling asks about, training does not, and the model knows nothing of."""
    if m.subject.trained is None:
        return None
    low, high = m.subject.trained
    outside = [v for v in m.levels if v.at < low / 2 or v.at > 2 * high]
    # What moves a sample by less than a third of the finest detail of the data is of no matter.
    fine = (m.facts["smallest_spread"] / m.facts["data_std"]) ** 2 / 10
    outside = [v for v in outside if v.model - v.optimal > fine]
    bad = [v for v in outside if v.ratio("model", "linear").above(1.2) or _learned_little(v)]
    if not bad or (len(m.bettering) >= 2 and _weak(m)):  # weak where it was trained, too
        return None
    at = ", ".join(f"{v.at:.2g}" for v in bad)
    return Finding(
        "noise levels not trained",
        f"all but 0.2 % of the training times lie at sigma/alpha from {low:.2g} to {high:.2g}; at "
        f"{at} the model errs up to {max(v.model / v.linear for v in bad):.3g} times as much as a "
        f"linear denoiser, {max(v.model / max(v.optimal, 1e-12) for v in bad):.3g} times the "
        "optimum",
        "widen the density of training times: loss.times=uniform, or a larger loss.log_sigma_std, "
        "and loss.t_min at or below sde.t_min",
    )


def _learned_little(v: Level) -> bool:
    possible, got = v.linear - v.optimal, v.linear - v.model
    return v.at > 0.02 and possible > 0.1 * v.linear and got < 0.2 * possible


def _undertrained(m: Measured) -> Finding | None:
    weak = _weak(m)
    if weak is None:
        return None
    updates = int(m.subject.log[-1]["step"]) if m.subject.log else None
    return Finding(
        "undertrained",
        f"the model errs {weak[0]:.2f} times as much as a linear denoiser, and has learned "
        f"{max(weak[1], 0):.0%} of what can be bettered on it"
        + (f", after {updates} updates" if updates else ""),
        "train longer (--resume with more training.steps); if the loss no longer falls, a larger "
        "network",
    )


def _classes(m: Measured) -> Finding | None:
    c = m.classes
    if c is None or not c.linear.below(0.97):
        return None  # knowing the class is of no help with these data
    moved = [f"{i} as {j}" for i, j in enumerate(c.best) if i != j]
    if moved and c.best_over_own.below(0.9):
        return Finding(
            "labels exchanged",
            f"items are denoised with {c.best_over_own.value:.2f} times the error if told other "
            f"classes than their own: {', '.join(moved[:6])}",
            "use the order of the classes that the network was trained with",
        )
    if c.right.log + SURE * c.right.stderr > 0.25 * c.linear.log:
        return Finding(
            "labels ignored",
            f"told the right class, the model errs {c.right.value:.3f} times as much as told one "
            f"at random; a linear denoiser that knows the class {c.linear.value:.3f} times as one "
            "that does not",
            "check that labels belong to their items in training, that conditioning.dropout is "
            "well below 1, and that the network uses class_labels",
        )
    return None


def _sampler(m: Measured) -> Finding | None:
    f = m.facts
    if "samples" not in f:
        return None
    mine, careful, error = f["samples"], f["careful"], f["samples_stderr"]
    drift = f.get("samples_likelier", 0.0) - f.get("careful_likelier", 0.0)
    far = mine > 2 * max(careful, 0) + SURE * error + 0.005 * f["spread"]
    drifts = abs(drift) > 0.15 + SURE * f.get("samples_likelier_stderr", math.inf)
    if far or drifts:
        return Finding(
            "bad sampler settings",
            f"samples by {m.subject.sampler} are {mine:.3g} +- {error:.1g} from the data (energy "
            f"distance), by a careful solver of the same model {careful:.3g}; the model finds them "
            f"{drift:+.2g} nats a dimension likelier than those",
            "more steps, or a better method at this cost: --sampler heun --nfe 39 --grid karras; "
            "correctors with a smaller snr",
        )
    return None


def _identities(m: Measured) -> Finding | None:
    """What every posterior mean obeys, whatever the data."""
    inside = [v for v in m.seen if INNER[0] < v.at < INNER[1]]
    off = [v for v in inside
           if abs(math.log(max(v.calibration, 1e-9)))
           > math.log(2) + SURE * v.calibration_stderr / max(v.calibration, 1e-9)]  # fmt: skip
    turning = [v for v in inside if v.curl > 0.5]
    if len(off) >= 2 or len(turning) >= 2:
        at = ", ".join(f"{v.at:.2g}" for v in (off if len(off) >= 2 else turning))
        return Finding(
            "not a posterior mean",
            f"at sigma/alpha {at} the denoiser's error is not what its Jacobian says (calibration "
            f"{max((v.calibration for v in inside), default=1):.2g}), or its field is no gradient "
            f"(curl {max(v.curl for v in inside):.2g})",
            "the objective is not denoising score matching of these data with this process: check "
            "weighting, target and guidance baked into the weights; or train longer",
        )
    return None


CHECKS: dict[str, Check] = {
    "data range": _data_range,
    "prediction type": _target,
    "noise labels": _labels,
    "data_std": _data_std,
    "scale of the output": _gain,
    "EMA": _ema,
    "learning rate": _learning_rate,
    "use of t": _time,
    "classes": _classes,
    "overfit": _overfit,
    "sigma_max": _sigma_max,
    "t_min": _t_min,
    "noise levels": _coverage,
    "length of training": _undertrained,
    "sampler": _sampler,
    "identities": _identities,
}
POOR = (
    "undertrained", "noise levels not trained", "bad sampler settings", "not a posterior mean",
)  # fmt: skip
HIDES: dict[str, tuple[str, ...]] = {  # what one cause explains is not said again
    "wrong data range": (
        *POOR, "sigma_max too small", "t_min too large", "learning rate too high", "ignored t",
        "wrong prediction type", "wrong noise labels", "output scaled", "wrong data_std",
        "EMA lags",
    ),
    "wrong prediction type": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "wrong noise labels", "output scaled",
    ),
    "wrong noise labels": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "output scaled", "sigma_max too small", "t_min too large",
    ),
    "wrong data_std": (*POOR, "learning rate too high", "output scaled", "overfit"),
    "output scaled": (*POOR, "learning rate too high"),
    "EMA never updated": (*POOR, "ignored t", "overfit"),
    "EMA lags": POOR,
    "learning rate too high": (*POOR, "overfit", "labels ignored"),
    "ignored t": (*POOR, "learning rate too high"),
    "labels ignored": ("bad sampler settings", "not a posterior mean"),
    "labels exchanged": (*POOR, "overfit", "learning rate too high"),
    "noise levels not trained": ("undertrained", "bad sampler settings", "not a posterior mean"),
    "undertrained": ("bad sampler settings", "not a posterior mean", "labels ignored"),
    "sigma_max too small": ("bad sampler settings", "not a posterior mean"),
    "t_min too large": ("bad sampler settings",),
    "overfit": ("bad sampler settings", "noise levels not trained", "not a posterior mean"),
}  # fmt: skip
