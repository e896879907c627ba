"""How else a network could be meant: another target, other noise labels, another scale, other data.

A network that makes sense under another reading than the declared one was trained under that. Each
reading's error is set beside a linear denoiser's, on the same items with the same noise: under the
right one it is below 1, and a network that has learned nothing is below 1 under none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.diagnosis.closed_forms import Linear
from score_sde.diagnosis.denoising import (
    EXACT_DIMS,
    Noisy,
    Subject,
    denoised,
    guessed,
    noisy,
    output_of,
    times_of,
)
from score_sde.diagnosis.ratios import SURE, Ratio, Slope, errors_of, mean_ratio, ratio, slope
from score_sde.models import ScoreModel
from score_sde.processes.targets import TARGETS

SCALES = (1e-3, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.4, 2.0, 3.0, 4.0, 10.0, 1e3)
"""Factors between the scales of noise labels that people use."""
INNER = (0.05, 20.0)  # sigma/alpha between which readings are told apart
MOST = 128  # items at each level, but for those of few dimensions
WORSE = 1.2  # than a linear denoiser: surely no right reading
AGAIN = 32  # items that the network is asked twice of


class Reading(NamedTuple):
    """A way to read the network; its error over a linear denoiser's and the declared one's."""

    name: str
    over_linear: Ratio
    over_declared: Ratio

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"over_linear": self.over_linear.value, "over_declared": self.over_declared.value}


class Gain(NamedTuple):
    """The factor that fits the outputs best to what they should be, and the reading with it."""

    factor: Slope
    reading: Reading


class Readings(NamedTuple):
    """What a network makes of the data: as declared, and read in other ways, by kind.

    by_kind: other targets, label scales, times, and other ways to show it the items. gain: of its
    outputs. unlike: how far two outputs for the same inputs are apart, over their size, and
    unlike_alone: those of items in a batch of few and of many. varies: how far outputs for other
    inputs are apart, over their size.
    """

    declared: Reading
    by_kind: Mapping[str, list[Reading]]
    gain: Gain
    unlike: float
    unlike_alone: float
    varies: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        kinds = self.by_kind.items()
        return {
            "declared": self.declared.to_dict(),
            **{kind: {r.name: r.to_dict() for r in found} for kind, found in kinds},
            "gain": {**self.gain.factor._asdict(), **self.gain.reading.to_dict()},
            "output twice apart": self.unlike,
            "output alone apart": self.unlike_alone,
            "outputs apart": self.varies,
        }


def readings(subject: Subject, n: int, generator: torch.Generator) -> Readings:
    """All readings of the weights as trained."""
    model = subject.raw
    times = [float(t) for t in times_of(model)]
    small = subject.train[0].numel() <= EXACT_DIMS
    few = 2 * n if small else min(max(n // 2, 16), MOST)
    drawn = [noisy(model, subject.train, subject.labels, t, few, generator) for t in times]
    levels = [v for v in drawn if INNER[0] < v.sigma / v.alpha < INNER[1]] or drawn
    usual = [_linear_errors(subject.linear, seen) for seen in levels]
    outputs = [output_of(model, seen) for seen in levels]
    own = _errors(model, levels, outputs)

    def of(name: str, errors: Sequence[Tensor], others: Sequence[Tensor] = usual) -> Reading:
        """others: a linear denoiser's errors on the same items."""
        over_linear = [ratio(e, u) for e, u in zip(errors, others, strict=True)]
        declared = zip(errors, others, own, usual, strict=True)
        # Of other items, the declared reading's errors are seen in units of the linear ones.
        over_own = [ratio(e / o.mean(), d / u.mean()) for e, o, d, u in declared]
        return Reading(name, mean_ratio(over_linear), mean_ratio(over_own))

    rescaled: list[Tensor] = []

    def outputs_as(name: str) -> Sequence[Tensor]:
        """Networks of the target F are shown inputs of unit variance, others are not."""
        if _as_target(model, name).scale_input == model.scale_input:
            return outputs
        if not rescaled:
            rescaled.extend([output_of(_as_target(model, name), seen) for seen in levels])
        return rescaled

    found: dict[str, list[Reading]] = {
        "target": [
            of(name, _errors(_as_target(model, name), levels, outputs_as(name)))
            for name in TARGETS
            if name != model.target
        ],
        "items": [],
    }
    for name, turn in TURNS.items():
        if turn(subject.train[:1]) is not None:
            shown = [_shown(seen, turn(seen.x0)) for seen in levels]
            # A turn keeps lengths and is its own inverse: the linear denoiser turns with it.
            back = [seen._replace(x0=turn(seen.x0), x=turn(seen.x)) for seen in shown]
            others = [_linear_errors(subject.linear, seen) for seen in back]
            mine = [errors_of(seen.x0, denoised(model, seen)) for seen in shown]
            found["items"].append(of(name, mine, others))
    for name, (scale, shift) in SCALED.items():
        shown = [_shown(seen, scale * seen.x0 + shift) for seen in levels]
        # As if the noise were smaller by the scale, and errors larger by its square.
        back = [
            v._replace(x0=u.x0, x=(v.x - v.alpha * shift) / scale, sigma=v.sigma / scale)
            for u, v in zip(levels, shown, strict=True)
        ]
        others = [scale**2 * _linear_errors(subject.linear, seen) for seen in back]
        mine = [errors_of(seen.x0, denoised(model, seen)) for seen in shown]
        found["items"].append(of(name, mine, others))
    if model.time_table is None:
        found["label scale"] = [
            of(f"{scale:g}", [errors_of(v.x0, denoised(_scaled(model, scale), v)) for v in levels])
            for scale in SCALES
        ]
        found["time"] = [of(*_told_other_times(model, levels, times))]
    # A small part of the output is what scale shows in: more items.
    more = [noisy(model, subject.train, subject.labels, v.t, n, generator) for v in levels]
    factor = _gain(model, more, [output_of(model, seen) for seen in more])
    scaled = _errors(model, levels, [factor.value * out for out in outputs])
    gain = Gain(factor, of(f"{factor.value:.3g}", scaled))
    varies = max(_variation(out) for out in outputs)
    return Readings(of(model.target, own), found, gain, *_repeated(model, levels, outputs), varies)


