r"""Data whose score is known in closed form: the oracle of the tests, notebooks and benchmarks.

If x_0 is a mixture of Gaussians sum_k w_k N(mu_k, C_k), then under any process x_t is the mixture
sum_k w_k N(alpha mu_k, alpha^2 C_k + sigma^2 I). With C_k = U diag(lambda) U^T every quantity is
an elementwise operation in the eigenbasis, at every t, without inverting a matrix. For one
Gaussian the probability flow is known too: each eigen-coordinate keeps its standard score,

    x_s = alpha_s mu + U sqrt((alpha_s^2 lambda + sigma_s^2) / (alpha_t^2 lambda + sigma_t^2)) U^T
          (x_t - alpha_t mu),

and for any mixture on the line each point keeps its quantile, P(x_s' < x_s) = P(x_t' < x_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.checks import UserError, whole_seeds
from score_sde.noise import generator_of
from score_sde.processes.expand import as_time
from score_sde.processes.sdes import SDE
from score_sde.scores import Rows, ScoreError, ScoreFn


def _work_dtype(x: Tensor) -> torch.dtype:
    """float64 wherever the device has it: an oracle must be exact even for float32 states."""
    return x.dtype if x.device.type == "mps" else torch.float64


def _matrix_of(A: Tensor | Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
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
        self.means = torch.as_tensor(means, dtype=torch.float64)
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if self.means.ndim < 2 or weights.shape != self.means.shape[:1]:
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
        self.covariances = self._full_covariances(torch.as_tensor(covariances, dtype=torch.float64))
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

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """n draws of x_0, shape (n, *shape), float64; the global generator unless seeded."""
        generator = None if seed is None else generator_of(*whole_seeds([seed]))
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        flat = torch.einsum("nde,ne->nd", self._axes[which], z * self._variances[which].sqrt())
        return self.means[which] + flat.reshape(n, *self.shape)

    def of_class(self, label: int) -> GaussianMixture:
        """The law of x_0 of one class: its components alone. ValueError for an unknown class."""
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

    def sample_tilted(self, label: int, scale: float, n: int, seed: int | None = None) -> Tensor:
        """n exact draws of the law p(x | c)^w p(x)^(1-w), w = scale >= 1; (n, *shape), float64.

        It is p(x | c) times (p(c | x) / p(c))^(w-1), so draws of p(x | c) are kept with
        probability p(c | x)^(w-1).
        """
        if not scale >= 1:
            raise UserError(f"the tilted law is drawn for a scale of at least 1 (got {scale}).")
        conditional, keep = self.of_class(label), torch.Generator()
        first = torch.seed() % 2**32 if seed is None else seed
        keep.manual_seed(first ^ 0x5DEECE66D)  # streams of their own: x and what becomes of it
        log_share = self.weights[self._of_classes(torch.tensor([label]))[0]].sum().log()
        kept: list[Tensor] = []
        turn = 0
        while sum(map(len, kept)) < n:
            x = conditional.sample(n, seed=first + turn)
            log_posterior = conditional.log_prob(x) + log_share - self.log_prob(x)
            u = torch.rand(n, generator=keep, dtype=torch.float64)
            kept.append(x[u.log() < (scale - 1) * log_posterior])
            turn += 1
        return torch.cat(kept)[:n]

    def _components_at(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, class_labels: Tensor | None = None
    ):
        """Offsets in the eigenbasis (B, K, D), variances (1|B, K, D), log-densities (B, K)."""
        dtype, device = _work_dtype(x), x.device

        def work(value: Tensor) -> Tensor:
            return value.to(dtype).to(device)  # in this order: not every device has float64

        alpha, sigma = work(alpha).reshape(-1, 1, 1), work(sigma).reshape(-1, 1, 1)
        axes = work(self._axes)
        rotated = torch.einsum("bd,kde->bke", x.flatten(1).to(dtype), axes)
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
        return torch.einsum("bke,kde->bd", pull, axes).reshape(x.shape).to(x.dtype)

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
        if sde is None or t is None:
            alpha, sigma = torch.tensor(1.0), torch.tensor(0.0)
        else:
            t = as_time(t).to(_work_dtype(x))
            alpha, sigma = sde.alpha(t), sde.sigma(t)
        components = self._components_at(x, alpha, sigma, class_labels)
        return torch.logsumexp(components[2], -1).to(x.dtype)

    def flow(self, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The solution at time s of the probability-flow ODE that is at x at time t; like x.

        On the line every point keeps its quantile, found by bisection; x is (B, 1). ValueError for
        a mixture in more dimensions, whose flow is not known (that of a `Gaussian` is).
        """
        if self.dim != 1:
            raise UserError(f"the flow of a mixture is known on the line only; D is {self.dim}.")
        s, t = (as_time(u).to(_work_dtype(x)) for u in (s, t))

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
        return ((low + high) / 2).to(x.dtype)

    def measured(
        self, A: Tensor | Callable[[Tensor], Tensor], noise: Tensor | float, y: Tensor
    ) -> GaussianMixture:
        """The law of x_0 given y = A x_0 + n, n ~ N(0, S): a mixture of as many components.

        Each is conditioned as a Gaussian is, and weighed by how well it foretold y,

            w_k' ~ w_k N(y; A mu_k, S_k),  mu_k' = mu_k + G_k (y - A mu_k),  C_k' = C_k - G_k A C_k,
            S_k = A C_k A' + S,  G_k = C_k A' S_k^{-1}.

        A: a matrix (m, D), or a linear function of states (B, *shape). noise: the standard
        deviation, a number or one for each of the m entries, or the covariance S (m, m). y: m
        entries. Raises ValueError where these do not fit, and for noise that is not positive.
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k' (K,), not normalised, mu_k' (K, D) and C_k' (K, D, D) of `measured`."""
        matrix = _matrix_of(A, self.shape)
        y = torch.as_tensor(y, dtype=torch.float64).flatten()
        S = _noise_covariance(noise, len(matrix))
        if len(y) != len(matrix):
            raise UserError(f"A gives {len(matrix)} numbers of a state; y has {len(y)}.")
        CA = self.covariances @ matrix.T
        root = torch.linalg.cholesky(matrix @ CA + S)
        off = y - self.means.flatten(1) @ matrix.T
        pull = torch.cholesky_solve(off[..., None], root)[..., 0]
        fit = -0.5 * (off * pull).sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weights = self.weights.log() + fit - 0.5 * len(y) * math.log(2 * math.pi)
        means = self.means.flatten(1) + torch.einsum("kdm,km->kd", CA, pull)
        return log_weights, means, self.covariances - CA @ torch.cholesky_solve(CA.mT, root)

    def score(self, sde: SDE) -> ExactScore:
        """The exact score under ``sde``: a callable (x, t) like a trained model."""
        return ExactScore(self, sde)

    def denoiser(self, sde: SDE) -> ScoreFn:
        """E[x_0 | x_t = x] as a callable (x, t)."""
        return self.score(sde).denoise


