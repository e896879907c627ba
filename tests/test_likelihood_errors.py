"""What `log_likelihood` says of its own solver's error, held to what a finer solution shows."""

import pytest
import torch
from known_data import DATA, SONG

from score_sde import Gaussian, log_likelihood
from score_sde.likelihood import decode


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_error_is_that_which_a_finer_solution_reveals(process):
    sde, data = SONG[process], DATA["ring"]
    x = data.sample(8, 1)
    given = {"divergence": "exact", "truncation": "none", "check": 8}
    coarse = log_likelihood(sde, data.score(sde), x, nfe=32, **given)
    finer = log_likelihood(sde, data.score(sde), x, nfe=48, **given)
    change = (finer.nats - coarse.nats).square().mean().sqrt()
    # An error of order 6 is e at 32 and (2/3)^6 e at 48 evaluations: the change is what is between.
    want = change / (1 - (2 / 3) ** 6)
    said = coarse.solver_error.square().mean().sqrt()
    torch.testing.assert_close(said, want.to(said), rtol=1e-6, atol=0)


def test_the_few_say_one_size_of_all_and_the_more_they_are_the_narrower_is_the_interval():
    sde, data = SONG["vp"], DATA["ring"]
    x, widths = data.sample(32, 1), []
    for check in (2, 8, 16):
        found = log_likelihood(sde, data.score(sde), x, nfe=32, check=check, truncation="none")
        assert found.told_by == check
        assert bool((found.solver_error == found.solver_error[0]).all())  # no sample knows its own
        low, high = found.interval()
        widths.append(float((high - low)[0] / (2 * found.error[0])))
    # Student's t of 95 % with 2, 5 and 9 degrees: few say less, and errors have heavy tails.
    assert widths == pytest.approx([4.303, 2.571, 2.262], abs=1e-3)
    alone = log_likelihood(sde, data.score(sde), x, nfe=32, check=0, truncation="none")
    assert alone.told_by == 0 and len(alone.solver_error.unique()) > 1


def test_probes_that_agree_by_chance_do_not_make_an_interval_narrow():
    """In the plane v^T J v has two values, so that four probes often see no spread at all."""
    sde, data = SONG["vp"], DATA["ring"]
    x, given = data.sample(128, 3), {"nfe": 32, "truncation": "none", "check": 8}
    exact = log_likelihood(sde, data.score(sde), x, divergence="exact", **given).nats
    found = log_likelihood(
        sde, data.score(sde), x, divergence="hutchinson", seeds=range(128), **given
    )
    assert (found.stderr < 1e-3 * found.stderr.max()).double().mean() > 0.05
    low, high = found.interval()
    assert 0.9 <= float(((low <= exact) & (exact <= high)).double().mean()) <= 0.99
    alone = log_likelihood(sde, data.score(sde), x[:1], divergence="hutchinson", probes=6,
                           seeds=[5], check=0, nfe=32)  # fmt: skip
    low, high = alone.interval()
    wide = (4.303 * alone.error) ** 2 + (2.571 * alone.stderr) ** 2  # Student's t, 2 and 5 degrees
    torch.testing.assert_close((high - low) / 2, wide.sqrt(), rtol=1e-3, atol=0)


def test_coordinates_that_make_no_sense_are_said():
    sde, data = SONG["vp"], DATA["ring"]
    x, score = data.sample(3, 1), data.score(sde)
    other = Gaussian(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="gaussian has 3 coordinates and a sample 2"):
        log_likelihood(sde, score, x, gaussian=other)
    with pytest.raises(ValueError, match="gaussian has 3 coordinates and a sample 2"):
        decode(sde, score, x, gaussian=other)
    with pytest.raises(ValueError, match="data_std must be a positive number, of 1e-30"):
        log_likelihood(sde, score, x, data_std=1e-200)
    with pytest.raises(ValueError, match="the score is not finite where the flow ends"):
        log_likelihood(sde, lambda x, t: x * torch.nan, x, nfe=16)
