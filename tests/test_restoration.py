"""Draws of a posterior: exact for Gaussian data, the same in any batch."""

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
    sample,
)
from score_sde.restoration import (
    Covariance,
    Mask,
    Matrix,
    Nonlinear,
    Poisson,
    posterior_score,
    reference_gaussian,
)
from score_sde.restoration.denoiser import Denoiser
from score_sde.restoration.kernel import SampleDraws, seen_noise
from score_sde.restoration.means import MEANS, mean_at
from score_sde.restoration.measurement import make_measurement
from score_sde.restoration.particles import Draws, Particles, systematic, tempered
from score_sde.restoration.restore import METHODS
from score_sde.restoration.system import System

F64 = torch.float64


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


Q = normal(6, 6, seed=0)
DATA = Gaussian(normal(6, seed=1), Q @ Q.T / 6 + 0.01 * torch.eye(6))
A, Y = normal(3, 6, seed=2), normal(3, seed=3)
RING = GaussianMixture(
    [0.2, 0.3, 0.5], [[1.2, 0.0], [-0.6, 1.0], [-0.6, -1.0]], torch.tensor([0.02, 0.05, 0.03])
)
RING_GAUSSIAN = Gaussian(RING.mean(), RING.covariance())


@pytest.mark.parametrize("method", ["particles", "hybrid", "tilted", "pcg", "reference"])
def test_gaussian_data_are_exact_in_three_steps(method):
    sde, exact = VPSDE(), DATA.measured(A, 0.2, Y)
    n, nfe = 4000, 3 if method in ("particles", "reference") else 6
    result = restore(sde, DATA.score(sde), Y, Matrix(A), noise_std=0.2, gaussian=DATA, n=n, nfe=nfe,
                     seeds=range(n), method=method, return_info=True, dtype=F64)  # fmt: skip
    spread = exact.covariance()
    off = (result.x.mean(0) - exact.mean()) / spread.diagonal().sqrt()
    assert float(off.abs().max()) < 4 / math.sqrt(n)
    torch.testing.assert_close(torch.cov(result.x.T), spread, atol=0.06, rtol=0.05)
    assert result.nfe + result.products <= nfe
    if method == "particles":
        evidence = DATA.log_evidence(A, 0.2, Y)
        assert float(result.log_evidence) == pytest.approx(evidence, abs=1e-6)
        assert float(result.ess) == pytest.approx(1, abs=1e-9) and float(result.temper) == 1


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), FlowSDE(), CosineSDE()])
def test_weights_are_equal_for_gaussian_data_under_every_process(sde):
    measurement = make_measurement(Matrix(A), Y, 0.2, (6,))
    system = System(DATA, measurement)
    draws = Draws([1], 0, system.lam, (50, 6, 3))
    cloud = Particles(system, Denoiser(sde, DATA.score(sde), (6,)), draws, 50)
    out = cloud.run([5.0, 1.0, 0.3, 0.05])
    assert float((out.log_w - out.log_w[0]).abs().max()) < 1e-9
    assert max(out.surprise) < 1e-12


def test_the_mixture_posterior_and_its_evidence():
    sde, M, y = VPSDE(), torch.tensor([[1.0, 0.2]]), torch.tensor([-0.5])
    exact = RING.measured(M, 0.2, y)
    result = restore(sde, RING.score(sde), y, Matrix(M), noise_std=0.2, gaussian=RING_GAUSSIAN,
                     n=1000, nfe=40, seeds=range(1000), return_info=True)  # fmt: skip
    assert result.method == "particles"
    found = exact.responsibilities(result.x).mean(0)
    torch.testing.assert_close(found, exact.weights, atol=0.04, rtol=0)
    assert float(result.log_evidence) == pytest.approx(RING.log_evidence(M, 0.2, y), abs=0.08)
    assert result.nfe <= 40


@pytest.mark.parametrize("method", [m for m in METHODS if m != "particles"])
def test_every_method_runs_is_finite_counted_and_depends_on_its_seeds_alone(method):
    sde, M, y = VPSDE(), torch.tensor([[1.0, 0.2]]), torch.tensor([-0.5])
    common = dict(noise_std=0.2, gaussian=RING_GAUSSIAN, nfe=20, method=method, dtype=F64)
    whole = restore(sde, RING.score(sde), y, Matrix(M), n=6, seeds=range(6), return_info=True,
                    **common)  # fmt: skip
    assert bool(torch.isfinite(whole.x).all())
    assert 1 < whole.nfe + whole.products <= 20
    part = restore(sde, RING.score(sde), y, Matrix(M), n=2, seeds=[4, 1], batch_size=1, **common)
    torch.testing.assert_close(part, whole.x[[4, 1]], atol=1e-9, rtol=1e-9)
    both = restore(sde, RING.score(sde), torch.stack([-y, y]), Matrix(M), n=2, seeds=[4, 1],
                   batch_size=3, **common)  # fmt: skip
    torch.testing.assert_close(both[1], part, atol=1e-9, rtol=1e-9)


