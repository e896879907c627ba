r"""The pair of Dormand and Prince (1980), order 5 with an error of order 4, for each sample alone.

Solvers that choose one step size for the whole batch make a sample depend on its batch mates. Here
the time, the step size and the error of each sample are entries of (B,) tensors; a sample that has
arrived leaves the batch, and one that rejects a step repeats it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from score_sde.scores import Rows

# The stages, and the difference of the two results.
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

Slope = Callable[[Tensor], Tensor]


class Field(Protocol):
    """The right-hand side of dy/du, for the samples of a batch at times of their own."""

    def at(self, u: Tensor) -> Sequence[Slope]:
        """Functions of the state (B, ...), one for each row of times u (S, B)."""

    def take(self, rows: Rows) -> Field:
        """The field of these samples."""


class Solution(NamedTuple):
    """The state at the end, and the sum of the sizes of all steps' errors, like it."""

    state: Tensor
    change: Tensor


class StoppedError(RuntimeError):
    """A solve that cannot go on: the message says why; where: the earliest time of a sample."""

    def __init__(self, message: str, where: float):
        super().__init__(message)
        self.where = where


def integrate_each(
    field: Field,
    state: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    max_evaluations: int,
    parts: Sequence[int] | None = None,
) -> Solution:
    """The state (B, ...) at time end > start, and the sum of the sizes of all steps' errors.

    The error of a step, in units of atol + rtol |state|, is the root mean square over a sample's
    coordinates; with ``parts``, sizes of consecutive groups of columns, the largest of theirs.
    Raises `StoppedError` for slopes that are not finite, steps that vanish, and more than
    ``max_evaluations``.
    """
    dtype = torch.float32 if state.device.type == "mps" else torch.float64
    result, change = torch.empty_like(state), torch.zeros_like(state)
    where = torch.arange(len(state), device=state.device)  # places of samples on their way
    u = torch.full((len(state),), start, dtype=dtype, device=state.device)
    nodes = torch.tensor(C[1:], dtype=dtype, device=state.device)[:, None]
    h = torch.full_like(u, 0.05 * (end - start))
    first, count = field.at(u[None])[0](state), 1
    while len(where):
        count += len(C) - 1
        if count > max_evaluations:
            message = f"after {max_evaluations} evaluations: they did not reach the end, steps are "
            raise StoppedError(f"{message}{float(h.min()):.1e}", float(u.min()))
        h = torch.minimum(h, end - u)
        size = h.to(state.dtype).reshape(-1, *[1] * (state.ndim - 1))
        k = [first]
        for row, slope in zip(A[1:], field.at(u + nodes * h), strict=True):
            y = torch.addcmul(state, _weighted(k, row), size)
            k.append(slope(y))
        error = _weighted(k, E) * size
        tolerance = atol + rtol * torch.maximum(state.abs(), y.abs())
        squares = (error / tolerance).flatten(1).square()
        groups = squares.split(list(parts), 1) if parts is not None else [squares]
        ratio = torch.stack([g.mean(1) for g in groups]).amax(0).sqrt().to(dtype)
        if not bool(torch.isfinite(ratio).all()):
            raise StoppedError(f"after {count} evaluations: a slope is not finite", float(u.min()))
        accepted = ratio <= 1
        keep = accepted.reshape(size.shape)
        state, first = torch.where(keep, y, state), torch.where(keep, k[-1], first)
        change[where] += torch.where(keep, error.abs(), torch.zeros_like(error))
        u = torch.where(accepted, u + h, u)
        h = h * (0.9 * ratio.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
        # Rounding may leave a sliver before the end; it counts as arrived.
        arrived = accepted & (end - u <= 1e-12 * abs(end - start))
        if bool(arrived.any()):
            result[where[arrived]] = state[arrived]
            left = ~arrived
            field = field.take(left.nonzero().flatten())
            where, state, first, u, h = where[left], state[left], first[left], u[left], h[left]
        if bool((h < 1e-10 * (end - start)).any()):
            message = f"after {count} evaluations: the step size vanishes, {float(h.min()):.1e}"
            raise StoppedError(message, float(u.min()))
    return Solution(result, change)


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_j weights_j values_j, a new tensor."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=False):
        if weight:
            total.add_(value, alpha=weight)
    return total
