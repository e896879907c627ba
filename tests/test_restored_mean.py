"""`Restored.mean` beside the exact E[x_0 | y], and beside the mean of the draws."""

import pytest
import torch

from score_sde import VPSDE, Gaussian, restore
from score_sde.restoration import Matrix
from score_sde.restoration.average import Averages, Course
from score_sde.restoration.verify import problems

F64 = torch.float64


def errors(problem, method, n, times, **options):
    """Mean squared errors of `mean` and of the mean of draws, over that of n exact draws."""
    sde, exact = VPSDE(), problem.posterior
    found = []
    for seed in range(times):
        result = restore(sde, problem.data.score(sde), problem.y, Matrix(problem.A), n=n,
                         noise_std=problem.noise, gaussian=problem.gaussian, method=method,
                         seeds=range(seed * n, (seed + 1) * n), dtype=F64, return_info=True,
                         **options)  # fmt: skip
        found.append(torch.stack([result.mean, result.x.mean(0)]))
    off = torch.stack(found) - exact.mean().flatten()
    return off.square().sum(2).mean(0) / exact.covariance().trace() * n


@pytest.mark.parametrize("name", ["ring", "inpaint", "project"])
def test_the_mean_of_independent_draws_is_nearer_than_their_mean(name):
    ours, drawn = errors(problems()[name], "hybrid", 8, 12, nfe=30)
    assert float(ours) < 0.6 * float(drawn)


@pytest.mark.parametrize("name", ["ring", "inpaint"])
def test_the_mean_of_particles_is_nearer_than_that_of_those_that_are_left(name):
    ours, drawn = errors(problems()[name], "particles", 32, 20, nfe=30)
    assert float(ours) < float(drawn)


@pytest.mark.parametrize("kernel", ["gaussian", "ddpm", "seen"])
@pytest.mark.parametrize("n", [2, 5])
def test_of_gaussian_data_nothing_of_the_scatter_is_left(kernel, n):
    """What noise does to a draw is known, so that it is taken off as a whole."""
    problem, sde = problems()["gauss16"], VPSDE()
    given = problem.y, Matrix(problem.A)
    result = restore(sde, problem.data.score(sde), *given, noise_std=problem.noise, n=n, nfe=12,
                     gaussian=problem.gaussian, method="hybrid", kernel=kernel, seeds=range(n),
                     dtype=F64, return_info=True)  # fmt: skip
    exact = problem.posterior.mean().flatten()
    assert float((result.x.mean(0) - exact).abs().max()) > 0.05
    torch.testing.assert_close(result.mean, exact, atol=1e-4, rtol=0)


def test_what_scatter_does_not_explain_is_kept():
    """D_y that is off by far more than draws scatter gives way to the draws."""
    g = torch.Generator().manual_seed(0)
    x = 1 + 0.1 * torch.randn(16, 5, generator=g, dtype=F64)
    course, averages = Course(), Averages([16])
    course.add(0, 2, 1.0, torch.zeros(16, 5, dtype=F64) - 3, x)
    course.add(1, 2, 0.1, x, x)
    averages.add(course, x)
    torch.testing.assert_close(averages.means[0], x.mean(0), atol=2e-3, rtol=0)


def test_the_mean_is_the_same_in_any_batch_and_for_every_measurement():
    problem, sde = problems()["ring"], VPSDE()
    common = dict(noise_std=problem.noise, gaussian=problem.gaussian, n=7, nfe=12, dtype=F64,
                  seeds=range(7), return_info=True)  # fmt: skip
    y = torch.stack([problem.y, -problem.y, problem.y])
    for method in ("hybrid", "particles", "repaint"):
        given = sde, problem.data.score(sde)
        whole = restore(*given, y, Matrix(problem.A), method=method, **common)
        parts = restore(*given, y, Matrix(problem.A), method=method, batch_size=3, **common)
        alone = restore(*given, y[1], Matrix(problem.A), method=method, **common)
        assert whole.mean.shape == (3, 2) and alone.mean.shape == (2,)
        torch.testing.assert_close(parts.mean, whole.mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(alone.mean, whole.mean[1], atol=1e-6, rtol=0)
        if method == "repaint":
            torch.testing.assert_close(whole.mean, whole.x.mean(1))


def test_the_mean_of_one_draw_is_the_draw():
    data, sde = Gaussian(torch.zeros(3), torch.eye(3)), VPSDE()
    result = restore(sde, data.score(sde), torch.ones(1), Matrix(torch.ones(1, 3)), noise_std=0.3,
                     gaussian=data, n=1, nfe=6, seeds=[1], method="hybrid",
                     return_info=True)  # fmt: skip
    torch.testing.assert_close(result.mean, result.x[0])
