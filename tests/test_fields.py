"""The laboratory of score fields, held to data of closed form."""

import math

import pytest
import torch
from scipy.special import ive

from score_sde import VPSDE, Gaussian, GaussianMixture
from score_sde.checks import UserError
from score_sde.diagnosis import fields

SDE, D = VPSDE(), 64
F64 = torch.float64


def turned(seed=0):
    """A rotation of 64 dimensions."""
    noise = torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.linalg.qr(noise)[0]


def flat(d):
    """A Gaussian on d of 64 dimensions, of different spreads, somewhere: its score, and points."""
    axes, spread = turned()[:, :d], torch.linspace(0.5, 1.5, d, dtype=F64)
    cov = axes @ torch.diag(spread**2) @ axes.T
    data = Gaussian(torch.linspace(-1, 1, D, dtype=F64), cov)
    return data.score(SDE), data.sample(3, seed=1)


class Sphere:
    """The uniform law on a sphere of radius 1.5 and dimension d in 64-D, and its exact score.

    With n = d + 1 and k = alpha R |x| / sigma^2 the density of x_t within the n dimensions is
    exp(-|x|^2 / 2 sigma^2) k^(1 - n/2) I_(n/2 - 1)(k) but for factors.
    """

    def __init__(self, d, radius=1.5):
        self.axes, self.n, self.radius = turned(d)[:, : d + 1], d + 1, radius

    def sample(self, count):
        z = torch.randn(count, self.n, generator=torch.Generator().manual_seed(2), dtype=F64)
        return self.radius * z / z.norm(dim=1, keepdim=True) @ self.axes.T

    def __call__(self, x, t):
        alpha, sigma = SDE.alpha(t), SDE.sigma(t)
        inside = x @ self.axes
        r = inside.norm(dim=1, keepdim=True)
        ratio = Ratio.apply(alpha * self.radius * r / sigma**2, self.n)
        return (alpha * self.radius * ratio * inside / r) @ self.axes.T / sigma**2 - x / sigma**2


class Ratio(torch.autograd.Function):
    """A(k) = I_(n/2)(k) / I_(n/2 - 1)(k), and A' = 1 - A^2 - (n - 1) A / k."""

    @staticmethod
    def forward(ctx, k, n):
        found = torch.as_tensor(ive(n / 2, k.numpy()) / ive(n / 2 - 1, k.numpy()))
        ctx.save_for_backward(k, found)
        ctx.n = n
        return found

    @staticmethod
    def backward(ctx, grad):
        k, A = ctx.saved_tensors
        return grad * (1 - A**2 - (ctx.n - 1) * A / k), None

    @staticmethod
    def vmap(info, in_dims, k, n):
        raise NotImplementedError  # products are then taken one by one


@pytest.mark.parametrize("d", [2, 8, 32])
def test_the_dimension_of_a_flat_and_of_a_curved_manifold(d):
    t = torch.tensor(2e-3, dtype=F64)
    sphere = Sphere(d)
    for score, x0 in (flat(d), (sphere, sphere.sample(3))):
        found = fields.dimension_by_spectrum(SDE, score, x0, t)
        assert found.spectrum.shape == (3, D)
        assert (found.value - d).abs().max() <= 0.1 * d
        slope = fields.dimension_by_slope(SDE, score, x0, t)
        assert float((slope - d).abs().max()) < 0.1 * d


def mixture(dim=6):
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(3, dim, generator=generator, dtype=F64)
    root = torch.randn(3, dim, dim, generator=generator, dtype=F64) / dim**0.5
    return GaussianMixture([0.5, 0.3, 0.2], means, root @ root.mT + 0.05 * torch.eye(dim))


@pytest.mark.parametrize("t", [0.01, 0.2, 0.8])
def test_an_exact_score_has_no_curl_and_obeys_fokker_planck(t):
    data = mixture()
    x = data.sample(5, seed=0)
    score = data.score(SDE)
    assert float(fields.curl(score, x, t).max()) < 1e-6
    assert float(fields.curl(score, x, t, probes=4).max()) < 1e-6
    assert float(fields.fokker_planck_residual(SDE, score, x, t).max()) < 1e-4


