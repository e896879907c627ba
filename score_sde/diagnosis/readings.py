"""How else a network could be meant: another target, other noise labels, another scale, other data.

A network that makes sense under another reading than the declared one was trained under that. Each
reading's error is set beside a linear denoiser's, on the same items with the same noise: under the
right one it is below 1, and a network that has learned nothing is below 1 under none.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.diagnosis.asked import Asked, Reading
from score_sde.diagnosis.denoising import EXACT_DIMS, Noisy, guessed, noisy, output_of, times_of
from score_sde.diagnosis.other_items import other_items
from score_sde.diagnosis.other_labels import by_kind
from score_sde.diagnosis.ratios import SURE, Slope, slope
from score_sde.diagnosis.subject import Subject
from score_sde.models import ScoreModel
from score_sde.processes.targets import TARGETS

INNER = (0.05, 20.0)  # sigma/alpha between which readings are told apart
MOST = 128  # items at each level, but for those of few dimensions
WORSE = 1.2  # than a linear denoiser: surely no right reading
RIM, FEW_THERE = 0.01, 20  # of the largest output: what lies there lies at it; no chance
QUANTILE_OF = 10**6  # values
AGAIN = 32  # items that the network is asked twice of


class Gain(NamedTuple):
    """The factor that fits the outputs best to what they should be, and the reading with it."""

    factor: Slope
    reading: Reading


class Bound(NamedTuple):
    """Over all levels: the largest output, the share of outputs there, and what they should reach,
    the quantile at 99 %."""

    most: float
    share: float
    wanted: float


class Readings(NamedTuple):
    """What a network makes of the data: as declared, and read in other ways, by kind.

    by_kind: other targets, label scales, times, and other ways to show it the items. gain: of its
    outputs. unlike: how far two outputs for the same inputs are apart, over their size, and
    unlike_alone: those of items in a batch of few and of many. varies: how far outputs for other
    inputs are apart, over their size. bound: of outputs. finite: the share of outputs that are
    finite, at the level with the fewest.
    """

    declared: Reading
    by_kind: Mapping[str, Sequence[Reading]]
    gain: Gain
    unlike: float
    unlike_alone: float
    varies: float
    bound: Bound
    finite: float

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
            "bound": self.bound._asdict(),
            "finite": self.finite,
        }


def readings(subject: Subject, n: int, generator: torch.Generator) -> Readings:
    """All readings of the weights as trained."""
    model = subject.raw
    times = [float(t) for t in times_of(model)]
    small = subject.train[0].numel() <= EXACT_DIMS
    few = 2 * n if small else min(max(n // 2, 16), MOST)
    drawn = [noisy(model, subject.train, subject.labels, t, few, generator) for t in times]
    levels = [v for v in drawn if INNER[0] < v.sigma / v.alpha < INNER[1]] or drawn
    asked = Asked.of(model, subject.linear, levels)
    found: dict[str, Sequence[Reading]] = {
        "target": _other_targets(asked),
        "items": other_items(asked),
        **by_kind(asked),
    }
    # A small part of the output is what scale shows in: more items.
    more = [noisy(model, subject.train, subject.labels, v.t, n, generator) for v in levels]
    factor = _gain(model, more, [output_of(model, seen) for seen in more])
    scaled = _guesses(model, levels, [factor.value * out for out in asked.outputs])
    gain = Gain(factor, asked.reading(f"{factor.value:.3g}", scaled))
    varies = max(_variation(out) for out in asked.outputs)
    declared = asked.by_errors(model.target, asked.own)
    finite = min(float(output_of(model, seen).isfinite().double().mean()) for seen in drawn)
    bound = _bound(model, levels, asked.outputs)
    repeated = _repeated(model, levels, asked.outputs)
    return Readings(declared, found, gain, *repeated, varies, bound, finite)


def _other_targets(asked: Asked) -> list[Reading]:
    """The outputs as other targets; networks of the target F are shown inputs of unit variance."""
    model, found = asked.model, []
    rescaled: list[Tensor] = []
    for name in TARGETS:
        other = _as_target(model, name)
        outputs = asked.outputs
        if other.scale_input != model.scale_input:
            rescaled = rescaled or [output_of(other, seen) for seen in asked.levels]
            outputs = rescaled
        if name != model.target:
            found.append(asked.reading(name, _guesses(other, asked.levels, outputs)))
    return found


def _guesses(model: ScoreModel, levels: Sequence[Noisy], outputs: Sequence[Tensor]) -> list[Tensor]:
    return [guessed(model, seen, out) for seen, out in zip(levels, outputs, strict=True)]


def _as_target(model: ScoreModel, name: str) -> ScoreModel:
    other = copy.copy(model)
    other.target, other.row_of = name, TARGETS[name]
    if "F" in (name, model.target):
        other.scale_input = name == "F"
    return other


def _gain(model: ScoreModel, levels: Sequence[Noisy], outputs: Sequence[Tensor]) -> Slope:
    """The factor of the outputs that fits them best to the target, by least squares.

    A network whose last layer is linear has the factor 1 as soon as its scale has been learned,
    long before the rest.
    """
    wanted, scaled = [], []
    for seen, out in zip(levels, outputs, strict=True):
        right = _right(model, seen)
        size = float(right.square().mean()) ** 0.5 or 1.0
        wanted.append(right / size)
        scaled.append(out.double().flatten(1) / size)
    return slope(torch.cat(wanted), torch.nan_to_num(torch.cat(scaled)))


def _right(model: ScoreModel, seen: Noisy) -> Tensor:
    """What the network is trained to say, a x_0 + b eps, (n, D)."""
    a, b = (float(v) for v in model.row(torch.tensor(seen.t, dtype=torch.float64)))
    x0 = seen.x0.double()
    return (a * x0 + b * (seen.x.double() - seen.alpha * x0) / seen.sigma).flatten(1)


def _bound(model: ScoreModel, levels: Sequence[Noisy], outputs: Sequence[Tensor]) -> Bound:
    size = torch.cat([out.double().abs().flatten() for out in outputs])
    wanted = torch.cat([_right(model, seen).abs().flatten() for seen in levels])[:QUANTILE_OF]
    most = float(size.max())
    there = int((size > (1 - RIM) * most).sum())
    share = there / len(size) if there >= FEW_THERE else 0.0
    return Bound(most, share, float(wanted.quantile(0.99)))


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


def misread(found: Readings, kind: str, better: float) -> Reading | None:
    """The best reading of a kind if the network makes sense under it and not under the declared."""
    others = found.by_kind.get(kind)
    if not others:
        return None
    others = [r for r in others if not r.worse]
    if not others:
        return None
    best = min(others, key=lambda r: r.over_declared.log)
    sense = best.over_linear.below(1)
    if found.declared.over_linear.above(WORSE):  # some reading is better: half of the evidence
        sense = sense or best.over_linear.log + SURE / 2 * best.over_linear.stderr < 0
    return best if sense and best.over_declared.below(better) else None
