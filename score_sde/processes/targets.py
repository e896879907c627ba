r"""What a network can be asked to predict, each a row (a, b) of output = a x_0 + b eps.

    target        a                 b
    eps           0                 1                 2006.11239
    x0            1                 0
    v             -sigma            alpha             2202.00512
    velocity      alpha'            sigma'            2210.02747
    score         0                 -1/sigma          2011.13456
    scaled_score  0                 -1                2011.13456
    F             sigma / (sd r)    -alpha sd / r     2206.00364

scaled_score is sigma * score: networks that are divided by sigma to give the score (NCSN++).
F is EDM's preconditioned output, written for any alpha: F = (x_0 - c_skip x/alpha) / c_out, with
r^2 = sigma^2 + alpha^2 sd^2 and sd the standard deviation of the data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.processes.sdes import SDE

Row = tuple[Tensor, Tensor]


def _eps(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.zeros_like(t), torch.ones_like(t)


def _x0(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.ones_like(t), torch.zeros_like(t)


def _v(sde: SDE, t: Tensor, data_std: float) -> Row:
    return -sde.sigma(t), sde.alpha(t)


def _velocity(sde: SDE, t: Tensor, data_std: float) -> Row:
    return sde.derivatives(t)


def _score(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.zeros_like(t), -1 / sde.sigma(t)


def _scaled_score(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.zeros_like(t), -torch.ones_like(t)


def _preconditioned(sde: SDE, t: Tensor, data_std: float) -> Row:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    radius = torch.sqrt(sigma**2 + (alpha * data_std) ** 2)
    return sigma / (data_std * radius), -alpha * data_std / radius


TARGETS: dict[str, Callable[[SDE, Tensor, float], Row]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "velocity": _velocity,
    "score": _score,
    "scaled_score": _scaled_score,
    "F": _preconditioned,
}