def test_groups_of_particles_depend_on_their_seeds_and_measurement_alone():
    sde, M = VPSDE(), torch.tensor([[1.0, 0.2]])
    common = dict(noise_std=0.2, gaussian=RING_GAUSSIAN, nfe=20, method="particles", dtype=F64)
    y = torch.tensor([[-0.5], [0.9]])
    both = restore(sde, RING.score(sde), y, Matrix(M), n=30, seeds=range(30), group=15, **common)
    assert both.shape == (2, 30, 2)
    alone = restore(sde, RING.score(sde), y[1], Matrix(M), n=15, seeds=range(15, 30), batch_size=7,
                    **common)  # fmt: skip
    torch.testing.assert_close(both[1, 15:], alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowSDE(), EDMSDE()])
def test_posterior_score_of_gaussian_data_is_exact_and_samplers_take_it(sde):
    y = torch.stack([Y, -Y])
    post = posterior_score(sde, DATA.score(sde), y, Matrix(A), noise_std=0.2, gaussian=DATA,
                           method="reference")  # fmt: skip
    x, t = normal(2, 6, seed=5), torch.tensor([0.4, 0.9], dtype=F64)
    for i in range(2):
        exact = DATA.measured(A, 0.2, y[i]).score(sde)(x[i : i + 1], t[i])
        torch.testing.assert_close(post(x, t)[i : i + 1], exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(post.take(slice(1, 2))(x[1:], t[1]), post(x, t)[1:])
    seeds = [3, 4]
    whole = sample(sde, post, shape=(2, 6), method="dpmpp_2m", steps=8, seeds=seeds, dtype=F64)
    parts = sample(sde, post, shape=(2, 6), method="dpmpp_2m", steps=8, seeds=seeds, dtype=F64,
                   batch_size=1)  # fmt: skip
    torch.testing.assert_close(whole, parts, atol=1e-9, rtol=1e-9)


def test_samplers_begin_where_all_is_gaussian():
    sde, n = VPSDE(), 2000
    post = posterior_score(sde, DATA.score(sde), Y, Matrix(A), noise_std=0.2, gaussian=DATA)
    x_T, times = post.begin(range(n), 20, dtype=F64)
    alone, _ = post.begin([7], 20, dtype=F64)
    torch.testing.assert_close(alone[0], x_T[7])
    x, exact = sample(sde, post, x_T=x_T, grid=times, method="dpmpp_2m"), DATA.measured(A, 0.2, Y)
    off = (x.mean(0) - exact.mean()) / exact.covariance().diagonal().sqrt()
    assert float(off.abs().max()) < 5 / math.sqrt(n)
    torch.testing.assert_close(torch.cov(x.T), exact.covariance(), atol=0.05, rtol=0.1)


@pytest.mark.parametrize("method", ["tilted", "hybrid"])
def test_white_noise_on_all_of_a_state_is_exact_for_any_data(method):
    sde, y, t = VPSDE(), torch.tensor([0.4, -0.7]), torch.tensor(0.5)
    x = normal(20, 2, seed=6)
    whole = Matrix(1.3 * torch.linalg.qr(normal(2, 2, seed=7))[0])
    exact = RING.measured(whole.M, 0.8, y).score(sde)(x, t)
    common = dict(noise_std=0.8, gaussian=RING_GAUSSIAN, method=method)
    post = posterior_score(sde, RING.score(sde), y, whole, **common)
    torch.testing.assert_close(post(x, t), exact, atol=1e-8, rtol=1e-8)


def test_the_white_part_of_a_measurement_leaves_as_much_unknown_as_all_of_it():
    measurement = make_measurement(Matrix(A), Y, 0.2, (6,))
    dense, free = (System(DATA, measurement, dense=d).white(0.7) for d in (True, False))
    assert free == pytest.approx(dense, rel=1e-4) and 0 < dense.missed < 1
    unknown = torch.linalg.inv(DATA.covariance()) + torch.eye(6) / 0.7**2
    white = torch.linalg.inv(unknown + dense.precision * torch.eye(6))
    left = torch.linalg.inv(unknown + A.T @ A / 0.2**2)
    assert float(white.trace()) == pytest.approx(float(left.trace()), rel=1e-6)
    missed = (left - white).norm() / (torch.linalg.inv(unknown) - left).norm()
    assert dense.missed == pytest.approx(float(missed), rel=1e-6)
    whole = make_measurement(Matrix(0.3 * torch.eye(6)), torch.zeros(6), 0.2, (6,))
    precision, missed = System(DATA, whole).white(0.7)
    assert precision == pytest.approx((0.3 / 0.2) ** 2, rel=1e-6) and missed < 1e-9


def test_the_guard_takes_over_where_the_jacobian_is_no_covariance():
    sde = VPSDE()

    class Wrong:
        def __call__(self, x, t):
            return DATA.score(sde)(x, t) + 50 * torch.sin(40 * x)

    common = dict(noise_std=0.2, gaussian=DATA, n=8, nfe=20, seeds=range(8), dtype=F64)
    x = restore(sde, Wrong(), Y, Matrix(A), method="hybrid", **common)
    assert float(x.abs().max()) < 100


@pytest.mark.parametrize("nu", [0.1, 0.3])
def test_what_is_seen_is_as_far_from_its_measurement_as_its_noise_says(nu):
    """Half of the pixels hardly vary, and the reference does not know which.

    All the noise that it has would leave 1.11 of the truth's distance at 0.1, and the share of it
    that V has along y - A D 0.97 at 0.3.
    """
    sde, noise = VPSDE(), 0.15
    known = torch.arange(64) % 8 < 4
    data = Gaussian(torch.zeros(1, 8, 8), torch.where(known, 1e-3, 1.0).reshape(1, 8, 8))
    wide = Gaussian(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 1.5))
    operator = Mask(torch.arange(8)[:, None].expand(8, 8) < 6)
    x0 = data.sample(400, seed=1)
    e = normal(400, 48, seed=2)
    y = operator(x0) + noise * e
    measured = make_measurement(operator, y, noise, (1, 8, 8))
    system = System(wide, measured)
    denoiser = Denoiser(sde, data.score(sde), (1, 8, 8))
    x = x0.flatten(1) + nu * normal(400, 64, seed=3)
    point, D_y = mean_at(MEANS["hybrid"], {}, system, denoiser, x, nu)
    drawn = D_y + seen_noise(point.level, point, D_y, SampleDraws(range(400), x, 64, 48))
    assert float(measured.misfit(drawn).mean()) == pytest.approx(float(e.square().mean()), rel=0.02)
    unseen = operator.adjoint(torch.ones(1, 48), (1, 8, 8)).flatten() == 0
    assert torch.equal(drawn[:, unseen], D_y[:, unseen])
    # A mean that has left all but a quarter of what there is room for leaves room for a quarter.
    level, left = point.level, 1 - 0.25 * float(point.level.freedom()) / 48
    near = operator.adjoint(y - noise * left**0.5 * e / e.square().mean(1, keepdim=True).sqrt(),
                            (1, 8, 8)).flatten(1)  # fmt: skip
    u = seen_noise(level, point, near, SampleDraws(range(400), x, 64, 48))
    length = (operator(u.reshape(-1, 1, 8, 8)) / noise).square().sum(1).mean()
    assert float(length) == pytest.approx(0.25 * float(level.freedom()), rel=0.03)


