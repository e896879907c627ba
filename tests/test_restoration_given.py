"""Bad input of restoration is a sentence with the fix: operators, scores, settings, noise."""

import math

import pytest
import torch

from score_sde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowSDE,
    Gaussian,
    GaussianMixture,
    SubVPSDE,
    restore,
)
from score_sde.restoration import (
    Blur,
    Compose,
    Covariance,
    Linear,
    Matrix,
    Nonlinear,
    Poisson,
    Pool,
    Radon,
    gaussian_kernel,
    posterior_score,
    reference_gaussian,
)

F64 = torch.float64
SDE, G = VPSDE(), torch.Generator().manual_seed(0)
Q = torch.randn(6, 6, generator=G, dtype=F64)
DATA = Gaussian(torch.zeros(6), Q @ Q.T / 6 + 0.01 * torch.eye(6))
A, Y = torch.randn(3, 6, generator=G, dtype=F64), torch.randn(3, generator=G, dtype=F64)
SCORE = DATA.score(SDE)


def given(**changes):
    use = dict(score=SCORE, y=Y, operator=Matrix(A), noise_std=0.2, gaussian=DATA, n=4, nfe=10)
    use |= changes
    score, y, operator = use.pop("score"), use.pop("y"), use.pop("operator")
    return restore(SDE, score, y, operator, return_info=True, **use)


def adjoint(factor):
    return Linear(lambda x: x @ A.T.to(x), lambda u: factor(u @ A.to(u)))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(noise_std=1e-9), "far below what the process resolves.*Give noise_std="),
        (dict(noise_std=Covariance(torch.eye(3) * math.nan)), "finite numbers"),
        (dict(noise_std=Covariance(torch.eye(3).int())), "floating point"),
        (dict(noise_std=Covariance(torch.eye(3).tril() + torch.ones(3, 3).tril())), "symmetric"),
        (dict(y=Y.to(torch.complex64)), "view_as_real"),
        (dict(y=Y[None][:0]), "y is empty"),
        (dict(operator=lambda x: x @ torch.ones(7, 2)), "the operator fails on one state"),
        (dict(operator=lambda x: x.sum()), "must give .B, .measured."),
        (dict(operator=lambda x: math.nan * x[:, :3]), "not finite"),
        (dict(operator=adjoint(lambda v: 2 * v)), "the adjoint is none"),
        (dict(operator=adjoint(lambda v: v[:, :3])), "must give a state"),
        (dict(score=lambda x, t: SCORE(x, t).detach(), method="hybrid"), "no gradient"),
        (dict(score=lambda x, t: SCORE(x, t) * math.nan, method="hybrid"), "score is not finite"),
        (dict(score=lambda x, t: SCORE(x, t)[:, :2], method="particles"), "as many numbers"),
        (dict(method="particles", temper=2.0), "temper must be at most 1"),
        (dict(method="diffpir", fresh="a"), "fresh must be a number"),
        (dict(method="hybrid", guard=3), "guard must be a list"),
        (dict(method="hybrid", levels=[1.0, 2.0]), "levels must fall"),
        (dict(method="dps", zeta=math.nan), "zeta must be finite"),
        (dict(method="repaint", redos=0), "redos must be at least 1"),
        (dict(method="mala", stay=0), "stay must be at least 1"),
        (dict(method="sdedit", strength=2), "strength must be at most 1"),
        (dict(method="mmps", iterations=0), "iterations must be at least 1"),
        (dict(n=10**12), "so many draws would take"),
        (dict(operator=adjoint(lambda v: v @ A.to(v))), "the adjoint fails on one measurement"),
        (dict(operator=lambda x: x.detach()[:, :3]), "cannot be differentiated"),
        (dict(operator=Nonlinear(lambda x: (x - x.mean(0))[:, :3])), "if there is another"),
        (dict(operator=Nonlinear(lambda x: x[:, :3].round())), "derivative of the operator is 0"),
        (dict(operator=Nonlinear(lambda x: (x[:, :3] > 0).float())), "cannot be differentiated"),
        (dict(operator=lambda x: x @ A.T.float()), "fails on those of float64.*W.to"),
        (dict(operator=adjoint(lambda v: v * math.nan)), "the adjoint is none"),
        (dict(score=lambda x, t: SCORE(x, t).numpy(), method="particles"), "must give a tensor"),
        (dict(dtype=torch.int32), "states are of floating point"),
        (dict(y=Y - 9, noise_std=Poisson(5.0, offset=1.0)), "counts are gain"),
    ],
)  # fmt: skip
def test_it_is_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        given(**changes)


