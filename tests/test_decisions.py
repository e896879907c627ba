"""When samples are decided, and how near a model is to the best guess of its data."""

import pytest
import torch

from score_sde import VPSDE, GaussianMixture
from score_sde.checks import UserError
from score_sde.diagnosis.decisions import closeness, decisions, optimal_denoiser

SDE, F64 = VPSDE(), torch.float64


def sign(x):
    """Two classes on the line: left and right, sure of it."""
    right = (x[:, 0] > 0).double()
    return torch.stack([1 - right, right], 1)


def test_two_far_groups_are_decided_at_larger_noise_than_two_near_ones():
    """At log-SNR -2 log(distance) or so, where the groups are one noise apart."""
    at = []
    for distance in (0.5, 4.0):
        data = GaussianMixture([0.5, 0.5], [[-distance], [distance]], (0.05 * distance) ** 2)
        found = decisions(SDE, data.score(SDE), sign, (48, 1), method="heun", steps=20,
                          grid="logsnr")  # fmt: skip
        assert torch.equal(found.classes, found.probabilities[-1].argmax(1))
        assert float(found.confidence[-1]) == 1 and found.probabilities.shape[1:] == (48, 2)
        # The flow of a symmetric mixture never crosses the middle, but E[x_0 | x_t] = 0 at x_t = 0.
        assert float((found.decided == found.log_snr[0]).double().mean()) == 1
        random = decisions(SDE, data.score(SDE), sign, (48, 1), method="euler_maruyama", steps=60)
        at.append(float(random.decided.median()))
    assert at[0] > at[1] + 2


def test_the_best_guess_is_that_of_a_mixture_of_points():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(20, 3, generator=generator, dtype=F64)
    points = GaussianMixture([1.0] * 20, items, 0.0)
    x = torch.randn(8, 3, generator=generator, dtype=F64)
    for t in (0.05, 0.3, 0.9):
        exact = points.score(SDE).denoise(x, torch.tensor(t, dtype=F64))
        assert torch.allclose(optimal_denoiser(SDE, items, x, t), exact, atol=1e-8)
    found = closeness(SDE, points.score(SDE), items, n=20)
    assert float(found.apart.max()) < 1e-6 and torch.allclose(found.model, found.best, atol=1e-6)


def test_a_smoother_model_is_near_at_large_noise_and_not_at_small():
    data = GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
    found = closeness(SDE, data.score(SDE), data.sample(300, seed=0), n=300)
    assert float(found.apart[-1]) < 0.1  # noise alone: the mean of the data
    assert float(found.best[0]) < 0.2 * float(found.model[0])  # the items, by heart
    assert bool((found.best <= found.model + 1e-9).all())


def test_what_is_no_probability_is_said():
    data = GaussianMixture([1.0], [[0.0]], 1.0)
    with pytest.raises(UserError, match="sum to one"):
        decisions(SDE, data.score(SDE), lambda x: 3 * x, (4, 1), method="heun", steps=4)
