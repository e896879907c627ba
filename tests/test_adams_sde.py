"""The stochastic form of adams: its law against the exact one, beside the best published."""

import math

import pytest
import torch

from score_sde import VESDE, VPSDE, Gaussian, GaussianMixture, SubVPSDE, sample, verify
from score_sde.sampling.adams_sde import AdamsSDE
from score_sde.sampling.grids import make_grid
from score_sde.sampling.multistep import Multistep

F64 = torch.float64
# The best published sampler's exact W2 at 20, 50 and 100 evaluations on 32-D Gaussian data whose
# stds span 200:1 under VP, relative to the data's size.
BEST = {20: 1.3e-2, 50: 3.3e-3, 100: 8.7e-4}
STDS = {
    "200:1": torch.logspace(0, -math.log10(200), 32, dtype=F64),
    "power law": torch.arange(1, 33, dtype=F64) ** -1.0,
    "wide and narrow": torch.tensor([1.0, 0.003], dtype=F64),
}


@pytest.mark.parametrize("eta", [0.7, 1.0])
@pytest.mark.parametrize("name", STDS)
def test_its_law_is_many_times_as_near_as_that_of_the_best_published(name, eta):
    stds = 0.5 * STDS[name] / STDS[name].square().mean().sqrt()
    data = Gaussian(torch.zeros(len(stds)), stds**2)
    report = verify(VPSDE(), "adams_sde", steps=list(BEST), data=data, eta=eta)
    assert report.law.startswith("propagated")
    for row in report.rows:
        assert row.w2 <= 0.2 * BEST[row.nfe], row
    assert name == "power law" or report.weak_order > 1.8


@pytest.mark.parametrize("sde", [VESDE(), SubVPSDE()], ids=["VE", "sub-VP"])
def test_noise_is_matched_on_every_process_and_changes_nothing_in_the_limit(sde):
    report = verify(sde, "adams_sde", steps=[10, 20, 400], monte_carlo=0)
    assert report.rows[0].w2 < 0.08 and report.rows[1].w2 < 6e-3  # plain noise: 0.16, 9e-3 on VE
    times = make_grid(sde, "saturating", 400, 0.5)
    plain = Multistep(variable="theta", order=3, corrector=True, eta=1.0, data_std=0.5)
    before, after = (m.prepare(sde, times) for m in (plain, AdamsSDE(data_std=0.5)))
    for a, b in zip(after, before, strict=True):
        assert a.noise == pytest.approx(b.noise, rel=1e-3) and a.weights == b.weights


def test_few_steps_stay_finite():
    few = verify(VPSDE(), "adams_sde", steps=[2, 5, 10])
    assert all(math.isfinite(row.w2) and row.w2 < 1 for row in few.rows)


def test_it_samples_a_mixture():
    data = GaussianMixture([0.7, 0.3], [[-0.5, 0.0], [0.6, 0.2]], 0.01)
    sde = VPSDE()
    x = sample(sde, data.score(sde), (2000, 2), method="adams_sde", nfe=40, data_std=data.std(),
               seeds=range(2000))  # fmt: skip
    share = float((x[:, 0] < 0).double().mean())
    assert abs(share - 0.7) < 4 * math.sqrt(0.21 / 2000)
    near = x[x[:, 0] < 0]
    torch.testing.assert_close(near.std(0), torch.full((2,), 0.1), rtol=0.08, atol=0)