def test_poisson_correlated_and_nonlinear_measurements_have_the_right_law():
    """Against importance weights of many draws of the prior."""
    sde, M = VPSDE(), torch.tensor([[1.0, 0.2]], dtype=F64)
    prior = RING.sample(200_000, seed=0)
    square = Nonlinear(lambda x: (x**2).sum(1, keepdim=True))
    y = torch.tensor([0.8])
    cases = [
        (Matrix(M), Poisson(8.0, offset=3.0), Poisson(8.0, 3.0).log_prob(y, prior @ M.T)),
        (Matrix(M), Covariance(torch.tensor([[0.04]])), -12.5 * ((y - prior @ M.T) ** 2).sum(1)),
        (square, 0.2, -12.5 * ((y - square(prior)) ** 2).sum(1)),
    ]
    for operator, noise, log_w in cases:
        mean = log_w.softmax(0) @ prior
        spread = (log_w.softmax(0) @ (prior - mean) ** 2).sqrt()
        x = restore(sde, RING.score(sde), y, operator, noise_std=noise, gaussian=RING_GAUSSIAN,
                    n=600, nfe=40, seeds=range(600), method="particles", dtype=F64)  # fmt: skip
        assert float(((x.mean(0) - mean) / spread).abs().max()) < 0.2, operator
        torch.testing.assert_close(x.std(0), spread, rtol=0.15, atol=0)


def test_the_reference_of_small_and_of_large_pictures():
    x = normal(200, 3, 4, 4, seed=12) * torch.linspace(0.1, 1, 4)
    gaussian = reference_gaussian(x, shrink=0.1)
    level = torch.cov(x.flatten(1).T).diagonal().mean()
    expected = 0.9 * torch.cov(x.flatten(1).T) + 0.1 * level * torch.eye(48)
    torch.testing.assert_close(gaussian.covariance(), expected)
    big = normal(8, 1, 72, 72, seed=13).cumsum(-1)
    smooth = reference_gaussian(big)
    v = normal(2, 72 * 72, seed=14)
    torch.testing.assert_close(smooth.from_axes(smooth.to_axes(v)), v)
    torch.testing.assert_close(smooth.to_axes(v).norm(dim=1), v.norm(dim=1))


def test_resampling_and_tempering():
    log_w = torch.tensor([0.0, 3.0, 1.0, -50.0], dtype=F64)
    places = systematic(log_w, normal(4, 2, seed=15), 1000, 0.5)
    share = torch.bincount(places, minlength=4) / 1000
    torch.testing.assert_close(share.double(), log_w.softmax(0), atol=2e-3, rtol=0)
    power = tempered(log_w * 10, 2.0)
    w = (power * 10 * log_w).softmax(0)
    assert 0 < power < 1 and float(1 / w.square().sum()) == pytest.approx(2, rel=1e-6)
