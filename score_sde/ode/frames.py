r"""The coordinates in which the probability flow is easy to integrate, and exact weights in them.

With lambda = log(alpha/sigma) and s = sigma/alpha = e^{-lambda}, the flow is linear in the state
but for one prediction of the network. Three choices of that prediction P make it an integral:

    z = x / scale,    dz/dlambda = speed(lambda) P

    P      scale                          speed
    eps    alpha                          -s
    x0     sigma                          1/s
    F      r = sqrt(sigma^2 + alpha^2 sd^2)    sd s / (s^2 + sd^2)

The third is EDM's preconditioned output (2206.00364): with theta = arctan(s/sd) the flow reads
dz/dtheta = -F, where z has unit variance all the way and F changes least. A method interpolates P
by a polynomial through its values at some nodes, in a variable v(lambda), and integrates that
exactly: x_s = scale_s (z_t + sum_j w_j P_j), w_j = int l_j(v) speed dlambda. All published
multistep solvers are such choices; their order is the number of nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.ode import multistep
from score_sde.processes.sdes import SDE
from score_sde.processes.targets import TARGETS

PREDICTIONS = ("eps", "x0", "F")
VARIABLES = ("lambda", "sigma", "theta", "time")


def half_log_snr(sde: SDE, t: Tensor) -> Tensor:
    """lambda = log(alpha/sigma), like t."""
    return 0.5 * sde.log_snr(t)


def scale(sde: SDE, t: Tensor, prediction: str, data_std: float = 1.0) -> Tensor:
    """The factor between x and z, like t."""
    if prediction == "eps":
        return sde.alpha(t)
    if prediction == "x0":
        return sde.sigma(t)
    return torch.sqrt(sde.sigma(t) ** 2 + (sde.alpha(t) * data_std) ** 2)


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
    """The value as a number; ValueError unless it is positive and finite."""
    if value is None or not (value > 0 and math.isfinite(value)):
        raise UserError(
            f"{name} must be a positive number (got {value}): the standard deviation of x_0 in the "
            "model's range. A run knows it; from Python give it, or a recipe of `calibrate`."
        )
    return float(value)
