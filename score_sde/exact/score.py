"""The score of a mixture under a process, as a callable like a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from score_sde.checks import check_count
from score_sde.processes.expand import as_time
from score_sde.processes.sdes import SDE
from score_sde.scores import Rows, ScoreError

if TYPE_CHECKING:
    from score_sde.exact.mixture import GaussianMixture


def work_dtype(x: Tensor) -> torch.dtype:
    """float64 wherever the device has it: an oracle must be exact even for float32 states."""
    return x.dtype if x.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class ExactScore:
    """score(x, t) = grad log p_t(x) of a mixture under a process; x (B, *shape), t () or (B,).

    class_labels: (B,) or (), of a mixture with labels, for the score of p_t(x | class).
    """

    data: GaussianMixture
    sde: SDE
    class_labels: Tensor | None = None

    def bind(self, class_labels: Tensor | None = None) -> ExactScore:
        """The score told the classes (B,), one for all (), or none. UserError for unknown ones."""
        if class_labels is not None:
            class_labels = torch.as_tensor(class_labels, dtype=torch.int64)
            self.data._of_classes(class_labels.reshape(-1))
        return ExactScore(self.data, self.sde, class_labels)

    def take(self, rows: Rows) -> ExactScore:
        """The score of some samples, see `scores.take`."""
        if self.class_labels is None or self.class_labels.ndim == 0:
            return self
        return ExactScore(self.data, self.sde, self.class_labels[rows])

    def _classes(self, x: Tensor) -> Tensor | None:
        if self.class_labels is None:
            return None
        if self.class_labels.ndim:
            check_count(len(self.class_labels), len(x), "rows of class_labels", ScoreError)
        return self.class_labels.expand(len(x))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = as_time(t).to(work_dtype(x))
        return self.data._score_at(x, self.sde.alpha(t), self.sde.sigma(t), self._classes(x))

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], like x."""
        return self.sde.denoise(x, t, self(x, t))

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), whose gradient this is, in nats, (B,)."""
        return self.data.log_prob(x, self.sde, t, self._classes(x))
