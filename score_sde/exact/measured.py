r"""What is known of a mixture sum_k w_k N(mu_k, C_k) once y = A x_0 + n, n ~ N(0, S), is measured.

Each component is conditioned as a Gaussian is, and weighed by how well it foretold y,

    w_k' ~ w_k N(y; A mu_k, S_k),  mu_k' = mu_k + G_k (y - A mu_k),  C_k' = C_k - G_k A C_k,
    S_k = A C_k A' + S,  G_k = C_k A' S_k^{-1}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.checks import UserError


class Conditioned(NamedTuple):
    """log w_k' (K,), not normalised: their sum is the evidence; mu_k' (K, D), C_k' (K, D, D)."""

    log_weights: Tensor
    means: Tensor
    covariances: Tensor


def matrix_of(A: Tensor | Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """A matrix (m, D), or what a linear function does to each unit state, in float64."""
    size = math.prod(shape)
    if not isinstance(A, Tensor):
        unit = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        return A(unit).reshape(size, -1).T
    if A.ndim != 2 or A.shape[1] != size:
        raise UserError(f"A must be (m, {size}) for states {shape}; got {tuple(A.shape)}.")
    return A.to(torch.float64)


def _noise_covariance(noise: Tensor | float, m: int) -> Tensor:
    """The covariance (m, m) of a standard deviation () or (m,), or of itself."""
    noise = torch.as_tensor(noise, dtype=torch.float64)
    if noise.shape != (m, m):
        noise = torch.diag(noise.flatten().expand(m) ** 2)
    if not bool((noise.diagonal() > 0).all()):
        raise UserError("the noise of a measurement must be positive in each of its entries.")
    return noise


def conditioned(
    log_weights: Tensor,
    means: Tensor,
    covariances: Tensor,
    A: Tensor,
    noise: Tensor | float,
    y: Tensor,
) -> Conditioned:
    """The components log w_k (K,), mu_k (K, D), C_k (K, D, D) after y (m,) of A (m, D), float64."""
    y = torch.as_tensor(y, dtype=torch.float64).flatten()
    S = _noise_covariance(noise, len(A))
    if len(y) != len(A):
        raise UserError(f"A gives {len(A)} numbers of a state; y has {len(y)}.")
    CA = covariances @ A.T
    root = torch.linalg.cholesky(A @ CA + S)
    off = y - means @ A.T
    pull = torch.cholesky_solve(off[..., None], root)[..., 0]
    fit = -0.5 * (off * pull).sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Conditioned(
        log_weights + fit - 0.5 * len(y) * math.log(2 * math.pi),
        means + torch.einsum("kdm,km->kd", CA, pull),
        covariances - CA @ torch.cholesky_solve(CA.mT, root),
    )
