r"""A network as a map of the probability flow: X_{s,t} carries x_t to x_s in one evaluation.

For a network that is told of two times, t of its input and s < t of where to go, the map is the
step that DDIM takes with what it then predicts (2310.02279, 2503.07565):

    X_{s,t}(x) = alpha_s x_0 + sigma_s eps,        (x_0, eps) = split(net(x, t, s)),

whatever its target is. At s = t it is x itself, and (x_0, eps) are those of a score model; between,
they are averages over the way from t to s. In the coordinates in which the flow of N(0, sd^2 I)
stands still but for a turn, x = r z with r^2 = sigma^2 + alpha^2 sd^2, and with the angle
tan(theta) = sigma / (alpha sd) for time, they are one direction G = cos(theta) eps - sin(theta)
x_0 / sd, and

    z_s = cos(D) z_t - sin(D) G(z_t, t, s),  D = theta_t - theta_s,      dz/dtheta = G at s = t:

sCM's consistency function for s = 0 (2410.11081, eq. 6), MeanFlow's average velocity but for the
turn (2505.13447, eq. 5).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from score_sde.models.score_model import ScoreModel
from score_sde.processes.expand import as_time, expand
from score_sde.processes.sdes import SDE


def angle(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    """theta in [0, pi/2) with tan(theta) = sigma / (alpha data_std), like t; it grows with t."""
    return torch.atan2(sde.sigma(t), sde.alpha(t) * data_std)


def angle_speed(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    """d theta / d t, like t."""
    (alpha_rate, sigma_rate), alpha, sigma = sde.derivatives(t), sde.alpha(t), sde.sigma(t)
    turned = sigma_rate * alpha - sigma * alpha_rate
    return data_std * turned / (sigma**2 + (alpha * data_std) ** 2)


def time_of_angle(sde: SDE, theta: Tensor, data_std: float) -> Tensor:
    """The time t > 0 at which the angle is theta > 0, like it."""
    return sde.time_of_log_snr(-2 * (data_std * torch.tan(theta)).log())


class FlowMap(ScoreModel):
    """The map of a network `net(x, noise_label, second_label=..., **condition)`, see the module.

    The second label is the angle of s, 999 * 2/pi theta_s, so that it is finite at s = 0. An s up
    to ``sde.t_min`` counts as 0: the map ends at the data, and needs no denoising. As a score,
    `model(x, t)`, it is told s = t.

    steps: the most steps that it was trained for, on the grid "angle"; None for any times.
    """

    steps: int | None = None
    no_density: ClassVar[str] = (
        "this run is a map of the flow in a few steps, trained by --mode distill or with a "
        "flow_map section: as a score it was not trained at all times, so it has no likelihood, "
        "latents or posterior. Use its teacher, or --mode sample."
    )

    def second_label(self, s: Tensor) -> Tensor:
        """What the network is told of s, like s."""
        theta = angle(self.sde, self.landing(s), self.data_std)
        return (999 * 2 / math.pi) * theta

    def landing(self, s: Tensor) -> Tensor:
        """s, or 0 where it is not above t_min."""
        s = as_time(s)
        return torch.where(s <= self.sde.t_min * (1 + 1e-6), torch.zeros_like(s), s)

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        if "second_label" not in condition:
            condition["second_label"] = self.second_label(t)
        label = condition["second_label"]
        condition["second_label"] = label.to(x.device).expand(x.shape[0])
        return super().output(x, t, **condition)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, **condition: Any) -> Tensor:
        """X_{s,t}(x), like x (B, ...); s and t are () or (B,), s at most t."""
        x0, eps = self.split(x, t, second_label=self.second_label(s), **condition)
        s = self.landing(s)
        return expand(self.sde.alpha(s), x) * x0 + expand(self.sde.sigma(s), x) * eps

    def direction(self, x: Tensor, t: Tensor, s: Tensor, **condition: Any) -> Tensor:
        """G(x, t, s), like x: of unit variance where data_std is that of the data."""
        x0, eps = self.split(x, t, second_label=self.second_label(s), **condition)
        theta = angle(self.sde, as_time(t), self.data_std)
        return expand(theta.cos(), x) * eps - expand(theta.sin() / self.data_std, x) * x0