@pytest.mark.parametrize(
    "x, t, message",
    [
        (torch.zeros(2, 6), math.nan, "t must be one time or 2"),
        (torch.zeros(2, 6), 0.0, "t must be one time or 2"),
        (torch.zeros(2, 6), torch.ones(3), "t must be one time or 2"),
        (torch.zeros(2, 5), 0.5, r"states are \(6,\) each"),
    ],
)
def test_where_a_posterior_score_is_none(x, t, message):
    post = posterior_score(SDE, SCORE, Y, Matrix(A), noise_std=0.2, gaussian=DATA)
    with pytest.raises(ValueError, match=message):
        post(x, t)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Linear(lambda x: x, 3), "adjoint must be a function"),
        (lambda: Pool(0), "factor must be at least 1"),
        (lambda: Compose(), "operators, one or more"),
        (lambda: Compose(lambda x: x, Pool(2)), "Linear.fn."),
        (lambda: gaussian_kernel(0.0), "std must be greater than 0"),
        (lambda: gaussian_kernel(1.0, 4), "must be odd"),
        (lambda: Covariance(None), "must be of type Tensor"),
        (lambda: Poisson(math.nan), "gain must be finite"),
        (lambda: Poisson(9.0, floor=0.0), "floor must be greater than 0"),
        (
            lambda: reference_gaussian(torch.full((9, 2), math.nan)),
            "18 of 18 values are",
        ),
        (lambda: reference_gaussian([1.0, 2.0]), "must be of type Tensor"),
        (lambda: Pool(2.5), "factor must be a whole number"),
        (lambda: Radon([]), "at least one angle"),
        (lambda: Blur(torch.ones(31, 31), "reflect")(torch.ones(1, 1, 8, 8)), "at most 15 x 15"),
    ],
)
def test_operators_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_posterior_score_asks_for_noise_that_can_be_told_from_none():
    with pytest.raises(ValueError, match="far below"):
        posterior_score(SDE, SCORE, Y, Matrix(A), noise_std=1e-9, gaussian=DATA)


def test_a_covariance_that_is_none_is_no_gaussian():
    with pytest.raises(ValueError, match="must be symmetric"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))


def test_a_measurement_of_other_data_is_said_to_be_one():
    assert given(method="hybrid").said == ""
    said = given(y=Y + 12, method="hybrid").said
    assert "standard deviations off what the run's data give" in said


@pytest.mark.parametrize("method", ["particles", "hybrid"])
def test_nothing_measured_is_the_prior(method):
    n = 4000
    found = given(operator=Matrix(0 * A), method=method, n=n, nfe=6, seeds=range(n), dtype=F64)
    torch.testing.assert_close(torch.cov(found.x.T), DATA.covariance(), atol=0.12, rtol=0.05)
    if found.ess is not None:
        assert float(found.ess) == pytest.approx(1, abs=1e-12)


def test_mala_has_the_posterior_of_gaussian_data():
    n, exact = 400, DATA.measured(A, 0.2, Y)
    found = given(method="mala", n=n, nfe=400, seeds=range(n), dtype=F64)
    assert found.nfe <= 400
    off = (found.x.mean(0) - exact.mean()) / exact.covariance().diagonal().sqrt()
    assert float(off.abs().max()) < 5 / math.sqrt(n)
    torch.testing.assert_close(torch.cov(found.x.T), exact.covariance(), atol=0.05, rtol=0.2)


def test_sdedit_keeps_the_guide_at_little_noise_and_forgets_it_at_much():
    common = dict(method="sdedit", n=100, nfe=20, seeds=range(100), noise_std=0.05)
    kept, gone = (float(given(strength=s, **common).residual) for s in (0.01, 1.0))
    assert kept < 0.1 * gone


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), FlowSDE(), CosineSDE()])
@pytest.mark.parametrize("method", ["particles", "hybrid", "tilted", "reference"])
def test_every_process_has_the_same_posterior(sde, method):
    """Of a little ring: finite, on what was measured, and near its mean."""
    data = GaussianMixture([0.2, 0.3, 0.5], [[1.2, 0.0], [-0.6, 1.0], [-0.6, -1.0]], 0.04)
    M, y, n = Matrix(torch.tensor([[1.0, 0.2]])), torch.tensor([-0.5]), 400
    x = restore(sde, data.score(sde), y, M, noise_std=0.2, n=n, nfe=40, seeds=range(n), dtype=F64,
                gaussian=Gaussian(data.mean(), data.covariance()), method=method)  # fmt: skip
    exact = data.measured(M, 0.2, y)
    assert bool(torch.isfinite(x).all())
    off = (x.mean(0) - exact.mean()) / exact.covariance().diagonal().sqrt()
    assert float(off.abs().max()) < 0.5
    seen = M.M[0].double()
    spread = float((seen @ exact.covariance() @ seen).sqrt())
    assert float((x @ seen).std()) == pytest.approx(spread, abs=0.04)


def test_a_quantised_measurement_is_met_where_rounding_passes_derivatives_on():
    """Every draw is in the cell of width 0.5 that y names, or near it, as the noise says."""

    def rounded(x):
        return x + ((2 * x).round() / 2 - x).detach()

    x0 = DATA.sample(1, seed=1)[0]
    for method in ("particles", "hybrid"):
        found = given(operator=Nonlinear(rounded), y=rounded(x0), noise_std=0.15, method=method,
                      n=64, nfe=40)  # fmt: skip
        assert float((found.x - x0).abs().mean()) < 0.25
        assert float(found.residual) < 3