@dataclass(frozen=True)
class ExactScore:
    """score(x, t) = grad log p_t(x) of a mixture under a process; x (B, *shape), t () or (B,).

    class_labels: (B,) or (), of a mixture with labels, for the score of p_t(x | class).
    """

    data: GaussianMixture
    sde: SDE
    class_labels: Tensor | None = None

    def bind(self, class_labels: Tensor | None = None) -> ExactScore:
        """The score told the classes (B,), one for all (), or none. ValueError for unknown ones."""
        if class_labels is not None:
            class_labels = torch.as_tensor(class_labels, dtype=torch.int64)
            self.data._of_classes(class_labels.reshape(-1))
        return ExactScore(self.data, self.sde, class_labels)

    def take(self, rows: Rows) -> ExactScore:
        """The score of some samples, see `scores.take`."""
        if self.class_labels is None or self.class_labels.ndim == 0:
            return self
        return ExactScore(self.data, self.sde, self.class_labels[rows])

    def _classes(self, x: Tensor) -> Tensor | None:
        if self.class_labels is None:
            return None
        if self.class_labels.ndim and len(self.class_labels) != len(x):
            raise ScoreError(
                f"{len(self.class_labels)} rows of class_labels do not fit {len(x)} samples; bind "
                "one for each."
            )
        return self.class_labels.expand(len(x))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[1:] != self.data.shape:
            raise UserError(
                f"states must have shape (B, *{self.data.shape}); got {tuple(x.shape)}."
            )
        t = as_time(t).to(_work_dtype(x))
        return self.data._score_at(x, self.sde.alpha(t), self.sde.sigma(t), self._classes(x))

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], like x."""
        return self.sde.denoise(x, t, self(x, t))

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), whose gradient this is, in nats, (B,)."""
        return self.data.log_prob(x, self.sde, t, self._classes(x))


class Gaussian(GaussianMixture):
    """N(mean, covariance) on states of any shape, with its exact probability flow.

    mean: (*shape). covariance: a number (isotropic variance), (*shape) (diagonal) or (D, D).
    """

    def __init__(self, mean: Tensor | Sequence[float], covariance: Tensor | Sequence | float):
        mean = torch.as_tensor(mean, dtype=torch.float64)
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
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
        s, t = (as_time(u).to(_work_dtype(x)) for u in (s, t))
        offset, variance, _, axes = self._components_at(x, sde.alpha(t), sde.sigma(t))
        zero = torch.zeros_like(x)
        _, new_variance, _, _ = self._components_at(zero, sde.alpha(s), sde.sigma(s))
        moved = torch.einsum("bke,kde->bd", offset * (new_variance / variance).sqrt(), axes)
        mean = self.means.to(moved)
        alpha = sde.alpha(s).to(moved).reshape(-1, *[1] * (x.ndim - 1))
        return (alpha * mean + moved.reshape(x.shape)).to(x.dtype)
