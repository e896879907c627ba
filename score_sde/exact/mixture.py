"""Mixtures of Gaussians: their law at every time of a process, its score, and measurements of it.

If x_0 is a mixture of Gaussians sum_k w_k N(mu_k, C_k), then under any process x_t is the mixture
sum_k w_k N(alpha mu_k, alpha^2 C_k + sigma^2 I). With C_k = U diag(lambda) U^T every quantity is
an elementwise operation in the eigenbasis, at every t, without inverting a matrix. On the line the
probability flow is known too: each point keeps its quantile, P(x_s' < x_s) = P(x_t' < x_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import (
    Count,
    Seed,
    UserError,
    check_size,
    checked,
    real_tensor,
    require,
    shown,
    whole_seeds,
)
from score_sde.exact.measured import Conditioned, conditioned, matrix_of
from score_sde.exact.score import ExactScore, work_dtype
from score_sde.noise import fresh_seeds, generator_of
from score_sde.processes.expand import as_time, expand, like_state
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn


def finite(values: Tensor | Sequence | float, what: str) -> Tensor:
    """Numbers as float64; UserError unless all are finite."""
    found = real_tensor(values, what).double()
    require(bool(found.isfinite().all()), f"{what} must be finite (got {shown(values)}).")
    return found


class GaussianMixture:
    """sum_k w_k N(mu_k, C_k) on states of any shape.

    weights: (K,), positive, normalised here. means: (K, *shape). covariances: a number or (K,)
    (isotropic variances), (K, *shape) (diagonal variances) or (K, D, D) with D the number of
    entries of a state (full). labels: (K,) classes of the components, for a score that is told
    classes: `score(sde).bind(class_labels=y)`. States x are (B, *shape); arithmetic is float64,
    results like x.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence,
        covariances: Tensor | Sequence | float,
        labels: Sequence[int] | Tensor | None = None,
    ):
        self.means = finite(means, "means")
        weights = finite(weights, "weights")
        if self.means.ndim < 2 or self.means.numel() == 0 or weights.shape != self.means.shape[:1]:
            raise UserError(
                f"weights (K,) and means (K, ...) must share K; got {tuple(weights.shape)} "
                f"and {tuple(self.means.shape)}."
            )
        if not bool((weights > 0).all()):
            raise UserError(f"mixture weights must be positive; got {weights.tolist()}.")
        self.weights = weights / weights.sum()
        self.shape = tuple(self.means.shape[1:])
        self.components, self.dim = len(weights), math.prod(self.shape)
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        if self.labels is not None and self.labels.shape != self.weights.shape:
            raise UserError(f"labels must be ({self.components},); got {list(self.labels.shape)}.")
        self.covariances = self._full_covariances(finite(covariances, "covariances"))
        # eigh: C_k = U diag(lambda) U^T, columns of U are the axes.
        self._variances, self._axes = torch.linalg.eigh(self.covariances)
        if bool((self._variances < -1e-10 * self._variances.abs().max()).any()):
            raise UserError("a covariance has a negative eigenvalue; it must be semi-definite.")
        self._variances = self._variances.clamp_min(0)
        flat = self.means.flatten(1)
        self._rotated_means = torch.einsum("kd,kde->ke", flat, self._axes)

    def _full_covariances(self, c: Tensor) -> Tensor:
        k, d = self.components, self.dim
        if c.ndim == 0 or c.shape == (k,):
            return c.expand(k)[:, None, None] * torch.eye(d, dtype=torch.float64)
        if c.shape == (k, d, d):
            apart = (c - c.mT).abs().max()
            require(
                bool(apart <= 1e-6 * c.abs().max()),
                f"covariances must be symmetric; they differ from their transposes by {apart:.3g}.",
            )
            return (c + c.mT) / 2
        if c.shape == (k, *self.shape):
            return torch.diag_embed(c.flatten(1))
        raise UserError(
            f"covariances must be a number, ({k},), ({k}, *{self.shape}) or ({k}, {d}, {d}); "
            f"got {tuple(c.shape)}."
        )

    def mean(self) -> Tensor:
        """E[x_0], shape (*shape), float64."""
        return torch.einsum("k,k...->...", self.weights, self.means)

    def covariance(self) -> Tensor:
        """Cov[x_0], shape (D, D), float64."""
        offsets = self.means.flatten(1) - self.mean().flatten()
        spread = offsets[:, :, None] * offsets[:, None, :]
        return torch.einsum("k,kde->de", self.weights, self.covariances + spread)

    def std(self) -> float:
        """Root of the mean variance over the coordinates: the data's scale."""
        return float(self.covariance().diagonal().mean().sqrt())

    @checked
    def sample(self, n: Count, seed: Seed | None = None) -> Tensor:
        """n draws of x_0, shape (n, *shape), float64; the global generator unless seeded."""
        check_size(24 * n * self.dim, "so many draws")
        generator = None if seed is None else generator_of(*whole_seeds([seed]))
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        flat = torch.einsum("nde,ne->nd", self._axes[which], z * self._variances[which].sqrt())
        return self.means[which] + flat.reshape(n, *self.shape)

    def of_class(self, label: int) -> GaussianMixture:
        """The law of x_0 of one class: its components alone. UserError for an unknown class."""
        here = self._of_classes(torch.tensor([label]))[0]
        return GaussianMixture(self.weights[here], self.means[here], self.covariances[here])

    def _of_classes(self, class_labels: Tensor) -> Tensor:
        """Which components are of each class, (B, K) bool; all for the class -1, no class."""
        if self.labels is None:
            raise UserError("this mixture has no classes: give labels, one a component.")
        labels = self.labels.to(class_labels.device)
        here = labels == class_labels[:, None]
        known = here.any(1) | (class_labels == -1)
        if not bool(known.all()):
            wrong = int(class_labels[~known][0])
            raise UserError(
                f"class {wrong} does not exist; there are {self.labels.unique().tolist()}."
            )
        return here | (class_labels == -1)[:, None]

    @checked
    def sample_tilted(
        self, label: int, scale: Annotated[float, Field(ge=1)], n: Count, seed: Seed | None = None
    ) -> Tensor:
        """n exact draws of the law p(x | c)^w p(x)^(1-w), w = scale >= 1; (n, *shape), float64.

        It is p(x | c) times (p(c | x) / p(c))^(w-1), so draws of p(x | c) are kept with
        probability p(c | x)^(w-1).
        """
        conditional = self.of_class(label)
        first = fresh_seeds(1)[0] if seed is None else seed
        keep = generator_of(first ^ 0x5DEECE66D)  # streams of their own: x and what becomes of it
        log_share = self.weights[self._of_classes(torch.tensor([label]))[0]].sum().log()
        kept: list[Tensor] = []
        turn = 0
        while sum(map(len, kept)) < n:
            x = conditional.sample(n, seed=(first + turn) % 2**64)
            log_posterior = conditional.log_prob(x) + log_share - self.log_prob(x)
            u = torch.rand(n, generator=keep, dtype=torch.float64)
            kept.append(x[u.log() < (scale - 1) * log_posterior])
            turn += 1
        return torch.cat(kept)[:n]

    def _components_at(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, class_labels: Tensor | None = None
    ):
        """Offsets in the eigenbasis (B, K, D), variances (1|B, K, D), log-densities (B, K)."""
        if not isinstance(x, Tensor) or x.shape[1:] != self.shape or x.is_complex():
            wanted = ", ".join(map(str, ("B", *self.shape)))
            raise UserError(f"states must have shape ({wanted}); got {shown(x)}.")
        dtype, device = work_dtype(x), x.device

        def work(value: Tensor) -> Tensor:
            return value.to(dtype).to(device)  # in this order: not every device has float64

        flat = x.flatten(1).to(dtype)
        alpha, sigma = (expand(c, flat).reshape(-1, 1, 1) for c in (alpha, sigma))
        axes = work(self._axes)
        rotated = torch.einsum("bd,kde->bke", flat, axes)
        offset = rotated - alpha * work(self._rotated_means)
        variance = alpha**2 * work(self._variances) + sigma**2
        log_density = -0.5 * (offset**2 / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        log_weights = work(self.weights).log()
        if class_labels is not None:
            here = self._of_classes(class_labels.to(device))
            log_weights = torch.where(here, log_weights, -math.inf)
            log_weights = log_weights - log_weights.logsumexp(1, keepdim=True)
        return offset, variance, log_density + log_weights, axes

    def _score_at(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        offset, variance, log_density, axes = self._components_at(x, alpha, sigma, class_labels)
        responsibility = torch.softmax(log_density, -1)
        pull = -responsibility[..., None] * offset / variance
        return like_state(torch.einsum("bke,kde->bd", pull, axes).reshape(x.shape), x)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability that x_0 = x is of each component, (B, K)."""
        one, zero = torch.tensor(1.0), torch.tensor(0.0)
        return self._components_at(x, one, zero)[2].softmax(-1)

    def log_prob(
        self,
        x: Tensor,
        sde: SDE | None = None,
        t: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """log p_t(x) in nats, (B,); without sde and t the data's own density log p_0.

        class_labels: (B,), for log p_t(x | class).
        """
        if sde is None and t is None:
            alpha, sigma = torch.tensor(1.0), torch.tensor(0.0)
        elif sde is None or t is None:
            raise UserError(f"give sde and t, or neither: a time is a number (got {shown(t)}).")
        else:
            t = as_time(t).to(work_dtype(x))
            alpha, sigma = sde.alpha(t), sde.sigma(t)
        components = self._components_at(x, alpha, sigma, class_labels)
        return like_state(torch.logsumexp(components[2], -1), x)

    def flow(self, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The solution at time s of the probability-flow ODE that is at x at time t; like x.

        On the line every point keeps its quantile, found by bisection; x is (B, 1). UserError for
        a mixture in more dimensions, whose flow is not known (that of a `Gaussian` is).
        """
        if self.dim != 1:
            raise UserError(f"the flow of a mixture is known on the line only; D is {self.dim}.")
        s, t = (as_time(u).to(work_dtype(x)) for u in (s, t))

        def tails(y: Tensor, u: Tensor) -> Tensor:
            """log P(x_u < y) and log P(x_u > y), (2, B)."""
            offset, variance, _, _ = self._components_at(y, sde.alpha(u), sde.sigma(u))
            z = (offset / variance.sqrt())[..., 0]
            log_w = self.weights.log().to(z)
            return torch.stack([(log_w + torch.special.log_ndtr(v)).logsumexp(1) for v in (z, -z)])

        wanted = tails(x, t)
        below = wanted[0] < wanted[1]  # the smaller tail is the accurate one
        spread = 40 * (self._variances.amax() + sde.sigma(s) ** 2).sqrt() + self.means.abs().amax()
        low, high = torch.zeros_like(x, dtype=s.dtype) - spread, torch.zeros_like(x) + spread
        for _ in range(80):
            y = (low + high) / 2
            found = tails(y, s)
            right = torch.where(below, found[0] < wanted[0], found[1] > wanted[1]).reshape(y.shape)
            low, high = torch.where(right, y, low), torch.where(right, high, y)
        return like_state((low + high) / 2, x)

    def measured(
        self, A: Tensor | Callable[[Tensor], Tensor], noise: Tensor | float, y: Tensor
    ) -> GaussianMixture:
        """The law of x_0 given y = A x_0 + n, n ~ N(0, S): a mixture of as many components.

        Each is conditioned and weighed by how well it foretold y, see the module `measured`.

        A: a matrix (m, D), or a linear function of states (B, *shape). noise: the standard
        deviation, a number or one for each of the m entries, or the covariance S (m, m). y: m
        entries. Raises UserError where these do not fit, and for noise that is not positive.
        """
        log_weights, means, covariances = self._measured(A, noise, y)
        weights = log_weights.softmax(0).clamp_min(1e-300)
        return GaussianMixture(weights, means.reshape(-1, *self.shape), covariances)

    def weights_given(
        self, A: Tensor | Callable[[Tensor], Tensor], noise: Tensor | float, y: Tensor
    ) -> Tensor:
        """The weights of the components given y, (K,), see `measured`."""
        return self._measured(A, noise, y)[0].softmax(0)

    def log_evidence(
        self, A: Tensor | Callable[[Tensor], Tensor], noise: Tensor | float, y: Tensor
    ) -> float:
        """log p(y) in nats of a measurement, see `measured`."""
        return float(self._measured(A, noise, y)[0].logsumexp(0))

    def _measured(
        self, A: Tensor | Callable[[Tensor], Tensor], noise: Tensor | float, y: Tensor
    ) -> Conditioned:
        """Of all components, see `measured`."""
        return conditioned(
            self.weights.log(), self.means.flatten(1), self.covariances,
            matrix_of(A, self.shape), noise, y,
        )  # fmt: skip

    @checked
    def score(self, sde: SDE) -> ExactScore:
        """The exact score under ``sde``: a callable (x, t) like a trained model."""
        return ExactScore(self, sde)

    def denoiser(self, sde: SDE) -> ScoreFn:
        """E[x_0 | x_t = x] as a callable (x, t)."""
        return self.score(sde).denoise
