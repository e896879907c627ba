"""What t_min and the prior make of the law of samples, against exact solutions of fine grids."""

import pytest
import torch

from score_sde import VESDE, VPSDE, Gaussian, SubVPSDE, sample, verify
from score_sde.diagnosis.ends import law_of_ends
from score_sde.diagnosis.facts import along_axes

F64 = torch.float64
MEAN = torch.tensor([1.0, -0.5, 0.2], dtype=F64)
STDS = torch.tensor([0.8, 0.1, 0.01], dtype=F64)
DATA = Gaussian(MEAN, STDS**2)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0), SubVPSDE(t_min=0.02)], ids=str)
def test_the_ends_are_what_a_fine_solution_leaves(sde, denoise):
    """The flow is affine: samples from 0 and from one unit vector of the prior give its law."""
    x_T = sde.prior_std() * torch.eye(4, 3, dtype=F64)
    x = sample(sde, DATA.score(sde), x_T=x_T, method="adams", steps=200, data_std=DATA.std(),
               denoise=denoise)  # fmt: skip
    if not denoise:
        x = x / sde.alpha(torch.tensor(sde.t_min, dtype=F64))
    mean, std = x[3], (x[:3] - x[3]).diagonal().abs()
    size, noise = STDS.norm(), sde.sigma(torch.tensor(sde.t_min, dtype=F64)) ** 2
    noise = noise / sde.alpha(torch.tensor(sde.t_min, dtype=F64)) ** 2
    left = (STDS**2 + noise).sqrt()
    want = STDS**2 / left if denoise else left
    ends = law_of_ends(sde, MEAN, STDS**2, denoise=denoise)
    assert ends.prior == pytest.approx(float((std - want).norm() / size), rel=1e-2, abs=1e-7)
    assert ends.prior_mean == pytest.approx(float((mean - MEAN).norm() / size), rel=1e-3, abs=1e-7)
    assert ends.truncation == pytest.approx(float((want - STDS).norm() / size), rel=1e-6)
    assert ends.truncation <= ends.bound


@pytest.mark.parametrize("n", [2, 400])
def test_means_and_variances_of_items_are_along_their_axes(n):
    """Of items along (3, 4, 0)/5 around a mean that lies along it, and partly across."""
    along, across = torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor([0.0, 0.0, 2.0]).double()
    steps = torch.linspace(-1, 1, n, dtype=F64)[:, None]
    mean, variances = along_axes((10 + steps) * along + across)
    assert float(mean[0].abs()) == pytest.approx(10) and float(mean[1:].norm()) == pytest.approx(2)
    assert (
        float(variances[0]) == pytest.approx(float(steps.var()))
        and float(variances[1:].norm()) < 1e-20
    )


def test_verify_says_what_no_solver_mends():
    reports = [verify(VPSDE(t_min=t), "heun", steps=[64], data=DATA) for t in (1e-3, 1e-2)]
    parts = [r.ends.truncation for r in reports]
    assert parts[1] > 3 * parts[0] > 0  # r is some 4 times as large
    assert reports[0].ends.prior_mean == pytest.approx(reports[0].rows[0].mean_bias, rel=0.05)
    assert "stopping at t_min leaves W2" in str(reports[0])
    assert reports[0].to_dict()["ends"]["prior"] == reports[0].ends.prior