def _errors(model: ScoreModel, levels: Sequence[Noisy], outputs: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(levels, outputs, strict=True)
    return [errors_of(seen.x0, guessed(model, seen, out)) for seen, out in pairs]


def _linear_errors(linear: Linear, seen: Noisy) -> Tensor:
    guess = linear(seen.x.flatten(1).double(), seen.alpha, seen.sigma)
    return errors_of(seen.x0.flatten(1), guess)


def _as_target(model: ScoreModel, name: str) -> ScoreModel:
    other = copy.copy(model)
    other.target, other.row_of = name, TARGETS[name]
    if "F" in (name, model.target):
        other.scale_input = name == "F"
    return other


def _scaled(model: ScoreModel, scale: float) -> ScoreModel:
    other = copy.copy(model)
    other.time_scale = scale * model.time_scale
    return other


def _told_other_times(
    model: ScoreModel, levels: Sequence[Noisy], times: Sequence[float]
) -> tuple[str, list[Tensor]]:
    """Told, at each level, whichever other time suits it best, one after the other in order.

    The times told must rise with the noise, as those of another process would.
    """
    labels = [
        model.time_scale * float(model._time(torch.tensor(t, dtype=torch.float64)))
        + model.time_shift
        for t in times
    ]
    said, errors, lowest = [], [], 0
    for seen in levels:
        tried = []
        for label in labels[lowest:]:
            other = copy.copy(model)
            other.time_scale, other.time_shift = 0.0, label
            tried.append(errors_of(seen.x0, denoised(other, seen)))
        best = min(range(len(tried)), key=lambda i: float(tried[i].mean()))
        lowest += best
        said.append(f"{seen.sigma / seen.alpha:.2g} as t = {times[lowest]:.2g}")
        errors.append(tried[best])
    return ", ".join(said), errors


def _gain(model: ScoreModel, levels: Sequence[Noisy], outputs: Sequence[Tensor]) -> Slope:
    """The factor of the outputs that fits them best to the target, by least squares.

    A network whose last layer is linear has the factor 1 as soon as its scale has been learned,
    long before the rest.
    """
    wanted, scaled = [], []
    for seen, out in zip(levels, outputs, strict=True):
        a, b = (float(v) for v in model.row(torch.tensor(seen.t, dtype=torch.float64)))
        x0 = seen.x0.double()
        right = (a * x0 + b * (seen.x.double() - seen.alpha * x0) / seen.sigma).flatten(1)
        size = float(right.square().mean()) ** 0.5 or 1.0
        wanted.append(right / size)
        scaled.append(out.double().flatten(1) / size)
    return slope(torch.cat(wanted), torch.nan_to_num(torch.cat(scaled)))


def _variation(out: Tensor) -> float:
    """Root mean square of outputs (n, ...) around their mean, over that around 0."""
    flat = out.double().flatten(1)
    around = (flat - flat.mean(0)).square().mean() / flat.square().mean().clamp_min(1e-30)
    return float(around) ** 0.5


def _repeated(
    model: ScoreModel, levels: Sequence[Noisy], outputs: Sequence[Tensor]
) -> tuple[float, float]:
    """How far outputs for the same items are apart, asked again together and a few at a time."""
    middle = len(levels) // 2
    seen = levels[middle].first(AGAIN)
    first = output_of(model, seen)
    size = float(first.square().mean().clamp_min(1e-30))
    others = output_of(model, seen), output_of(model, seen, batch=max(AGAIN // 8, 1))
    again, alone = (float((v - first).square().mean() / size) ** 0.5 for v in others)
    return again, alone


# Items --------------------------------------------------------------------------------------------


Change = Callable[[Tensor], Any]
TURNS: dict[str, Change] = {
    "with channels (or coordinates) in reverse order":
        lambda x: x.flip(1) if x.shape[1] > 1 else None,
    "negated": lambda x: -x,
    "mirrored": lambda x: x.flip(-1) if x.ndim == 4 else None,
    "upside down": lambda x: x.flip(-2) if x.ndim == 4 else None,
    "transposed": lambda x: x.mT if x.ndim == 4 and x.shape[-1] == x.shape[-2] else None,
}  # fmt: skip
"""Ways in which training may have seen the items; None where one does not apply."""
SCALED = {
    "half as large": (0.5, 0.0),
    "twice as large": (2.0, 0.0),
    "on 0..1 in place of -1..1": (0.5, 0.5),
    "on -1..1 in place of 0..1": (2.0, -1.0),
}
"""Others: a and b of a x + b."""


def _shown(seen: Noisy, x0: Tensor) -> Noisy:
    """The same with the same noise, of other items."""
    return seen._replace(x0=x0, x=seen.x + seen.alpha * (x0 - seen.x0))


def misread(found: Readings, kind: str, better: float) -> Reading | None:
    """The best reading of a kind if the network makes sense under it and not under the declared."""
    others = found.by_kind.get(kind)
    if not others:
        return None
    best = min(others, key=lambda r: r.over_declared.log)
    sense = best.over_linear.below(1)
    if found.declared.over_linear.above(WORSE):  # some reading is better: half of the evidence
        sense = sense or best.over_linear.log + SURE / 2 * best.over_linear.stderr < 0
    return best if sense and best.over_declared.below(better) else None
