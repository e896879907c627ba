r"""What a network was asked, and how to judge a way to read its answers: `Asked` and `Reading`.

A reading turns answers into guesses D' of x_0. Beside the guesses D as declared, the data say how
much of the change they ask for: the slope of what D misses on what would change,

    share = E (x_0 - D).(D' - D) / E |D' - D|^2.

It is 0 for whatever D' if D is the posterior mean, since what that misses is orthogonal to every
function of x_t, and 1 if D' is: however little of the error the change takes away. It is above 1/2
where D' is the better of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.diagnosis.closed_forms import Linear
from score_sde.diagnosis.denoising import Noisy, guessed, output_of
from score_sde.diagnosis.ratios import Ratio, Slope, errors_of, mean_ratio, ratio, slope
from score_sde.models import ScoreModel

MIDDLE = (0.2, 2.0)  # sigma/alpha


class Reading(NamedTuple):
    """A way to read the network; its error over a linear denoiser's and over the declared one's.

    share: see the module, pooled over levels in units of the declared error; None of other items.
    worse: whether it surely errs more than the declared one at some level in the middle, where all
    targets are of a size: what is right is so at all levels.
    """

    name: str
    over_linear: Ratio
    over_declared: Ratio
    share: Slope | None = None
    worse: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = {
            "over_linear": self.over_linear.value,
            "over_declared": self.over_declared.value,
        }
        if self.share is not None:
            found |= {"share": self.share.value, "share_stderr": self.share.stderr}
        return found


@dataclass(frozen=True)
class Asked:
    """What a network was asked: noisy items of some levels, with its answers and their errors.

    linear: the denoiser of a Gaussian. outputs: of the network, and guesses of x_0 from them, each
    (n, ...) a level. own, usual: errors (n,) of the guesses and of the linear denoiser.
    """

    model: ScoreModel
    linear: Linear
    levels: Sequence[Noisy]
    outputs: Sequence[Tensor]
    guesses: Sequence[Tensor]
    own: Sequence[Tensor]
    usual: Sequence[Tensor]

    @classmethod
    def of(cls, model: ScoreModel, linear: Linear, levels: Sequence[Noisy]) -> Asked:
        """Ask a model."""
        outputs = [output_of(model, seen) for seen in levels]
        guesses = [guessed(model, v, out) for v, out in zip(levels, outputs, strict=True)]
        own = [errors_of(v.x0, guess) for v, guess in zip(levels, guesses, strict=True)]
        usual = [linear_errors(linear, seen) for seen in levels]
        return cls(model, linear, levels, outputs, guesses, own, usual)

    def reading(
        self, name: str, guesses: Sequence[Tensor], usual: Sequence[Tensor] | None = None
    ) -> Reading:
        """Of the same items by other guesses; usual: a linear denoiser's errors if x is another."""
        pairs = zip(self.levels, guesses, strict=True)
        errors = [errors_of(seen.x0, guess) for seen, guess in pairs]
        missed, change = [], []
        for seen, own, guess in zip(self.levels, self.guesses, guesses, strict=True):
            unit = float((seen.x0.double() - own).square().mean()) ** 0.5 or 1.0
            missed.append((seen.x0.double() - own).flatten(1) / unit)
            change.append(torch.nan_to_num(guess.double() - own).flatten(1) / unit)
        return self.by_errors(name, errors, usual, slope(torch.cat(missed), torch.cat(change)))

    def by_errors(
        self,
        name: str,
        errors: Sequence[Tensor],
        usual: Sequence[Tensor] | None = None,
        share: Slope | None = None,
    ) -> Reading:
        """By errors (n,) a level, and a linear denoiser's on the same items."""
        others = self.usual if usual is None else usual
        over_linear = [ratio(e, u) for e, u in zip(errors, others, strict=True)]
        declared = zip(errors, others, self.own, self.usual, strict=True)
        # Of other items, the declared reading's errors are seen in units of the linear ones.
        over_own = [ratio(e / o.mean(), d / u.mean()) for e, o, d, u in declared]
        worse = any(
            r.above(1) and MIDDLE[0] < seen.sigma / seen.alpha < MIDDLE[1]
            for r, seen in zip(over_own, self.levels, strict=True)
        )
        return Reading(name, mean_ratio(over_linear), mean_ratio(over_own), share, worse)


def linear_errors(linear: Linear, seen: Noisy) -> Tensor:
    """(n,), of a Gaussian's denoiser."""
    guess = linear(seen.x.flatten(1).double(), seen.alpha, seen.sigma)
    return errors_of(seen.x0.flatten(1), guess)
