"""Where time meets the state: one way to broadcast a coefficient over any state."""

from __future__ import annotations

import torch
from torch import Tensor


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
