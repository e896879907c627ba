"""One run of `sample` with all its states: `record_trajectory`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import checked
from score_sde.noise import SeededNoise, check_seeds
from score_sde.processes.sdes import SDE
from score_sde.sampling.loop import sample
from score_sde.sampling.plan import check_shape
from score_sde.scores import ScoreFn


@checked
def record_trajectory(
    sde: SDE,
    score: ScoreFn,
    shape: tuple[int, ...] | None = None,
    *,
    x_T: Tensor | None = None,
    denoise: bool = False,
    seeds: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """(times (n,), states (n, B, ...)) of one run of `sample`, from the start to the last step.

    shape or x_T, seeds (0, 1, ... unless given) and settings (method, steps, grid, ...) are those
    of `sample`. The states are those of the run itself; with ``denoise`` the end is added, at the
    last time once more.
    """
    size = check_shape(shape, x_T)
    seeds = check_seeds(range(size[0]) if seeds is None else seeds, size[0])
    if x_T is None:
        x_T = sde.prior_std() * SeededNoise(seeds, size[1:]).draw()
    grid: Any = settings.get("grid")
    named = grid is None or isinstance(grid, str)
    start = sde.t_max if named else float(getattr(grid, "times", grid)[0])
    times, states = [start], [x_T]

    def keep(x: Tensor, t: Tensor) -> None:
        times.append(float(t))
        states.append(x.clone())

    end = sample(sde, score, x_T=x_T, seeds=seeds, denoise=denoise, hook=keep, **settings)
    if denoise:
        keep(end, torch.tensor(times[-1]))
    return torch.tensor(times, dtype=torch.float64), torch.stack(states).cpu()
