"""A score learned from points of the plane while one looks on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.losses import ScoreMatching
from score_sde.models import ScoreModel
from score_sde.nets import MLP
from score_sde.noise import generator_of, seed_torch
from score_sde.processes.sdes import SDE

FEWEST, LR = 20, 4e-3


class Learned(NamedTuple):
    """The model after so many updates, the mean loss since the last time, whether it is done."""

    model: ScoreModel
    step: int
    loss: float
    done: bool


def learn(
    points: Tensor, sde: SDE, steps: int = 1500, seconds: float = 15.0, every: int = 100,
    seed: int = 0,
) -> Iterator[Learned]:  # fmt: skip
    """Denoising score matching on points (N, 2), at most ``steps`` updates and ``seconds`` long.

    The model after each ``every`` updates, and at the end. Raises UserError for fewer than 20
    points.
    """
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < FEWEST:
        raise UserError(
            f"the drawing has {len(points) if points.ndim == 2 else 0} points, too few to learn "
            f"from: draw at least {FEWEST}."
        )
    with torch.random.fork_rng():
        seed_torch(seed)
        net = MLP(dim=2, width=96)
    noise = generator_of(seed)
    model = ScoreModel(net, sde, target="v", data_std=float(points.std()))
    objective = ScoreMatching(stratified=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    begun, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        used = max(step / steps, (time.monotonic() - begun) / seconds)
        optimizer.param_groups[0]["lr"] = LR * max(1 - used, 0.02)
        rows = torch.randint(len(points), (256,), generator=noise)
        loss = objective(model, points[rows]).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        done = used >= 1
        if done or step % every == 0:
            yield Learned(model, step, sum(losses) / len(losses), done)
            losses.clear()
        if done:
            return
