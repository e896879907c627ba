r"""Training's own errors, measured again: what its log says, beside what the weights do now.

A log has the mean error of eps over the last updates, by ranges of noise, with times and items
drawn as training draws them. Drawn so again, the same weights have the same errors; where they are
larger, something is not as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from score_sde.diagnosis.ratios import Ratio, mean_ratio
from score_sde.diagnosis.subject import Subject
from score_sde.processes.expand import expand

FEWEST = 20  # items of a range of noise
BATCH = 128
LEARNED = 0.97  # of the trivial guess's error


class Again(NamedTuple):
    """Of a range of sigma/alpha: errors of eps then and now, and the ratio of now to then.

    learned: whether the trivial guess was bettered then.
    """

    low: float
    high: float
    then: float
    now: float
    ratio: Ratio
    learned: bool


def again(subject: Subject, n: int, generator: torch.Generator) -> list[Again]:
    """Each range that was logged, from n items; none where it is not known how times were drawn."""
    if subject.drawn is None or not subject.logged:
        return []
    rows = torch.randint(len(subject.train), (n,), generator=generator)
    x0 = subject.train[rows].float()
    t = subject.drawn.times[torch.randint(len(subject.drawn.times), (n,), generator=generator)]
    model = subject.raw
    alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
    eps = torch.randn(x0.shape, generator=generator)
    x = (expand(alpha, x0) * x0 + expand(sigma, x0) * eps).float()
    told = model if subject.labels is None else model.bind(class_labels=subject.labels[rows])
    device, parts = next(model.parameters()).device, []
    with torch.no_grad():
        for start in range(0, n, BATCH):
            part = slice(start, start + BATCH)
            parts.append(told.take(part).eps(x[part].to(device), t[part].float().to(device)).cpu())
    errors = (torch.cat(parts).double() - eps).square().flatten(1).mean(1)
    noise, found = sigma / alpha, []
    for logged in subject.logged:
        inside = errors[(noise > logged.low) & (noise <= logged.high) & errors.isfinite()]
        if len(inside) >= FEWEST:
            now = float(inside.mean())
            stderr = (float(inside.var()) / len(inside)) ** 0.5 / max(now, 1e-12)
            ratio = Ratio.of(now, logged.error, (stderr**2 + logged.stderr**2) ** 0.5)
            learned = logged.error < LEARNED * logged.trivial
            found.append(Again(logged.low, logged.high, logged.error, now, ratio, learned))
    return found


def grown(found: Sequence[Again]) -> Ratio:
    """The geometric mean over ranges, those where something was learned if there are any."""
    return mean_ratio([v.ratio for v in found if v.learned] or [v.ratio for v in found])
