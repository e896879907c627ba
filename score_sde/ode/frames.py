r"""The coordinates in which the probability flow is easy to integrate, and exact weights in them.

With y = x/alpha and s = sigma/alpha the flow of every process is dy/ds = -s score_y(y, s). Along
that of a Gaussian N(m, U diag(v) U^T)

    z = U^T (y - m) / sqrt(s^2 + v)

stands still, and along that of other data z turns slowly where they are like it. Likelihoods and
latents are solved in the `Frame` of a Gaussian near the data, see `flow`.

Samplers take that of N(0, sd^2 I), where the flow is linear in the state but for one prediction of
the network. With tan(theta) = s/sd it is EDM's preconditioned output F (2206.00364), of unit
variance all the way, and dz/dtheta = -F. No width and an unbounded one are the other two choices,
with lambda = log(alpha/sigma) = -log s:

    P      sd        x = scale z                     dz/dlambda = speed P
    eps    infinity  alpha                           -s
    x0     0         sigma                           1/s
    F      sd        sqrt(sigma^2 + alpha^2 sd^2)    sd s / (s^2 + sd^2)

A method interpolates P by a polynomial through its values at some nodes, in a variable v(lambda),
and integrates that exactly: x_s = scale_s (z_t + sum_j w_j P_j), w_j = int l_j(v) speed dlambda.
All published multistep solvers are such choices; their order is the number of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.ode import multistep
from score_sde.processes.sdes import SDE
from score_sde.processes.targets import TARGETS

Prediction = Literal["eps", "x0", "F"]
Variable = Literal["lambda", "sigma", "theta", "time"]


@dataclass(frozen=True)
class Frame:
    """The z of N(mean, U diag(variances) U^T); mean and variances (D,) or ().

    axes: U, columns (D, D), or None where they do not matter. Levels s are () or (B,).
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor | None = None

    @classmethod
    def isotropic(cls, std: float) -> Frame:
        """Of N(0, std^2 I), float64."""
        return cls(*torch.tensor([0.0, std**2], dtype=torch.float64))

    def scale(self, s: Tensor) -> Tensor:
        """sqrt(s^2 + v), (D,) or (B, D), or with 1 for D."""
        return (self.variances + s.to(self.variances)[..., None] ** 2).sqrt()

    def to_z(self, y: Tensor, s: Tensor) -> Tensor:
        """z of y (B, D)."""
        return self.rotate(y - self.mean) / self.scale(s)

    def to_y(self, z: Tensor, s: Tensor) -> Tensor:
        """y of z (B, D)."""
        return self.mean + self.unrotate(z * self.scale(s))

    def rotate(self, v: Tensor) -> Tensor:
        """U^T v for rows v (..., D)."""
        return v if self.axes is None else v @ self.axes

    def unrotate(self, v: Tensor) -> Tensor:
        """U v for rows v (..., D)."""
        return v if self.axes is None else v @ self.axes.T

    def log_scale(self, s: Tensor, dim: int) -> float:
        """log |dy/dz| at a level ()."""
        return float(self.scale(s).log().expand(dim).sum())


def half_log_snr(sde: SDE, t: Tensor) -> Tensor:
    """lambda = log(alpha/sigma), like t."""
    return 0.5 * sde.log_snr(t)


def scale(sde: SDE, t: Tensor, prediction: str, data_std: float = 1.0) -> Tensor:
    """The factor between x and z, like t: alpha times the frame's."""
    if prediction == "eps":
        return sde.alpha(t)
    frame = Frame.isotropic(0.0 if prediction == "x0" else data_std)
    return sde.alpha(t) * frame.scale(sde.sigma(t) / sde.alpha(t))[..., 0]


def predict(sde: SDE, t: Tensor, prediction: str, data_std: float = 1.0) -> tuple[Tensor, Tensor]:
    """(p, q) with P = p x + q score(x, t), each like t.

    P = a x_0 + b eps, the row of its target, with x_0 = (x + sigma^2 score) / alpha and
    eps = -sigma score.
    """
    a, b = TARGETS[prediction](sde, t, data_std)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return a / alpha, a * sigma**2 / alpha - b * sigma


def speed(lam: Tensor, prediction: str, data_std: float = 1.0) -> Tensor:
    """dz/dlambda per unit of P, like lambda."""
    s = torch.exp(-lam)
    if prediction == "eps":
        return -s
    return 1 / s if prediction == "x0" else data_std * s / (s**2 + data_std**2)


def variable_of(sde: SDE, lam: Tensor, variable: str, data_std: float = 1.0) -> Tensor:
    """v(lambda), like lambda."""
    if variable == "lambda":
        return lam
    if variable == "sigma":
        return torch.exp(-lam)
    if variable == "theta":
        return torch.atan(torch.exp(-lam) / data_std)
    return sde.time_of_log_snr(2 * lam)


def weights(
    sde: SDE,
    start: Tensor,
    end: Tensor,
    nodes: Tensor,
    prediction: str,
    variable: str,
    data_std: float = 1.0,
    eta: float = 0.0,
) -> Tensor:
    """w_j = int_start^end l_j(v) speed dlambda for start, end (N,) and nodes (N, n), all lambdas.

    For eta > 0 (with x0 only) the kernel of the reverse SDE, (1 + eta^2) e^{-eta^2 (end - lambda)}
    times that of the flow (2211.01095, section 5). Float64 (N, n).
    """

    def kernel(lam: Tensor) -> Tensor:
        flow = speed(lam, prediction, data_std)
        return flow * (1 + eta**2) * torch.exp(-(eta**2) * (end[:, None] - lam)) if eta else flow

    return multistep.weights(
        start, end, nodes, kernel, lambda lam: variable_of(sde, lam, variable, data_std)
    )


def noise_std(sde: SDE, t: Tensor, s: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(kept, std): what a step of the reverse SDE keeps of x_t/sigma_t, and the noise it adds."""
    h = half_log_snr(sde, s) - half_log_snr(sde, t)
    strength = eta**2
    return torch.exp(-strength * h), sde.sigma(s) * torch.sqrt(-torch.expm1(-2 * strength * h))


def check_positive(name: str, value: float | None) -> float:
    """The value as a number; UserError unless it is positive, and one that can be squared."""
    if value is None or not 1e-30 <= value <= 1e30:
        raise UserError(
            f"{name} must be a positive number, of 1e-30 to 1e30 (got {value}): the standard "
            "deviation of x_0 in the model's range. A run knows it; from Python give it, or a "
            "recipe of `calibrate`."
        )
    return float(value)
