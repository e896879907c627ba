"""What cannot be restored is said in a sentence, before any work."""

import math

import pytest
import torch

from score_sde import VPSDE, Gaussian, restore
from score_sde.restoration import (
    Blur,
    Covariance,
    Downsample,
    Grey,
    Mask,
    Matrix,
    Residuals,
    gaussian_kernel,
    posterior_score,
)

F64 = torch.float64


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


Q = normal(6, 6, seed=0)
DATA = Gaussian(normal(6, seed=1), Q @ Q.T / 6 + 0.01 * torch.eye(6))
A, Y = normal(3, 6, seed=2), normal(3, seed=3)
FLAT = Gaussian(torch.zeros(6), torch.zeros(6))


def bad(**changes):
    given = dict(y=Y, operator=Matrix(A), noise_std=0.2, gaussian=DATA, n=4, nfe=10) | changes
    restore(VPSDE(), DATA.score(VPSDE()), given.pop("y"), given.pop("operator"), **given)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(y=Y[:2]), "the operator measures"),
        (dict(y=(Y * 100).int()), "floating-point"),
        (dict(y=Y / 0), "not finite"),
        (dict(noise_std=0.0), "must be positive"),
        (dict(noise_std=float("nan")), "must be finite"),
        (dict(noise_std=Covariance(-torch.eye(3))), "positive eigenvalues"),
        (dict(operator=lambda x: (x @ A.T.to(x)) ** 2), "Nonlinear"),
        (dict(operator=lambda x: x @ A.T.to(x) + 1), "affine"),
        (dict(gaussian=None, shape=(6,)), "reference_gaussian"),
        (dict(method="particle"), "Did you mean 'particles'"),
        (dict(method="dps", strength=2), "option of dps 'strength' is unknown"),
        (dict(seeds=[1, 2]), "4 draws need 4 seeds"),
        (dict(y=1e4 * Y), "model's range"),
        (dict(operator=Mask(torch.ones(5, dtype=torch.bool))), "last axes"),
        (dict(operator=Downsample(2)), "takes pictures"),
        (dict(y=Y.to_sparse()), "dense tensor"),
        (dict(y=Y.to("meta")), "with values"),
        (dict(noise_std=torch.full((2, 3), 0.1)), "one for each of all 3 of y"),
        (dict(y=torch.stack([Y, Y]), noise_std=torch.full((3, 3), 0.1)), "all 6 of y"),
        (dict(noise_std=torch.zeros(0)), "0 entries"),
        (dict(noise_std=torch.tensor(1 + 1j)), "real numbers"),
        (dict(noise_std=torch.ones(3, dtype=torch.bool)), "real numbers"),
        (dict(noise_std=1e9), "a million times"),
        (dict(gaussian=FLAT, y=0 * Y), "do not vary"),
        (dict(gaussian=Gaussian(torch.zeros(6), 1e-12), y=1e-7 * Y), "nothing beside the noise"),
        (dict(shape=(1, 6)), "not that of the Gaussian"),
        (dict(method="hybrid", guard=(4.0, 0.02)), "least, most"),
    ],
)
def test_what_cannot_be_restored_is_said_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        bad(**changes)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Residuals(torch.tensor([0.1]), torch.ones(1, 6)), "two levels"),
        (lambda: Residuals(torch.tensor([1.0, 0.1]), torch.ones(2, 6)), "rising"),
        (lambda: Residuals(torch.tensor([0.1, 1.0]), -torch.ones(2, 6)), "positive shares"),
        (lambda: Residuals(torch.tensor([0.1, 1.0]), torch.ones(2, 6) * math.nan), "positive"),
        (lambda: bad(residuals=Residuals(torch.tensor([0.1, 1.0]), torch.ones(2, 5))), "have 6"),
        (lambda: Blur("x"), "must be numbers"),
        (lambda: Grey("abc"), "must be numbers"),
        (lambda: gaussian_kernel(1e9), "wider than any"),
    ],
)
def test_parts_that_are_none_are_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_posterior_scores_say_what_they_cannot_take():
    given = dict(noise_std=0.2, gaussian=DATA)
    post = posterior_score(VPSDE(), DATA.score(VPSDE()), Y, Matrix(A), **given)
    assert post(torch.zeros(0, 6), torch.tensor(0.5)).shape == (0, 6)
    for call, message in (
        (lambda: post.residual(torch.zeros(6)), "states are"),
        (lambda: post.begin([1], 3, dtype=torch.int32), "floating point"),
        (lambda: posterior_score(VPSDE(), None, Y, Matrix(A), **given), "must be a function"),
        (lambda: posterior_score(VPSDE(), print, Y, Matrix(A), device="xx", **given), "a device"),
        (lambda: posterior_score(VPSDE(), print, Y, Matrix(A), residuals=3, **given), "Residuals"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_noise_that_is_said_to_be_far_larger_than_it_is_is_doubted():
    data, sde = Gaussian(torch.zeros(30), 1.0), VPSDE()
    common = dict(gaussian=data, n=2, nfe=6, seeds=[1, 2], return_info=True)
    x0 = data.sample(1, seed=0)
    seen = Matrix(torch.eye(30))
    for noise, doubted in ((0.1, False), (50.0, True)):
        found = restore(sde, data.score(sde), seen(x0)[0], seen, noise_std=noise, **common)
        assert ("is noise_std right" in found.said) == doubted
