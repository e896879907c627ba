"""What a network leaves unknown, measured: exact for Gaussian data, smaller where more is known."""

import pytest
import torch

from score_sde import VPSDE, Gaussian, GaussianMixture, restore
from score_sde.restoration import Mask, Matrix, measure_residuals, posterior_score
from score_sde.restoration.residuals import load_residuals, save_residuals

F64 = torch.float64
SDE = VPSDE()
Q = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
DATA = Gaussian(torch.zeros(4, dtype=F64), Q @ Q.T / 4 + 0.02 * torch.eye(4))
CLUSTERS = GaussianMixture([0.5, 0.5], [[-2.0, 0, 0], [2.0, 0, 0]], 0.05)
AROUND = Gaussian(CLUSTERS.mean(), CLUSTERS.covariance())


def test_nothing_is_left_out_of_gaussian_data_and_much_of_two_clusters():
    x = DATA.sample(4000, seed=1)
    found = measure_residuals(SDE, DATA.score(SDE), x, DATA, levels=6)
    assert float(found.shares.min()) > 0.9 and float(found.shares.max()) == 1
    x = CLUSTERS.sample(1000, seed=1)
    found = measure_residuals(SDE, CLUSTERS.score(SDE), x, AROUND, levels=30)
    long = int(AROUND.axis_variances.argmax())
    nu = 0.5  # one cluster is left, of variance 0.05 where the Gaussian has 4
    expected = (1 / 0.05 + 1 / nu**2) ** -1 / (1 / 4.05 + 1 / nu**2) ** -1
    assert float(found.share(nu)[long]) == pytest.approx(expected, rel=0.25)
    torch.testing.assert_close(found.share(1e-9), found.shares[0])
    torch.testing.assert_close(found.share(1e9), found.shares[-1])


def test_restoration_takes_them_and_gaussian_data_stay_exact(tmp_path):
    A, y = Matrix(torch.eye(4)[:2]), torch.tensor([0.5, -1.0])
    x = DATA.sample(4000, seed=2)
    found = measure_residuals(SDE, DATA.score(SDE), x, DATA, levels=8)
    common = dict(noise_std=0.2, gaussian=DATA, n=2000, nfe=6, seeds=range(2000), dtype=F64)
    drawn = restore(SDE, DATA.score(SDE), y, A, method="reference", residuals=found, **common)
    exact = DATA.measured(A.M, 0.2, y)
    torch.testing.assert_close(torch.cov(drawn.T), exact.covariance(), atol=0.1, rtol=0.1)
    torch.testing.assert_close(drawn.mean(0), exact.mean(), atol=0.08, rtol=0)
    save_residuals(found, tmp_path / "r.safetensors", "these")
    kept = load_residuals(tmp_path / "r.safetensors", "these")
    torch.testing.assert_close(kept.share(0.3), found.share(0.3), atol=1e-6, rtol=1e-6)
    assert load_residuals(tmp_path / "r.safetensors", "others") is None
    assert load_residuals(tmp_path / "none", "these") is None
    (tmp_path / "r.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="delete it"):
        load_residuals(tmp_path / "r.safetensors", "these")


def test_they_say_better_than_the_gaussian_what_a_seen_entry_says_of_another():
    """Two clusters: near one of them the Gaussian believes in correlations that are not there."""
    score, mask = CLUSTERS.score(SDE), Mask(torch.tensor([True, False, False]))
    found = measure_residuals(SDE, score, CLUSTERS.sample(1000, seed=3), AROUND, levels=12)
    x, t, y = torch.tensor([[1.8, 0.1, 0.0]], dtype=F64), torch.tensor(0.1), torch.tensor([1.7])
    exact = CLUSTERS.measured(torch.eye(3)[:1], 0.3, y).score(SDE)(x, t)

    def off(residuals):
        post = posterior_score(SDE, score, y, mask, noise_std=0.3, gaussian=AROUND,
                               residuals=residuals, method="reference")  # fmt: skip
        return float((post(x, t) - exact).norm())

    assert off(found) < 0.5 * off(None)


def test_data_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="two items"):
        measure_residuals(SDE, DATA.score(SDE), torch.zeros(10, 3), DATA)
