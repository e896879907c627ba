"""Scores of the plane without a run directory: known in closed form, or learned from a drawing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.build import SDES, build_objective
from score_sde.checks import UserError
from score_sde.diagnosis.known import closed_forms as closed_forms
from score_sde.models import ScoreModel
from score_sde.nets import MLP
from score_sde.noise import generator_of, seed_torch
from score_sde.sampling import SDE, ScoreFn

PROCESSES: dict[str, SDE] = {name: SDES[name]() for name in ("vp", "subvp", "cosine", "flow")}
FEWEST, LR = 20, 4e-3


class Field(NamedTuple):
    """A score of the plane under its process, and points (N, 2) of the data where there are any."""

    sde: SDE
    score: ScoreFn
    points: Tensor | None = None

    def time(self, share: float) -> float:
        """The time at a share of the way from the data, 0, to noise, 1."""
        return self.sde.t_min + share * (self.sde.t_max - self.sde.t_min)


class Learned(NamedTuple):
    """What is known after so many updates, the mean loss since the last time, and if it is done."""

    field: Field
    step: int
    loss: float
    done: bool


def learn(
    points: Tensor, sde: SDE, steps: int = 1500, seconds: float = 15.0, every: int = 100,
    seed: int = 0,
) -> Iterator[Learned]:  # fmt: skip
    """Denoising score matching on points (N, 2), at most ``steps`` updates and ``seconds`` long.

    What is learned after each ``every`` updates, and at the end. Raises UserError for fewer than 20
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
    objective = build_objective({"loss": {"stratified": True}})
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
            yield Learned(Field(sde, model, points), step, sum(losses) / len(losses), done)
            losses.clear()
        if done:
            return
