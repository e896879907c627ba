r"""Data as latents: the probability flow maps x to x_T and back (2011.13456, section 4.3).

The map depends on the process and the score alone, so two latents can be compared, mixed, scaled:
`interpolate` goes from one to the other on the sphere that noise lives on, and a temperature
factor on x_T below 1 keeps to the likely.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from score_sde.checks import Count, Positive, Several, UserError, checked
from score_sde.exact import Gaussian
from score_sde.likelihood.setting import check_state, clock_of, frame_of
from score_sde.ode.flow import Counted, Flow, levels
from score_sde.ode.multistep import integrate
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, batches


@checked
def encode(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    *,
    nfe: Several = 64,
    data_std: Positive | None = None,
    gaussian: Gaussian | None = None,
    batch_size: Count | None = None,
    progress: bool = False,
) -> Tensor:
    """x_T (B, ...) at t_max of data x (B, ...), by nfe evaluations of the probability flow.

    data_std or gaussian: as in `log_likelihood`; the same ones must be given to `decode`.
    Raises UserError for settings or states that make no sense.
    """
    return _carry(sde, score, x, nfe, data_std, gaussian, batch_size, progress, forward=True)


@checked
def decode(
    sde: SDE,
    score: ScoreFn,
    x_T: Tensor,
    *,
    nfe: Several = 64,
    data_std: Positive | None = None,
    gaussian: Gaussian | None = None,
    batch_size: Count | None = None,
    progress: bool = False,
) -> Tensor:
    """The inverse of `encode`: x (B, ...) of latents x_T (B, ...); one of the two is needed."""
    if data_std is None and gaussian is None:
        raise UserError("give data_std, the standard deviation of x_0, or a Gaussian near it.")
    return _carry(sde, score, x_T, nfe, data_std, gaussian, batch_size, progress, forward=False)


@torch.no_grad()
def _carry(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    nfe: int,
    data_std: float | None,
    gaussian: Gaussian | None,
    batch_size: int | None,
    progress: bool,
    forward: bool,
) -> Tensor:
    check_state(score, x)
    frame, sd = frame_of(x, gaussian, data_std)
    clock, (low, high), chunks = clock_of(frame, sd), levels(sde), []
    ends = (clock.u(float(low)), clock.u(float(high)))
    nodes = torch.linspace(*(ends if forward else ends[::-1]), nfe, dtype=torch.float64)
    pieces = batches(score, len(x), batch_size)
    for rows, part in tqdm(list(pieces), disable=not progress, unit="batch"):
        piece, shape = x[rows], tuple(x.shape[1:])
        flow = Flow(sde, Counted(part), frame, clock, shape, x.dtype, traced=False)
        # Data stand for x/alpha at t_min: alpha is 1 there but for rounding, and x is then exact.
        if forward:
            z = frame.to_z(piece.flatten(1).to(frame.mean), low)
            chunks.append(flow.state(integrate(flow.slope, z, nodes), high))
        else:
            z = integrate(flow.slope, flow.coordinates(piece, high), nodes)
            chunks.append(frame.to_y(z, low).reshape(-1, *shape).to(x.dtype))
    return torch.cat(chunks)


@checked
def interpolate(start: Tensor, end: Tensor, n: Several) -> Tensor:
    """n latents (n, *shape) from start to end (*shape), ends included, by spherical interpolation.

    The direction turns evenly in the plane of both and the norm goes from one to the other, so that
    what is in between is as likely a draw of noise as the ends; a straight line would be too short.
    """
    if start.shape != end.shape:
        raise UserError(f"latents differ in shape: {tuple(start.shape)}, {tuple(end.shape)}.")
    a, b = start.flatten().double(), end.flatten().double()
    norms = torch.stack([a.norm(), b.norm()])
    a, b = a / norms[0], b / norms[1]
    angle = torch.arccos((a @ b).clamp(-1, 1))
    w = torch.linspace(0, 1, n, dtype=a.dtype, device=a.device)[:, None]
    if float(angle.sin()) < 1e-6:  # parallel: nothing to turn (and no plane if opposite)
        points = (1 - w) * a + w * b
    else:
        points = (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / angle.sin()
    points = points * ((1 - w) * norms[0] + w * norms[1])
    return points.reshape(n, *start.shape).to(start.dtype)
