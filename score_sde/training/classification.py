"""What a classifier of noisy samples is trained to lower: `Classification`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from score_sde.losses import LossTerms, ScoreMatching
from score_sde.models import NoisyClassifier
from score_sde.processes.sdes import SDE


@dataclass(frozen=True)
class Classification:
    """The objective of a noisy classifier: E[-log p_t(y | x_t)], in nats.

    times: the objective whose density of times is taken. The error beside the loss is 1 where the
    guess is wrong.
    """

    measures: ClassVar[str] = "wrong"
    times: ScoreMatching

    def check(self, sde: SDE) -> None:
        """Raise UserError for training times that the process does not have."""
        self.times.check(sde)

    def draw_times(self, model: NoisyClassifier, n: int, device: torch.device | str) -> Tensor:
        """n times, float32 (n,)."""
        return self.times.draw_times(model, n, device)  # type: ignore[arg-type]

    def trivial(self, model: NoisyClassifier, t: Tensor, data_std: float) -> Tensor:
        """The error of guessing, like t."""
        return torch.full_like(t, 1 - 1 / model.classes)

    def __call__(
        self, model: NoisyClassifier, x0: Tensor, t: Tensor, eps: Tensor, **condition: Tensor
    ) -> LossTerms:
        """The loss of each x0 (B, ...) of ``class_labels`` (B,) at t (B,) with noise eps."""
        class_labels = condition["class_labels"]
        mean, std = model.sde.marginal(x0, t)
        log_probs = model.log_probs(mean + std * eps, t)
        loss = F.nll_loss(log_probs, class_labels, reduction="none")
        return LossTerms(loss, t, (log_probs.detach().argmax(1) != class_labels).to(loss))
