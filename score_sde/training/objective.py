"""What a trainer asks of a model and of an objective: little, so that it trains any."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from score_sde.losses import LossTerms
from score_sde.processes.sdes import SDE


class Trainable(Protocol):
    """A network under a process: `ScoreModel`, or `models.NoisyClassifier`."""

    net: Any
    sde: SDE
    precision: Any

    def with_net(self, net: nn.Module) -> Any:
        """The same around another network."""


class Objective(Protocol):
    """`losses.ScoreMatching`, or `training.classification.Classification`.

    measures: what `LossTerms.error` is, as logs name it.
    """

    @property
    def measures(self) -> str: ...

    def draw_times(self, model: Any, n: int, device: torch.device | str) -> Tensor:
        """n times (n,)."""

    def trivial(self, model: Any, t: Tensor, data_std: float) -> Tensor:
        """The error of a model that has learned nothing, like t."""

    def __call__(
        self, model: Any, x0: Tensor, t: Tensor, eps: Tensor, **condition: Tensor
    ) -> LossTerms:
        """The loss of each x0 (B, ...) at t (B,) with noise eps."""


class Ending(NamedTuple):
    """What the last share of a training, in (0, 1], minimises in place of its objective."""

    objective: Objective
    share: float
