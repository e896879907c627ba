"""What `diagnose` says, and all that it looks at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from score_sde.diagnosis.as_trained import Again
from score_sde.diagnosis.classes import ClassReading
from score_sde.diagnosis.denoising import Level
from score_sde.diagnosis.ratios import Ratio, mean_ratio
from score_sde.diagnosis.readings import Readings
from score_sde.diagnosis.subject import Subject

BETTER = 0.9  # of an error: by less than a tenth nothing is to be learned that errors would show
FINEST = 0.02  # sigma/alpha below which a guess of x_0 is as good as x itself
CONSTANT = 1e-5  # of the output, around its mean: rounding
WEAK = 0.93  # over a linear denoiser where the optimum betters that by a tenth
GROWN = 5.0  # weights over PyTorch's at the start; of networks that converge 1 to 3
FEW_DIMS, MANY_ITEMS = 20, 1000  # where the optimum over the items is that of their law


@dataclass(frozen=True)
class Finding:
    """A cause by its name, the evidence with its figures, and what to change."""

    cause: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Measured:
    """All that checks look at. classes: None for a network that is told none. again: what training
    logged, measured again."""

    subject: Subject
    levels: tuple[Level, ...]
    facts: Mapping[str, Any]
    readings: Readings
    classes: ClassReading | None = None
    again: Sequence[Again] = ()

    def pooled(self, a: str, b: str, levels: Sequence[Level] | None = None) -> Ratio:
        """The ratio of two denoisers' errors, the geometric mean over levels (`learnable` ones)."""
        return mean_ratio([v.ratio(a, b) for v in (self.learnable if levels is None else levels)])

    @property
    def reachable(self) -> bool:
        """Whether the optimum over the training items is that of their law; else it knows them all.

        That is so of many items in few dimensions.
        """
        few = self.subject.train[0].numel() <= FEW_DIMS
        return few and len(self.subject.train) >= MANY_ITEMS

    def attained(self, level: Level) -> float:
        """The least error at a level that does not come of knowing the items by heart."""
        if self.reachable:
            return level.optimal
        own = level.model if level.held_out is None else level.held_out
        return min(own, level.linear, level.trivial)

    @property
    def saturated(self) -> bool:
        """Whether weights have exploded and with them all that was learned: nothing wild is said,
        nor is anything heard."""
        linear = self.pooled("raw", "linear", self.seen)
        return self.facts["weights_grown"] > GROWN and not linear.below(WEAK)

    @property
    def learnable(self) -> list[Level]:
        """Where there is something to learn: the optimum betters the trivial guess by a tenth."""
        found = [v for v in self.levels if v.optimal < BETTER * v.trivial and v.at > FINEST]
        return found or list(self.levels)

    @property
    def seen(self) -> list[Level]:
        """Those that training drew times of."""
        low, high = self.subject.trained or (0.0, math.inf)
        return [v for v in self.learnable if low <= v.at <= high]

    @property
    def bettering(self) -> list[Level]:
        """Those of them where the optimum betters a linear denoiser by a tenth."""
        return [v for v in self.seen if v.optimal < BETTER * v.linear and v.at > FINEST]


def finite(value: Any) -> bool:
    """Whether it is a number, and one that can be used."""
    return isinstance(value, int | float) and math.isfinite(value)


Check = Callable[[Measured], Finding | None]
