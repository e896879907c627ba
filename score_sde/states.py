"""Where time meets the state: score functions, and one way to broadcast over any state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

ScoreFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""score(x, t): the gradient of log p_t at x; x (B, ...), t () or (B,), result like x."""


def score_of(score: ScoreFn, samples: slice | Tensor) -> ScoreFn:
    """The score of some samples of a batch, by their places.

    That is the score itself, unless its samples have scores of their own, as those of different
    classes do; such a score has ``score.of(samples)``. Whatever takes a batch apart asks for it.
    """
    part = getattr(score, "of", None)
    return score if part is None else part(samples)


def expand(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,), ready to multiply a state x of shape (B, ...).

    The one place where time meets the state: it casts to the dtype and device of ``x``.
    Raises ValueError for any other shape.
    """
    c = torch.as_tensor(coefficient)
    if c.ndim > 1 or (c.ndim == 1 and c.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"time and its coefficients must have shape () or (B,) = ({x.shape[0]},); "
            f"got {tuple(c.shape)}. Flatten t, for instance with t.reshape(-1)."
        )
    c = c.to(x.dtype).to(x.device)
    return c if c.ndim == 0 else c.reshape(-1, *[1] * (x.ndim - 1))