def test_a_field_that_turns_is_seen_turning():
    """s = A x has curl |A - A'| / (2 |A|), and no process has scores that do not change."""
    A = torch.tensor([[-1.0, 2.0], [-2.0, -1.0]], dtype=F64)
    x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))

    def score(x, t):
        return x @ A.T * (1 + 0 * t.reshape(-1, 1)) + 1e-3 * x * t.reshape(-1, 1)

    expected = (A - A.T).norm() / (2 * A.norm())
    assert float((fields.curl(score, x, 0.0) - expected).abs().max()) < 1e-12
    estimate = fields.invariants(score, x[:1].expand(400, 2), 0.0, probes=8).curl()
    assert estimate == pytest.approx(float(expected), rel=0.05)
    assert float(fields.fokker_planck_residual(SDE, score, x, 0.3).mean()) > 1


def test_invariants_are_estimated_without_bias():
    """In 80 dimensions, of x A with a part that turns."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(80, 80, generator=generator, dtype=F64)
    x = torch.zeros(2000, 80, dtype=F64)
    found = fields.invariants(lambda x, t: x @ A.T, x, 0.5, probes=4)
    odd = (A - A.T).square().sum() / 4
    for mine, exact in zip(found, (A.trace(), odd, A.square().sum()), strict=True):
        assert float((mine.mean() - exact).abs()) < 5 * float(mine.std()) / 2000**0.5
    assert found.curl() == pytest.approx(float((odd / A.square().sum()).sqrt()), rel=0.02)


def test_the_fokker_planck_residual_by_probes_is_unbiased():
    """0 for the score of a mixture in 20 dimensions; for a score too large it is not."""
    data = mixture(20)
    score, x = data.score(SDE), data.sample(300, seed=0)
    few = fields.fokker_planck_residual(SDE, score, x, 0.3, probes=4)
    assert abs(float(few.mean())) < 5 * float(few.std()) / 300**0.5 < 0.2
    double = fields.fokker_planck_residual(SDE, lambda x, t: 2 * score(x, t), x, 0.3, probes=4)
    assert float(double.mean()) > 0.5


@pytest.mark.parametrize("t", [0.05, 0.5])
def test_the_posterior_covariance_and_its_rank_are_those_of_the_measured_law(t):
    """x_t is a measurement of x_0: A = alpha I, noise sigma."""
    data = mixture()
    x = data.sample(2, seed=5)
    alpha, sigma = SDE.alpha(t), SDE.sigma(t)
    exact = torch.stack([
        data.measured(alpha * torch.eye(6, dtype=F64), float(sigma), row).covariance() for row in x
    ])  # fmt: skip
    found = fields.posterior_covariance(SDE, data.score(SDE), x, t)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-6
    rank = exact.diagonal(dim1=1, dim2=2).sum(1) ** 2 / exact.square().sum((1, 2))
    assert torch.allclose(fields.effective_rank(SDE, data.score(SDE), x, t), rank, rtol=1e-6)


def test_probes_estimate_what_products_give():
    score, x0 = flat(8)
    t = 0.1
    trace = fields.divergence(score, x0, t)
    rank = fields.effective_rank(SDE, score, x0, t)
    by_probes = fields.divergence(score, x0, t, probes=400)
    assert float(((by_probes - trace) / trace).abs().max()) < 0.02
    assert (
        float((fields.effective_rank(SDE, score, x0, t, probes=400) / rank - 1).abs().max()) < 0.1
    )
    variances = torch.linspace(0.5, 1.5, 8, dtype=F64) ** 2
    alpha2, sigma2 = float(SDE.alpha(t)) ** 2, float(SDE.sigma(t)) ** 2
    exact = -(1 / (alpha2 * variances + sigma2)).sum() - (D - 8) / sigma2
    assert math.isclose(float(trace[0]), float(exact), rel_tol=1e-6)


def test_what_cannot_be_asked_is_said():
    score, x0 = flat(2)
    with pytest.raises(UserError, match="at least the 64"):
        fields.dimension_by_spectrum(SDE, score, x0, 0.01, samples=10)
    with pytest.raises(UserError, match="one time"):
        fields.dimension_by_slope(SDE, score, x0, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(UserError, match="differentiated"):
        fields.jacobian(lambda x, t: (-x).detach(), x0, 0.1)
