"""What all of this package asks of its input, and the coordinates that it works in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.checks import UserError, check_finite
from score_sde.exact import Gaussian
from score_sde.ode.clock import Clock
from score_sde.ode.flow import work_dtype
from score_sde.ode.frames import Frame, check_positive
from score_sde.scores import ScoreFn


def check_state(score: ScoreFn, x: Tensor) -> None:
    """UserError for states or scores that no likelihood can be computed of."""
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"x must be (B, ...) with B >= 1 and at least two axes; got {found}.")
    if not x.is_floating_point():
        raise UserError(
            f"x is {x.dtype}: give floating-point values in the model's range, dequantised if they "
            "are levels (`dequantize`)."
        )
    check_finite(x, "x")
    for module in score.modules() if isinstance(score, nn.Module) else ():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise UserError("dropout is on, so the score is random; call score.eval() first.")


def frame_of(x: Tensor, gaussian: Gaussian | None, data_std: float | None) -> tuple[Frame, float]:
    """The frame of `flow`, and the data's scale for its clock.

    Without a Gaussian or a data_std the mean and the spread of all numbers in x: they set the
    coordinates, not the result.
    """
    options: dict[str, Any] = {"dtype": work_dtype(x), "device": x.device}
    if gaussian is not None:
        if gaussian.dim != x[0].numel():
            raise UserError(
                f"gaussian has {gaussian.dim} coordinates and a sample {x[0].numel()}: give one "
                "near the data, of their mean and covariance."
            )
        variances, axes = torch.linalg.eigh(gaussian.covariance())
        frame = [gaussian.mean().flatten(), variances.clamp_min(0), axes]
        return Frame(*(part.to(options["dtype"]).to(x.device) for part in frame)), gaussian.std()
    numbers = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 squares overflow
    mean = 0.0 if data_std is not None else float(numbers.mean())
    spread = float((numbers - mean).square().mean().sqrt())
    size = float(numbers.square().mean().sqrt())
    sd = max(spread, 0.1 * size, 1e-3) if data_std is None else check_positive("data_std", data_std)
    if not math.isfinite(sd):
        raise UserError(f"the spread of x must be finite (got {sd}): its numbers are too large.")
    return Frame(torch.tensor(mean, **options), torch.tensor(sd**2, **options)), sd


def clock_of(frame: Frame, sd: float, adaptive: bool = False) -> Clock:
    """The clock, from the scales of the data; adaptive steps need less help near them."""
    widest = float(frame.variances.max().sqrt())
    return Clock((0.1 if adaptive else 0.03) * sd, 3 * max(widest, sd))
