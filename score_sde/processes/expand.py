"""Where time meets the state: one way to broadcast a coefficient over any state."""

from __future__ import annotations

import torch
from torch import Tensor

from score_sde.checks import UserError, shown
from score_sde.devices import moved


def as_time(t: Tensor | float) -> Tensor:
    """A time () or (B,) that coefficients can be computed of: numbers, integers and half precision
    in float64, for which coefficients in their own precision would be cut off; others as they are.
    UserError for what is no time.
    """
    if isinstance(t, Tensor) and t.dtype in (torch.float32, torch.float64):
        return t
    try:
        found: Tensor | None = t if isinstance(t, Tensor) else torch.as_tensor(t)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_complex():
        raise UserError(f"a time is a number, or a tensor () or (B,) of numbers (got {shown(t)}).")
    if not isinstance(t, Tensor):
        return torch.as_tensor(t, dtype=torch.float64)
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def on_rows(value: Tensor, x: Tensor) -> Tensor:
    """A value () or (B,), in its own dtype, for each row of a state x (B, ...): (B,), beside it."""
    if value.ndim == 0 and value.device != x.device:
        return x.new_ones(len(x), dtype=value.dtype) * value
    return moved(value, x.device).expand(len(x))


def as_state(x: Tensor) -> Tensor:
    """A state to compute with: integers and half precision in float32, others as they are."""
    return x if x.dtype in (torch.float32, torch.float64) or x.is_complex() else x.float()


def like_state(value: Tensor, x: Tensor) -> Tensor:
    """A computed state in the dtype of x; what was computed of integers stays float32."""
    return value.to(x.dtype) if x.is_floating_point() else value


def expand(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,), ready to multiply a state x of shape (B, ...).

    The one place where time meets the state: it casts to the dtype and device of ``x``. One number
    of the CPU stays there, as PyTorch lets it multiply any state: nothing then waits for a device.
    Raises UserError for any other shape.
    """
    c = torch.as_tensor(coefficient)
    if c.ndim > 1 or (c.ndim == 1 and c.shape[0] not in (1, x.shape[0])):
        raise UserError(
            f"time and its coefficients must have shape () or (B,) = ({x.shape[0]},); "
            f"got {tuple(c.shape)}. Flatten t, for instance with t.reshape(-1)."
        )
    c = c.to(x.dtype)
    if c.ndim == 0:
        return c if c.device.type == "cpu" else c.to(x.device)
    return moved(c, x.device).reshape(-1, *[1] * (x.ndim - 1))
