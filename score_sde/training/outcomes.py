"""What has come of updates: their losses, and which of them had to be skipped.

An update does not wait for the device. What it has done is found out later, of many at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde import distributed
from score_sde.losses import LossTerms
from score_sde.training.errors import TrainingError


class Outcome(NamedTuple):
    """Of one update; tensors () of the device. bad: whether the gradient was not finite."""

    step: int
    loss: Tensor
    norm: Tensor
    bad: Tensor
    terms: LossTerms


class Outcomes:
    """Losses and skipped steps of a training.

    most_bad: steps in a row without a finite gradient that end it. place_of: in which noise levels
    times are, for people. name_row: what people call a row of the batch of a step.
    """

    def __init__(self, most_bad: int, place_of: Callable[[Tensor], str]):
        self.most_bad, self.place_of = most_bad, place_of
        self.name_row: Callable[[int, int], str] = "row {1}".format
        self.unread: list[Outcome] = []
        self.smooth_loss = math.nan
        self.bad_steps, self.skipped_steps = 0, 0  # now in a row, and of all
        self._last = {"loss": math.nan, "grad_norm": math.nan}

    def read(self) -> dict[str, float]:
        """Loss of the whole batch and norm of the last update, once all steps so far are read.

        What was not finite is said, and losses are taken into `smooth_loss`. All processes call it.
        Raises TrainingError after too many steps in a row without a finite gradient.
        """
        steps, self.unread = self.unread, []
        if not steps:
            return dict(self._last)
        table = torch.stack([torch.stack([u.loss, u.norm, u.bad.to(u.loss)]) for u in steps])
        losses, norms, bad = table.double().T.tolist()
        for loss in (losses := distributed.total(losses)):
            self._smooth(loss)
        self._last = {"loss": losses[-1], "grad_norm": norms[-1]}
        for step, is_bad in zip(steps, bad, strict=True):
            if is_bad:
                self._skipped(step.step, step.terms)
            else:
                self.bad_steps = 0
        return dict(self._last)

    def _smooth(self, loss: float) -> None:
        if math.isfinite(loss):
            old = loss if math.isnan(self.smooth_loss) else self.smooth_loss
            self.smooth_loss = 0.98 * old + 0.02 * loss

    def _skipped(self, step: int, terms: LossTerms) -> None:
        """Count a step without a finite gradient, say what was in it, stop if it is one of many."""
        self.bad_steps += 1
        self.skipped_steps += 1
        bad = (~torch.isfinite(terms.loss)).nonzero().flatten().tolist()
        if bad:
            names = [self.name_row(step, i) for i in bad[:3]] + ["..."] * (len(bad) > 3)
            where = f"{self.place_of(terms.t[bad])}{', '.join(names)}"
            what = f"the loss of {len(bad)} of {len(terms.t)} items is not finite ({where})"
        else:
            what = "the gradient is not finite though the loss is"
        if bad or distributed.is_writer():
            print(f"\nstep {step}: {what}; skipped, {self.bad_steps} in a row", flush=True)
        if self.bad_steps >= self.most_bad:
            raise TrainingError(
                f"The gradient has not been finite for {self.bad_steps} steps, up to step "
                f"{step}: {what}. The weights are those before; saved checkpoints are "
                "untouched. Try half the lr, model.precision=fp32, or training.grad_clip=1."
            )

    def counts(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        smooth = self.smooth_loss if math.isfinite(self.smooth_loss) else None
        kept = {"bad_steps": self.bad_steps, "skipped_steps": self.skipped_steps}
        return {"loss_smooth": smooth, **kept}

    def restore(self, meta: dict[str, Any]) -> None:
        """Go on from what a checkpoint has kept; what it has not is nothing."""
        smooth = meta.get("loss_smooth")
        self.smooth_loss = math.nan if smooth is None else smooth
        self.bad_steps = meta.get("bad_steps", 0)
        self.skipped_steps = meta.get("skipped_steps", 0)
