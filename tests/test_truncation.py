"""What the start at t_min does to a likelihood: corrected, estimated, said, and mended."""

import math
import warnings

import pytest
import torch

from score_sde import VESDE, VPSDE, Gaussian, GaussianMixture, SubVPSDE, log_likelihood
from score_sde.likelihood.setting import clock_of, frame_of
from score_sde.likelihood.truncation import growth
from score_sde.ode.flow import Counted, Flow, levels

F64 = torch.float64
THIN = Gaussian(torch.zeros(8), torch.logspace(0, -2, 8, dtype=F64) ** 2)
NARROW = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[0.5, 0.0], [-0.4, 0.3], [-0.2, -0.5]],
    [[0.3**2, 0.01**2], [0.01**2, 0.2**2], [0.05**2, 0.1**2]],
)
PAIR = GaussianMixture([0.5, 0.5], [[-0.01, 0.0], [0.01, 0.0]], [[5e-3**2, 0.09]] * 2)
"""Two modes so near that at the default t_min they are one."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quietly(*args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return log_likelihood(*args, **settings)


@pytest.mark.parametrize("data", [THIN, NARROW], ids=["thin", "narrow"])
def test_intervals_hold_where_data_are_as_thin_as_the_noise(data):
    """The smallest spread is 0.01, sigma at t_min of VP and VE 0.0105 and 0.01."""
    x, inside = data.sample(96, 1), []
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        result = log_likelihood(sde, data.score(sde), x)
        truth = data.log_prob(x)
        low, high = result.interval()
        inside.append((low <= truth) & (truth <= high))
        error = (result.nats - truth).abs()
        assert float(error.median()) < 1e-5
        if data is THIN:  # off by 0.02 nats without the local Gaussian
            assert float(error.max()) < 1e-4
            # An interval of a few times the error; other estimates said up to hundreds.
            assert 1.5 < float(((high - low) / 2).mean() / error.mean()) < 8
    assert 0.9 <= float(torch.cat(inside).double().mean())


def test_the_correction_of_a_gaussian_is_exact_whatever_t_min():
    sde, x = VPSDE(), THIN.sample(16, 2)
    for t_min in (1e-2, 1e-3):  # noise of ten and of one times the smallest spread
        found = log_likelihood(sde, THIN.score(sde), x, t_min=t_min, gaussian=THIN)
        torch.testing.assert_close(found.nats, THIN.log_prob(x), rtol=0, atol=1e-5)
        assert found.truncation_error.max() < 1e-4 and found.advice is None


def test_what_is_corrected_need_not_be_integrated():
    """A thin Gaussian and a scalar std: 48 evaluations from where noise covers its thin axes."""
    sde, x, truth = VPSDE(), THIN.sample(24, 5), THIN.log_prob(THIN.sample(24, 5))
    common = {"nfe": 48, "data_std": THIN.std(), "check": 0}
    near, far = (
        (log_likelihood(sde, THIN.score(sde), x, t_min=t_min, **common).nats - truth).abs().mean()
        for t_min in (1e-3, 4e-2)
    )
    assert far < 2e-4 and near > 2 * far


def test_where_components_meet_the_estimate_is_of_the_size_of_the_error():
    sde, y = VPSDE(), NARROW.sample(1024, 4)
    level = levels(sde)[0]
    frame, std = frame_of(y, None, None)
    flow = Flow(sde, Counted(NARROW.score(sde)), frame, clock_of(frame, std), (2,), F64)
    found = growth(flow, y, level, flow.look(frame.to_z(y, level), level, hessian=True))
    noise = level**2 * torch.eye(2, dtype=F64)
    wide = GaussianMixture(NARROW.weights, NARROW.means, NARROW.covariances + noise)
    off = (found.nats[:, 0] - (wide.log_prob(y) - NARROW.log_prob(y))).abs()
    ratio = (off / found.error)[off > 1e-4]  # the others are exact, or nearly
    assert len(ratio) >= 20 and ratio.median() < 3 and ratio.max() < 40


def test_what_is_hidden_below_t_min_is_found_and_said():
    sde, x = VPSDE(), PAIR.sample(16, 1)
    truth = PAIR.log_prob(x)
    with pytest.warns(UserWarning, match="stopping at t_min=0.001 leaves an error of about"):
        found = log_likelihood(sde, PAIR.score(sde), x, data_std=0.3)
    off = (found.nats - truth).abs().mean()
    assert off > 0.1 and 0.2 < float(found.truncation_error.mean() / off) < 5
    wanted = float(found.advice.split("t_min=")[2].split()[0])
    assert wanted < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = log_likelihood(sde, PAIR.score(sde), x, data_std=0.3, t_min="auto", nfe=128)
    assert best.settings["t_min"] == pytest.approx(wanted, rel=1e-2)
    assert float((best.nats - truth).abs().mean()) < 5e-3 and best.advice is None
    assert "truncation error" in str(best)


def test_with_probes_the_estimate_is_of_the_size_of_the_error():
    sde, x = VPSDE(), THIN.sample(48, 3)
    setting = {"divergence": "hutchinson", "seeds": range(48)}
    found = quietly(sde, THIN.score(sde), x, probes=2, **setting)
    level = sde.sigma(torch.tensor(1e-3, dtype=F64)) / sde.alpha(torch.tensor(1e-3, dtype=F64))
    thin = THIN.axis_variances
    missed = 0.5 * float((1 + level**2 / thin).log().sum())  # of log p, by not correcting at all
    assert 0.003 * missed < float(found.truncation_error.mean()) < missed
    assert found.advice is not None


def test_bad_settings_of_t_min_are_explained():
    sde, x = VPSDE(), THIN.sample(2, 1)
    with pytest.raises(ValueError, match="t_min must be .*.auto."):
        log_likelihood(sde, THIN.score(sde), x, t_min="least")
    with pytest.raises(ValueError, match="check=0 leaves none"):
        log_likelihood(sde, THIN.score(sde), x, t_min="auto", check=0)
    with pytest.raises(ValueError, match="truncation=.none. has none"):
        log_likelihood(sde, THIN.score(sde), x, t_min="auto", truncation="none")
    with pytest.raises(ValueError, match="check must be at least 0"):
        log_likelihood(sde, THIN.score(sde), x, check=-1)
    for level in (0.0, 1.0, 2.0, math.nan):
        with pytest.raises(ValueError, match="level must be (greater than 0|less than 1|finite)"):
            log_likelihood(sde, THIN.score(sde), x, check=0).interval(level)
    assert math.isclose(log_likelihood(sde, THIN.score(sde), x, check=0).settings["t_min"], 1e-3)
