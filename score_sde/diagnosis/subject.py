"""What is examined: a model, the items that it learned from, and what is known of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.diagnosis.closed_forms import Linear, usual_gap
from score_sde.models import ScoreModel


class Logged(NamedTuple):
    """What training logged of noise levels sigma/alpha from low to high.

    error: mean square of eps, and trivial: that of the trivial guess. stderr: of the error, over
    it, by how lines of the log differ.
    """

    low: float
    high: float
    error: float
    trivial: float
    stderr: float = 0.0


class Drawn(NamedTuple):
    """Training times (n,) as an objective draws them, and its weights (n,) on the error of eps."""

    times: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Subject:
    """What is examined.

    model, raw: the averaged weights and those as trained. train, held_out: items (n, ...) in the
    model's range; held_out None where there are none. labels: the classes (n,) that belong to
    train, None for a network that is told none; held_out_labels likewise. spec: of the data. log:
    lines of the training log, oldest first. samples: (n, ...) in the model's range by the run's own
    sampler, and careful: by a careful one from the same seeds; None if they are not to be judged.
    drawn: training times, None if not known, and trained: the
    range of sigma/alpha that holds all but 0.2 % of them. earlier: another checkpoint's weights as
    trained. logged: errors of the last updates by noise, if training logged them.
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
    labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    earlier: ScoreModel | None = None
    logged: Sequence[Logged] = ()
    drawn: Drawn | None = None

    @cached_property
    def linear(self) -> Linear:
        """The best affine denoiser of the training items."""
        return Linear(self.train)

    def weight_at(self, low: float, high: float) -> float | None:
        """The share of the objective at sigma/alpha from low to high, if errors are alike there.

        Errors of an output of unit variance, that is, EDM's F. None where it is not known.
        """
        if self.drawn is None:
            return None
        sde = self.model.sde
        noise = torch.exp(-0.5 * sde.log_snr(self.drawn.times))
        weights = self.drawn.weights / (1 + (noise / float(self.train.double().std())) ** 2)
        return float(weights[(noise > low) & (noise <= high)].sum() / weights.sum())

    @cached_property
    def gap(self) -> float:
        """The usual distance of a training item to its nearest other."""
        return usual_gap(self.train.flatten(1).double())
