"""What a score is: any callable score(x, t), and how a batch of samples is taken apart.

Samplers and likelihoods take a score and know of no classes, captions or measurements. What a
score is told beside (x, t) is bound to it before it is handed over, `model.bind(class_labels=y)`.
Where a batch is taken apart, a bound score is asked for its part by ``score.take(rows)``; that is
the whole protocol, and whoever makes a score of other scores (guidance, mixtures, measurements)
passes it on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from score_sde.checks import UserError, shown
from score_sde.devices import moved

ScoreFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""score(x, t): the gradient of log p_t at x; x (B, ...), t () or (B,), result like x."""

Rows: TypeAlias = "slice | Tensor"
"""Places in a batch: a slice, or integers (n,)."""

Score = TypeVar("Score", bound=ScoreFn)


def conditions_of(net: nn.Module) -> tuple[str, ...] | None:
    """What a network can be told beside x and the noise label, by its signature.

    None if it takes anything (``**condition``).
    """
    parameters = list(inspect.signature(net.forward).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[2:])


def nothing_like(value: Tensor) -> Tensor:
    """What a network is told in place of a condition that it is not told, like value (B, ...).

    -1 for integers (classes), zeros and False for all else: a text mask without a token, for
    instance, says that there is no caption. Training with dropout replaces rows by these, and the
    unconditional half of a guided batch consists of them, so that they are the same bit for bit.
    """
    discrete = value.dtype != torch.bool and not value.is_floating_point()
    return torch.full_like(value, -1) if discrete else torch.zeros_like(value)


def without(condition: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The condition with nothing in these rows (B,) bool."""
    return {
        name: torch.where(
            moved(rows, v.device).reshape(-1, *[1] * (v.ndim - 1)), nothing_like(v), v
        )
        for name, v in condition.items()
    }


class ScoreError(UserError):
    """A score that does not fit the samples it is asked about; the message says what to bind."""


def check_like(value: Any, x: Tensor, what: str = "the score", dtype: bool = True) -> None:
    """UserError unless a value is a tensor like x, of its shape and (if dtype) its dtype."""
    wrong = not isinstance(value, Tensor) or value.shape != x.shape
    if wrong or (dtype and value.dtype != x.dtype):
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else shown(value)
        raise UserError(f"{what} must be a tensor like x, {tuple(x.shape)} {x.dtype}; it is {got}.")


def check_density(score: ScoreFn) -> None:
    """ScoreError for a score that says by ``no_density`` that it is the score of no density."""
    reason = getattr(score, "no_density", None)
    if reason is not None:
        raise ScoreError(reason)


def take(score: Any, rows: Rows, size: int | None = None) -> Any:
    """The score of some samples of a batch, by their places.

    A score with ``take`` is asked for its part. Any other callable is taken to be the same for all
    samples, and asked as it is. If it fails, and the ``size`` of the batch is known, it is tried on
    as many samples as the whole batch has: where that works, the score is one of the whole batch
    alone, and `ScoreError` says how it can be divided; else its own error is raised.
    """
    if (part := getattr(score, "take", None)) is not None:
        return part(rows)
    return score if size is None else _Part(score, size)


def batches(
    score: Score, size: int, batch_size: int | None = None
) -> Iterator[tuple[slice, Score]]:
    """The rows of each batch of at most ``batch_size`` samples, and the score of these rows."""
    if batch_size is None or batch_size >= size:
        yield slice(0, size), score
        return
    for first in range(0, size, batch_size):
        rows = slice(first, min(first + batch_size, size))
        yield rows, take(score, rows, size)


@dataclass(frozen=True)
class _Part:
    """A callable without ``take``, asked about a part of a batch of ``size``."""

    score: ScoreFn
    size: int

    def take(self, rows: Rows) -> _Part:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.score, name)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        try:
            return self.score(x, t)
        except Exception as error:
            if self._takes_the_whole(x, t):
                raise ScoreError(
                    f"the score takes {self.size} samples at a time but not {len(x)} of them: it "
                    "is told something for each. So that it can be divided, bind that, "
                    "model.bind(class_labels=y), or give the score a method take(rows) that "
                    "returns the score of these rows; or draw all at once, without batch_size."
                ) from error
            raise

    def _takes_the_whole(self, x: Tensor, t: Tensor) -> bool:
        """Whether the score works on as many samples as the whole batch has."""
        repeats = torch.arange(self.size, device=x.device) % len(x)
        try:
            return self.score(x[repeats], t[repeats] if t.ndim else t).shape[0] == self.size
        except Exception:
            return False
