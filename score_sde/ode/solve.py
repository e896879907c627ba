"""The probability-flow ODE by torchdiffeq's adaptive solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from score_sde.checks import UserError

Solver = Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]


class ODEError(UserError):
    """An adaptive solver could not go on; the message says where, why and what to change."""


def solve_ode(
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    end: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: str = "dopri5",
    max_evaluations: int = 10_000,
) -> Tensor:
    """The state at time ``end`` of dx/dt = field(t, x) that is x (B, ...) at time ``start``.

    The field is never evaluated beyond ``end``. The step size is chosen for the batch as a whole.
    Raises `ODEError` when the step size vanishes or ``max_evaluations`` is reached.
    """
    from torchdiffeq import odeint  # and with it scipy, a sixth of `import score_sde`

    count, last_t, finite = 0, float(start), True

    def guarded(t: Tensor, state: Tensor) -> Tensor:
        nonlocal count, last_t, finite
        count, last_t = count + 1, float(t)
        if count > max_evaluations:
            raise ODEError(
                f"ODE stopped at t={last_t:.3g} after {max_evaluations} evaluations. Loosen rtol "
                "and atol, raise max_evaluations, or use method=heun with steps."
            )
        slope = field(t, state)
        finite = finite and bool(torch.isfinite(slope).all())
        return slope

    time_dtype = torch.float32 if x.device.type == "mps" else torch.float64
    times = torch.stack([start, end]).to(time_dtype).to(x.device)
    # Without step_t torchdiffeq steps past the end, where sigma may not exist, and comes back.
    options = {"step_t": times, "dtype": time_dtype}
    try:
        return odeint(guarded, x, times, rtol=rtol, atol=atol, method=solver, options=options)[-1]
    except AssertionError as error:  # torchdiffeq's "underflow in dt" and "non-finite values"
        cause = (
            "The field is finite but stiff: raise sde.t_min, loosen rtol and atol, or use "
            "method=heun with steps."
            if finite
            else "The field is not finite there: the score itself is broken (check the model)."
        )
        where = f"ODE stopped at t={last_t:.3g} after {count} evaluations."
        raise ODEError(f"{where} {cause}") from error
