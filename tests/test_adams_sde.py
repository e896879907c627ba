"""The stochastic form of adams: its law against the exact one, beside the best published."""

import math

import torch

from score_sde import VPSDE, GaussianMixture, sample, verify

# The best published sampler's exact W2 at 20, 50 and 100 evaluations on 32-D Gaussian data whose
# stds span 200:1 under VP, relative to the data's size.
BEST = {20: 1.3e-2, 50: 3.3e-3, 100: 8.7e-4}


def test_its_law_is_four_times_as_near_as_that_of_the_best_published():
    report = verify(VPSDE(), "adams_sde", steps=list(BEST))
    assert report.law.startswith("propagated")
    for row in report.rows:
        assert row.w2 <= 0.25 * BEST[row.nfe], row
    assert report.weak_order > 1.8


def test_few_steps_stay_finite_and_noise_of_strength_one_is_the_reverse_sde():
    few = verify(VPSDE(), "adams_sde", steps=[2, 5, 10])
    assert all(math.isfinite(row.w2) and row.w2 < 1 for row in few.rows)
    whole = verify(VPSDE(), "adams_sde", steps=[50, 100], eta=1.0)
    assert whole.rows[1].w2 < 0.35 * BEST[100] and whole.weak_order > 1.8


def test_it_samples_a_mixture():
    data = GaussianMixture([0.7, 0.3], [[-0.5, 0.0], [0.6, 0.2]], 0.01)
    sde = VPSDE()
    x = sample(sde, data.score(sde), (2000, 2), method="adams_sde", nfe=40, data_std=data.std(),
               seeds=range(2000))  # fmt: skip
    share = float((x[:, 0] < 0).double().mean())
    assert abs(share - 0.7) < 4 * math.sqrt(0.21 / 2000)
    near = x[x[:, 0] < 0]
    torch.testing.assert_close(near.std(0), torch.full((2,), 0.1), rtol=0.08, atol=0)
