"""What a score is: any callable score(x, t), and how a batch of samples is taken apart.

Samplers and likelihoods take a score and know of no classes, captions or measurements. What a
score is told beside (x, t) is bound to it before it is handed over, `model.bind(class_labels=y)`.
Where a batch is taken apart, a bound score is asked for its part by ``score.take(rows)``; that is
the whole protocol, and whoever makes a score of other scores (guidance, mixtures, measurements)
passes it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from score_sde.checks import UserError

ScoreFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""score(x, t): the gradient of log p_t at x; x (B, ...), t () or (B,), result like x."""

Rows: TypeAlias = "slice | Tensor"
"""Places in a batch: a slice, or integers (n,)."""


def nothing_like(value: Tensor) -> Tensor:
    """What a network is told in place of a condition that it is not told, like value (B, ...).

    -1 for integers (classes), zeros and False for all else: a text mask without a token, for
    instance, says that there is no caption. Training with dropout replaces rows by these, and the
    unconditional half of a guided batch consists of them, so that they are the same bit for bit.
    """
    discrete = value.dtype != torch.bool and not value.is_floating_point()
    return torch.full_like(value, -1) if discrete else torch.zeros_like(value)


class ScoreError(UserError):
    """A score that does not fit the samples it is asked about; the message says what to bind."""


def check_density(score: ScoreFn) -> None:
    """ScoreError for a score that says by ``no_density`` that it is the score of no density."""
    reason = getattr(score, "no_density", None)
    if reason is not None:
        raise ScoreError(reason)


def take(score: ScoreFn, rows: Rows) -> ScoreFn:
    """The score of some samples of a batch, by their places.

    A score with ``take`` is asked for its part. Any other callable is taken to be the same for all
    samples; if it fails on a part, the error says how a score of single samples is made.
    """
    part = getattr(score, "take", None)
    return _Part(score) if part is None else part(rows)


@dataclass(frozen=True)
class _Part:
    """A callable that cannot be divided, asked about a part of its batch."""

    score: ScoreFn

    def take(self, rows: Rows) -> ScoreFn:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.score, name)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        try:
            return self.score(x, t)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ScoreError(
                f"the score failed on {len(x)} samples of a larger batch ({error}). If it is told "
                "something for each sample, it has to be divided with them: bind it, "
                "model.bind(class_labels=y), give it a method take(rows) that returns the score "
                "of these rows, or draw the whole batch at once (without batch_size)."
            ) from error
