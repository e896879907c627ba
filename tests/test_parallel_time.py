"""Parallel in time, and each sample to a tolerance: the flow's own samples, and what they cost."""

import pytest
import torch

from score_sde import VPSDE, CosineSDE, Gaussian, GaussianMixture, SubVPSDE, sample
from score_sde.sampling import sample_parallel, sample_to_tolerance
from score_sde.sampling.parallel import Answer

F64 = torch.float64
STRETCHED = Gaussian(torch.zeros(16), torch.logspace(0, -4, 16, dtype=F64))
HUMPS = GaussianMixture(
    [0.5, 0.2, 0.3],
    [[-0.6, 0.1], [0.5, 0.6], [0.3, -0.5]],
    [[0.002, 0.04], [0.01, 0.001], [0.02, 0.02]],
)
PROBLEMS = {
    "humps": (VPSDE(), HUMPS),
    "humps, cosine": (CosineSDE(), HUMPS),
    "stretched": (SubVPSDE(), STRETCHED),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def off(x, y, data):
    """How far samples are apart, (B,), in units of the data's std."""
    return (x - y).flatten(1).double().square().mean(1).sqrt() / data.std()


@pytest.mark.parametrize("steps", [20, 40, 80])
@pytest.mark.parametrize("name", PROBLEMS)
def test_sweeps_give_the_same_samples_in_a_third_of_the_depth(name, steps):
    sde, data = PROBLEMS[name]
    x_T = sde.prior_sample((24, *data.shape), torch.Generator().manual_seed(1)).double()
    common = {"x_T": x_T, "steps": steps, "data_std": data.std()}
    want = sample(sde, data.score(sde), method="adams", **common)
    found = sample_parallel(sde, data.score(sde), tolerance=1e-3, **common)
    assert off(found.x, want, data).max() < 1e-3
    assert found.depth <= found.sequential / (3 if steps > 20 else 1.9)
    assert found.sequential == steps + 1 <= found.nfe
    assert f"depth {found.depth} of {steps + 1}" in str(found)


def test_secants_know_where_they_have_been_and_are_trusted_no_further():
    torch.manual_seed(0)
    slope, x = torch.randn(5, 5, dtype=F64), torch.randn(4, 3, 5, dtype=F64)
    answer = Answer(x[..., 0, :] * 0)
    for k in range(3):
        answer.asked(x[:, k], x[:, k] @ slope)
    torch.testing.assert_close(answer.at(x[:, 2]), x[:, 2] @ slope)
    torch.testing.assert_close(answer.at(x[:, 1]), x[:, 1] @ slope)  # the last secant, exactly
    near, far = x[:, 2] + (x[:, 1] - x[:, 2]), x[:, 2] + 7 * (x[:, 1] - x[:, 2])
    torch.testing.assert_close(answer.at(far), answer.at(near))
    answer.asked(x[:, 2], x[:, 2] @ slope)  # a state that does not move any more
    assert torch.isfinite(answer.at(far)).all()


def test_a_window_bounds_what_is_asked_at_once():
    sde, data = PROBLEMS["humps"]
    most = 0

    def watched(x, t):
        nonlocal most
        most = max(most, len(x))
        return data.score(sde)(x, t)

    common = {"seeds": range(4), "steps": 40, "data_std": data.std(), "dtype": F64}
    want = sample(sde, data.score(sde), (4, 2), method="adams", **common)
    found = sample_parallel(sde, watched, (4, 2), tolerance=1e-4, window=8, **common)
    assert most == 8 * 4 and off(found.x, want, data).max() < 1e-4


def test_conditions_go_with_their_samples_and_other_methods_work():
    sde = VPSDE()
    classes = GaussianMixture(HUMPS.weights, HUMPS.means, HUMPS.covariances, labels=[0, 1, 2])
    score = classes.score(sde).bind(class_labels=torch.tensor([0, 1, 2, 0]))
    common = {"seeds": range(4), "steps": 12, "method": "ddim"}
    want = sample(sde, score, (4, 2), **common)
    found = sample_parallel(sde, score, (4, 2), tolerance=1e-6, data_std=0.5, **common)
    torch.testing.assert_close(found.x, want, rtol=1e-4, atol=1e-4)
    noisy = [("ddim", 1.0), ("dpmpp_2m", 0.5), ("adams_sde", 0.3)]
    for method, options in [(m, {}) for m in ("ancestral", "heun", "rk45")] + [
        (m, {"eta": eta}) for m, eta in noisy
    ]:
        with pytest.raises(ValueError, match="cannot be run in parallel in time"):
            sample_parallel(sde, score, (4, 2), data_std=0.5, method=method, steps=5, **options)


def test_each_sample_takes_the_steps_that_it_needs():
    sde, data = PROBLEMS["humps"]
    x_T = sde.prior_sample((64, 2), torch.Generator().manual_seed(2)).double()
    common = {"x_T": x_T, "data_std": data.std()}
    fine = sample(sde, data.score(sde), method="adams", steps=400, **common)
    for tolerance in (1e-2, 1e-3):
        found = sample_to_tolerance(sde, data.score(sde), tolerance=tolerance, **common)
        assert (off(found.x, fine, data) < tolerance).double().mean() >= 0.95
        assert (found.error <= tolerance).all()
        assert found.evaluations.min() < found.evaluations.max() == found.nfe
    one = sample_to_tolerance(
        sde, data.score(sde), x_T=x_T[5:6], data_std=data.std(), tolerance=1e-3
    )
    torch.testing.assert_close(one.x[0], found.x[5], rtol=1e-12, atol=1e-12)


def test_a_tolerance_out_of_reach_is_said():
    sde, data = PROBLEMS["humps"]
    with pytest.raises(ValueError, match=r"samples do not reach tolerance=1e-09 within nfe=40"):
        sample_to_tolerance(sde, data.score(sde), (8, 2), tolerance=1e-9, data_std=0.5, nfe=40)


def test_a_score_that_is_not_finite_ends_with_a_sentence():
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not finite"):
            sample_parallel(VPSDE(), lambda x, t: bad * x, (4, 2), data_std=0.5, steps=6)  # noqa: B023
