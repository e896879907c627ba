"""Measurements: exact posteriors of mixtures, and what every operator must be."""

import math

import pytest
import torch

import score_sde.restoration as ops
from score_sde import Gaussian, GaussianMixture

F64 = torch.float64
SHAPE = (3, 8, 8)


def test_measured_is_bayes_rule_on_a_grid():
    data = GaussianMixture([0.3, 0.7], [[-1.0, 0.2], [0.8, -0.5]], [0.2, 0.1])
    A, y, noise = torch.tensor([[1.0, 0.5]]), torch.tensor([0.3]), 0.4
    line = torch.linspace(-4, 4, 401, dtype=F64)
    x = torch.cartesian_prod(line, line)
    joint = data.log_prob(x) - 0.5 * ((y - x @ A[0].double()) / noise) ** 2
    joint = joint - math.log(noise * math.sqrt(2 * math.pi))
    evidence = (joint.logsumexp(0) + 2 * (line[1] - line[0]).log()).item()
    assert data.log_evidence(A, noise, y) == pytest.approx(evidence, abs=1e-6)
    post = data.measured(A, noise, y)
    torch.testing.assert_close(post.log_prob(x), joint - evidence, atol=1e-5, rtol=1e-5)


def test_measured_of_a_gaussian_takes_operators_and_covariances():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(12, 12, generator=g, dtype=F64)
    data = Gaussian(torch.zeros(3, 2, 2), q @ q.T / 12)
    S = torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64))
    y = torch.randn(1, 2, 2, generator=g, dtype=F64)
    post = data.measured(ops.Grey(), S, y)
    A = ops.Grey().matrix((3, 2, 2))
    precision = torch.linalg.inv(q @ q.T / 12) + A.T @ torch.linalg.inv(S) @ A
    torch.testing.assert_close(post.covariance(), torch.linalg.inv(precision))
    mean = post.covariance() @ A.T @ torch.linalg.solve(S, y.flatten())
    torch.testing.assert_close(post.mean().flatten(), mean)
    with pytest.raises(ValueError, match="positive"):
        data.measured(A, 0.0, y)
    with pytest.raises(ValueError, match="y has 3"):
        data.measured(A, 0.1, y.flatten()[:3])


MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(3)) < 0.4
OPERATORS = {
    "mask": ops.Mask(MASK),
    "grey": ops.Grey(),
    "pool": ops.Pool(4),
    "downsample": ops.Downsample(2),
    "blur": ops.Blur(ops.gaussian_kernel(0.8)),
    "blur_zeros": ops.Blur(ops.gaussian_kernel(0.8), "zeros"),
    "blur_reflect": ops.Blur(torch.tensor([[0.0, 0.5, 0.1]]), "reflect"),
    "fourier": ops.Fourier(MASK),
    "radon": ops.Radon([0, 45, 90]),
    "matrix": ops.Matrix(torch.randn(5, 192, generator=torch.Generator().manual_seed(1))),
    "linear": ops.Linear(lambda x: x.cumsum(-1)[:, :2]),
    "compose": ops.Compose(ops.Blur(ops.gaussian_kernel(1.0)), ops.Pool(2), ops.Grey()),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_matrix_gram_and_pseudo_inverse(name):
    A, g = OPERATORS[name], torch.Generator().manual_seed(2)
    x = torch.randn(2, *SHAPE, generator=g, dtype=F64)
    y = A(x)
    u = torch.randn(y.shape, generator=g, dtype=F64)
    assert tuple(y.shape[1:]) == A.measured(SHAPE)
    there, back = (y * u).flatten(1).sum(1), (x * A.adjoint(u, SHAPE)).flatten(1).sum(1)
    torch.testing.assert_close(there, back)
    M = A.matrix(SHAPE)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ M.T)
    gram = A.gram(SHAPE)
    if gram is not None:
        torch.testing.assert_close(M @ M.T, gram * torch.eye(len(M), dtype=F64))
    torch.testing.assert_close(A(A.pinv(y, SHAPE)), y, atol=2e-4, rtol=0)


def test_blur_is_the_convolution_and_padding_says_what_is_outside():
    kernel = torch.zeros(3, 3)
    kernel[1, 2] = 1.0  # what is one pixel to the left comes here
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    for padding, first in (("periodic", 7.0), ("zeros", 0.0), ("reflect", 1.0)):
        out = ops.Blur(kernel, padding)(x)
        torch.testing.assert_close(out[0, 0, 0], torch.tensor([first, *range(7)]))


def test_nonlinear_operators_have_derivatives():
    A = ops.Nonlinear(lambda x: torch.fft.fft2(x).abs())
    g = torch.Generator().manual_seed(4)
    x, v = torch.randn(2, 1, 1, 6, 6, generator=g, dtype=F64)
    u = torch.randn(1, 1, 6, 6, generator=g, dtype=F64)
    step = 1e-6
    torch.testing.assert_close(A.jvp(x, v), (A(x + step * v) - A(x - step * v)) / (2 * step))
    torch.testing.assert_close((A.jvp(x, v) * u).sum(), (A.vjp(x, u) * v).sum())


def test_masks_say_what_is_wrong():
    with pytest.raises(ValueError, match="mask > 0.5"):
        ops.Mask(torch.tensor([0.0, 0.3]))
    with pytest.raises(ValueError, match="nothing is seen"):
        ops.Mask(torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="like its last axes"):
        ops.Mask(torch.ones(4, 4, dtype=torch.bool))(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="do not divide"):
        ops.Pool(3)(torch.zeros(1, 1, 8, 8))
