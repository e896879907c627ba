"""How else a network's output could be meant: another target, other noise labels, another scale.

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

from score_sde.diagnosis.denoising import (
    Noisy,
    Ratio,
    Subject,
    denoised,
    errors_of,
    linear,
    mean_ratio,
    noisy,
    ratio,
    times_of,
)
from score_sde.models import ScoreModel
from score_sde.processes.targets import TARGETS

SCALES = (1e-3, 0.1, 0.25, 1 / 3, 0.5, 2.0, 3.0, 4.0, 10.0, 1e3)
"""Factors between the scales of noise labels that people use."""
INNER = (0.05, 20.0)  # sigma/alpha between which readings are told apart
MOST = 128  # items at each level


class Reading(NamedTuple):
    """A way to read the network; its error over a linear denoiser's and the declared one's."""

    name: str
    over_linear: Ratio
    over_declared: Ratio

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"over_linear": self.over_linear.value, "over_declared": self.over_declared.value}


def readings(subject: Subject, n: int) -> dict[str, list[Reading]]:
    """All other readings of the weights as trained, by kind: target, label scale, time, gain."""
    model, whole = subject.raw, subject.train.flatten(1).double()
    times = [float(t) for t in times_of(model)]
    few = min(max(n // 2, 16), MOST)
    levels = [noisy(model, subject.train, subject.labels, t, few) for t in times]
    levels = [v for v in levels if INNER[0] < v.sigma / v.alpha < INNER[1]] or levels
    usual = [_linear_errors(whole, seen) for seen in levels]
    declared = [errors_of(seen.x0, denoised(model, seen)) for seen in levels]

    def of(name: str, errors: Sequence[Tensor]) -> Reading:
        return Reading(
            name,
            mean_ratio([ratio(e, u) for e, u in zip(errors, usual, strict=True)]),
            mean_ratio([ratio(e, d) for e, d in zip(errors, declared, strict=True)]),
        )

    found = {"declared": [of(model.target, declared)]}
    found["target"] = [
        of(name, [errors_of(seen.x0, denoised(_as_target(model, name), seen)) for seen in levels])
        for name in TARGETS
        if name != model.target
    ]
    found["gain"] = [of(*_gained(model, levels))]
    if model.time_table is None:
        found["label scale"] = [
            of(f"{scale:g}", [errors_of(v.x0, denoised(_scaled(model, scale), v)) for v in levels])
            for scale in SCALES
        ]
        found["time"] = [of(*_told_other_times(model, levels, times))]
    return found


def _linear_errors(whole: Tensor, seen: Noisy) -> Tensor:
    guess = linear(whole, seen.x.flatten(1).double(), seen.alpha, seen.sigma)
    return errors_of(seen.x0.flatten(1), guess)


def _as_target(model: ScoreModel, name: str) -> ScoreModel:
    other = copy.copy(model)
    other.target, other.row_of = name, TARGETS[name]
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


def _gained(model: ScoreModel, levels: Sequence[Noisy]) -> tuple[str, list[Tensor]]:
    """With the output times one factor, by least squares on the target itself."""
    products = torch.zeros(2, dtype=torch.float64)
    outputs = []
    for seen in levels:
        x0, out = seen.x0.double(), _output(model, seen).double()
        a, b = (float(v) for v in model.row(torch.tensor(seen.t, dtype=torch.float64)))
        wanted = a * x0 + b * (seen.x.double() - seen.alpha * x0) / seen.sigma
        power = float(wanted.square().mean()) or 1.0
        products += torch.stack([(wanted * out).mean(), out.square().mean()]) / power
        outputs.append(out)
    gain = float(products[0] / products[1]) if products[1] > 0 else 1.0
    errors = []
    for seen, out in zip(levels, outputs, strict=True):
        guess = model._split(seen.x.double(), torch.tensor(seen.t).double(), gain * out)[0]
        errors.append(errors_of(seen.x0, guess))
    return f"{gain:.3g}", errors


def _output(model: ScoreModel, seen: Noisy) -> Tensor:
    device = next(model.parameters()).device
    told = model if seen.labels is None else model.bind(class_labels=seen.labels)
    with torch.no_grad():
        return told.output(seen.x.to(device), torch.full((len(seen.x),), seen.t).to(device)).cpu()


# Classes ------------------------------------------------------------------------------------------


class ClassReading(NamedTuple):
    """What classes do for a conditional network.

    right: its error told the items' own classes over that told classes at random. linear: the same
    of linear denoisers that know the class, or do not: what there is to gain. best: for each class
    of the data the one that, told instead, denoises its items best; and its error over that of the
    own one, pooled over classes.
    """

    right: Ratio
    linear: Ratio
    best: tuple[int, ...]
    best_over_own: Ratio


def class_reading(subject: Subject, classes: int, n: int) -> ClassReading | None:
    """At the noise level where knowing the class helps a linear denoiser most."""
    labels, model = subject.labels, subject.model
    if labels is None or classes < 2 or len(labels.unique()) < 2:
        return None
    candidates = []
    for t in times_of(model):
        seen = noisy(model, subject.train, labels, float(t), max(n, 256))
        if INNER[0] < seen.sigma / seen.alpha < INNER[1]:
            known = _linear_by_class(subject.train, labels, seen)
            unknown = _linear_errors(subject.train.flatten(1).double(), seen)
            candidates.append((ratio(known, unknown), seen))
    if not candidates:
        return None
    gain, seen = min(candidates, key=lambda pair: pair[0].log)
    assert seen.labels is not None
    own = errors_of(seen.x0, denoised(model, seen))
    mixed = seen._replace(labels=seen.labels[torch.randperm(len(seen.labels))])
    right = ratio(own, errors_of(seen.x0, denoised(model, mixed)))
    table = torch.stack([
        errors_of(seen.x0, denoised(model, seen._replace(labels=torch.full_like(seen.labels, c))))
        for c in range(min(classes, 20))
    ])  # fmt: skip
    best, changed = [], own.clone()
    for c in range(min(classes, 20)):
        rows = seen.labels == c
        if not bool(rows.any()):
            best.append(c)
            continue
        best.append(int(table[:, rows].mean(1).argmin()))
        changed[rows] = table[best[-1], rows]
    return ClassReading(right, gain, tuple(best), ratio(changed, own))


def _linear_by_class(items: Tensor, labels: Tensor, seen: Noisy) -> Tensor:
    assert seen.labels is not None
    errors = torch.zeros(len(seen.x0), dtype=torch.float64)
    for c in seen.labels.unique():
        mine = items[labels == c].flatten(1).double()
        rows = seen.labels == c
        part = seen._replace(x0=seen.x0[rows], x=seen.x[rows])
        if len(mine) > 2:
            errors[rows] = _linear_errors(mine, part)
    return errors


def misread(found: Mapping[str, list[Reading]], kind: str, better: float) -> Reading | None:
    """The best reading of a kind if the network makes sense under it and not under the declared."""
    if not found.get(kind):
        return None
    best = min(found[kind], key=lambda r: r.over_declared.log)
    sense = best.over_linear.below(1)
    return best if sense and best.over_declared.below(better) else None
