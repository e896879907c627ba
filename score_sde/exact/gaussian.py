r"""One Gaussian, whose probability flow is known: each eigen-coordinate keeps its standard score,

x_s = alpha_s mu + U sqrt((alpha_s^2 lambda + sigma_s^2) / (alpha_t^2 lambda + sigma_t^2)) U^T
      (x_t - alpha_t mu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.exact.mixture import GaussianMixture, finite
from score_sde.exact.score import work_dtype
from score_sde.processes.expand import as_time, like_state
from score_sde.processes.sdes import SDE


class Gaussian(GaussianMixture):
    """N(mean, covariance) on states of any shape, with its exact probability flow.

    mean: (*shape). covariance: a number (isotropic variance), (*shape) (diagonal) or (D, D).
    """

    def __init__(self, mean: Tensor | Sequence[float], covariance: Tensor | Sequence | float):
        mean, covariance = finite(mean, "mean"), finite(covariance, "covariance")
        if mean.ndim == 0:
            raise UserError("mean must have the shape of one state, for instance (2,); got ().")
        if covariance.ndim > 0:
            covariance = covariance[None]
        super().__init__([1.0], mean[None], covariance)

    @property
    def axis_variances(self) -> Tensor:
        """Variances lambda along the axes of the covariance U diag(lambda) U', (D,)."""
        return self._variances[0]

    def to_axes(self, v: Tensor) -> Tensor:
        """Coordinates (B, D) of flat v (B, D) along the axes."""
        return v @ self._axes[0].to(v)

    def from_axes(self, z: Tensor) -> Tensor:
        """The inverse of `to_axes`."""
        return z @ self._axes[0].to(z).T

    def measured(
        self, A: Tensor | Callable[[Tensor], Tensor], noise: Tensor | float, y: Tensor
    ) -> Gaussian:
        """The law of x_0 given y = A x_0 + noise, again a Gaussian; see `GaussianMixture`."""
        _, means, covariances = self._measured(A, noise, y)
        return Gaussian(means[0].reshape(self.shape), covariances[0])

    def flow(self, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The solution at time s of the probability-flow ODE that is at x at time t; like x."""
        s, t = (as_time(u).to(work_dtype(x)) for u in (s, t))
        offset, variance, _, axes = self._components_at(x, sde.alpha(t), sde.sigma(t))
        zero = torch.zeros_like(x)
        _, new_variance, _, _ = self._components_at(zero, sde.alpha(s), sde.sigma(s))
        moved = torch.einsum("bke,kde->bd", offset * (new_variance / variance).sqrt(), axes)
        mean = self.means.to(moved)
        alpha = sde.alpha(s).to(moved).reshape(-1, *[1] * (x.ndim - 1))
        return like_state(alpha * mean + moved.reshape(x.shape), x)
