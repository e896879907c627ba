"""A run that is watched: how F bends along the flow, and nodes placed by that."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from score_sde.ode import frames
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn

FLOOR = 0.05  # of the mean density


class Pilot:
    """A score that records F of every evaluation, of the whole batch."""

    def __init__(self, sde: SDE, score: ScoreFn, data_std: float):
        self.sde, self.score, self.sd = sde, score, data_std
        self._times: list[float] = []
        self._values: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        value = self.score(x, t)
        p, q = frames.predict(self.sde, t, "F", self.sd)
        self._times.append(float(t))
        self._values.append((float(p) * x + float(q) * value).cpu())
        return value

    @property
    def times(self) -> Tensor:
        """Where it was evaluated, float64."""
        return torch.tensor(self._times, dtype=torch.float64)

    def nodes(self, k: int, gamma: float, steps: int) -> Tensor:
        """steps + 1 falling values of u, dense where the k-th derivative of F is large."""
        u = half_level(self.sde, self.times)
        density = _bends(u, torch.stack(self._values), k) ** gamma
        density = density + FLOOR * density.mean()
        end = half_level(self.sde, torch.tensor([self.sde.t_min], dtype=torch.float64))
        return _share(torch.cat([u, end]), torch.cat([density, density[-1:]]), steps)


def half_level(sde: SDE, times: Tensor) -> Tensor:
    """u = log(sigma/alpha), like times."""
    return -frames.half_log_snr(sde, times)


def refined(times: Tensor, sde: SDE) -> list[float]:
    """A grid and its end t_min, with its steps halved (in log t)."""
    whole = torch.cat([times, torch.tensor([sde.t_min], dtype=torch.float64)])
    middle = torch.sqrt(whole[1:] * whole[:-1])
    return torch.cat([torch.stack([whole[:-1], middle], 1).flatten(), whole[-1:]]).tolist()


def _bends(u: Tensor, values: Tensor, k: int) -> Tensor:
    """rms over samples and coordinates of the k-th divided difference of values (n, B, ...)."""
    at, rms = u, values.flatten(1).double()
    for _ in range(k):
        rms = rms.diff(dim=0) / at.diff()[:, None]
        at = 0.5 * (at[1:] + at[:-1])
    size = rms.square().mean(1).sqrt()
    return _interpolate(u, at, size)


def _interpolate(u: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear, float64; ``at`` may rise or fall."""
    order = torch.argsort(at)
    return torch.from_numpy(np.interp(u, at[order], values[order]))


def _share(u: Tensor, density: Tensor, steps: int) -> Tensor:
    """steps + 1 falling values of u that share the mass of the density equally."""
    mass = torch.cat(
        [torch.zeros(1, dtype=u.dtype), (0.5 * (density[1:] + density[:-1]) * -u.diff()).cumsum(0)]
    )
    wanted = torch.linspace(0, float(mass[-1]), steps + 1, dtype=u.dtype)
    return _interpolate(wanted, mass, u)
