"""What classes do for a conditional network: `class_reading`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.diagnosis.closed_forms import Linear
from score_sde.diagnosis.denoising import Noisy, denoised, noisy, times_of
from score_sde.diagnosis.ratios import Ratio, errors_of, ratio
from score_sde.diagnosis.readings import INNER
from score_sde.diagnosis.subject import Subject

FEWEST = 256  # items, so that each class has some
MOST_CLASSES = 20  # that are tried in each other's place


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


def class_reading(
    subject: Subject, classes: int, n: int, generator: torch.Generator
) -> ClassReading | None:
    """At the noise level where knowing the class helps a linear denoiser most."""
    labels, model = subject.labels, subject.model
    if labels is None or classes < 2 or len(labels.unique()) < 2:
        return None
    candidates = []
    for t in times_of(model):
        seen = noisy(model, subject.train, labels, float(t), max(n, FEWEST), generator)
        if INNER[0] < seen.sigma / seen.alpha < INNER[1]:
            known = _linear_by_class(subject.train, labels, seen)
            guess = subject.linear(seen.x.flatten(1).double(), seen.alpha, seen.sigma)
            candidates.append((ratio(known, errors_of(seen.x0.flatten(1), guess)), seen))
    if not candidates:
        return None
    gain, seen = min(candidates, key=lambda pair: pair[0].log)
    assert seen.labels is not None
    own = errors_of(seen.x0, denoised(model, seen))
    order = torch.randperm(len(seen.labels), generator=generator)
    right = ratio(
        own, errors_of(seen.x0, denoised(model, seen._replace(labels=seen.labels[order])))
    )
    table = torch.stack([
        errors_of(seen.x0, denoised(model, seen._replace(labels=torch.full_like(seen.labels, c))))
        for c in range(min(classes, MOST_CLASSES))
    ])  # fmt: skip
    best, changed = [], own.clone()
    for c in range(len(table)):
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
        mine, rows = items[labels == c], seen.labels == c
        if len(mine) > 2:
            guess = Linear(mine)(seen.x[rows].flatten(1).double(), seen.alpha, seen.sigma)
            errors[rows] = errors_of(seen.x0[rows].flatten(1), guess)
    return errors
