"""Calibrated grids: better than the blind one or the blind one, at the cost that they say."""

import dataclasses

import pytest
import torch
from torch import nn

from score_sde import (
    VESDE,
    VPSDE,
    FlowSDE,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    SubVPSDE,
    calibrate,
    sample,
)
from score_sde.nets import MLP
from score_sde.sampling import load_recipe
from score_sde.sampling.calibration import gain_of, is_sure

F64 = torch.float64
STRETCHED = torch.logspace(0, -2.3, 32, dtype=F64)
HUMPS = GaussianMixture(
    [0.5, 0.2, 0.3],
    [[-0.6, 0.1], [0.5, 0.6], [0.3, -0.5]],
    [[0.002, 0.04], [0.01, 0.001], [0.02, 0.02]],
)
PROBLEMS = {
    "stretched": (VPSDE(), Gaussian(torch.zeros(32), STRETCHED**2)),
    "humps": (VPSDE(), HUMPS),
    "humps, VE": (VESDE(), HUMPS),
    "humps, flow": (FlowSDE(), HUMPS),
    "narrow": (SubVPSDE(), Gaussian(torch.ones(4), torch.tensor([1.0, 0.1, 1e-2, 1e-3]))),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Of arithmetic so small, a second one makes it slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counted:
    """A score, and evaluations times samples."""

    def __init__(self, score):
        self.score, self.rows = score, 0

    def __call__(self, x, t):
        self.rows += len(x)
        return self.score(x, t)


def errors(sde, data, **settings):
    """Endpoint errors (n,) of adams on noise that no calibration has seen, and of a fine run."""
    score = data.score(sde)
    x_T = sde.prior_sample((400, *data.shape), torch.Generator().manual_seed(3)).double()
    common = {"x_T": x_T, "method": "adams", "denoise": False}
    fine = sample(sde, score, steps=200, order=4, data_std=data.std(), **common)
    return (sample(sde, score, **settings, **common) - fine).flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize(
    ("name", "nfe"),
    [("stretched", 10), ("stretched", 15), ("humps", 5), ("humps", 20), ("humps, VE", 8),
     ("humps, flow", 15), ("narrow", 10)],
)  # fmt: skip
def test_a_recipe_never_loses_and_says_what_it_gains(name, nfe):
    sde, data = PROBLEMS[name]
    score = Counted(data.score(sde))
    recipe = calibrate(sde, score, (64, *data.shape), nfe, data_std=data.std(), denoise=False)
    assert score.rows <= 200 * 64
    assert recipe.evaluations == pytest.approx(score.rows / 64)
    found = errors(sde, data, grid=recipe)
    blind = errors(sde, data, nfe=nfe, data_std=data.std())
    gain, spread = gain_of(found, blind)
    if recipe.gain == 1:
        assert torch.equal(found, blind) and recipe.gain_error == 0
    assert gain.rms <= 1.02 and gain.median <= 1.02
    off = abs(torch.tensor(gain.mean / recipe.gain).log())
    assert off < 4 * (spread.mean**2 + recipe.gain_error**2) ** 0.5 + 1e-9
    if (name, nfe) in {("humps, flow", 15), ("humps", 20), ("narrow", 10)}:
        assert recipe.gain < 0.8  # not by never choosing anything


def test_one_sample_decides_nothing():
    """The rms of errors is often that of one sample: it may neither win nor hide what it costs."""
    generator = torch.Generator().manual_seed(0)
    base = 0.01 * (1 + torch.rand(100, generator=generator, dtype=F64))
    assert is_sure(0.5 * base, base) and not is_sure(0.97 * base, base)
    parts = base.clone()
    parts[3] = 1.0
    assert not is_sure(torch.where(parts == 1, 0.01, 0.99 * parts), parts)  # won by one alone
    lost = 0.5 * base
    lost[3] = 0.1  # the rms is still smaller, and would not be with a second one of these
    assert lost.square().mean() < 0.9 * base.square().mean() and not is_sure(lost, base)
    assert is_sure(0.5 * parts, parts)
    few = base.clone()
    few[:10] = 0.1
    won = torch.where(few == 0.1, 0.01, 1.1 * few)  # the rms of ten, and no other
    assert won.square().mean() < 0.3 * few.square().mean() and not is_sure(won, few)


def test_a_measured_scale_is_that_of_the_data():
    for sde, data in PROBLEMS.values():
        score = Counted(data.score(sde))
        recipe = calibrate(sde, score, (64, *data.shape), nfe=10)
        assert recipe.data_std == pytest.approx(data.std(), rel=0.1)
        assert score.rows <= 200 * 64


def test_a_fine_grid_is_left_as_it_is_where_the_budget_tells_nothing():
    sde, data = PROBLEMS["humps"]
    score = Counted(data.score(sde))
    recipe = calibrate(sde, score, (64, 2), nfe=400, denoise=False)
    assert recipe.gain == 1 and score.rows <= 200 * 64 and len(recipe.times) == 401


def test_a_thorough_recipe_beats_the_blind_grid():
    sde, data = PROBLEMS["humps"]
    thorough = calibrate(sde, data.score(sde), (96, 2), nfe=10, denoise=False, thorough=True)
    assert 0 < thorough.error < 0.1 and thorough.gain is None
    found = errors(sde, data, grid=thorough).square().mean()
    assert found < errors(sde, data, nfe=10, data_std=data.std()).square().mean()


def test_a_recipe_travels_and_is_refused_elsewhere(tmp_path):
    sde = VPSDE()
    torch.manual_seed(0)
    model = ScoreModel(MLP(2), sde).requires_grad_(False)
    recipe = calibrate(sde, model, (32, 2), nfe=4, data_std=0.5)
    assert recipe.model and dataclasses.replace(recipe, model=None) != recipe
    recipe.save(tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    sample(sde, model, (2, 2), method="adams", grid=recipe)
    sample(sde, model.to(torch.bfloat16), (2, 2), method="adams", grid=recipe, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the recipe was made for VPSDE"):
        sample(VESDE(), model, (2, 2), method="adams", grid=recipe)
    other = ScoreModel(MLP(2), sde).requires_grad_(False)
    with pytest.raises(ValueError, match="another model, or for other weights of it"):
        sample(sde, other, (2, 2), method="adams", grid=recipe)
    for method in ("heun", "unipc", "dpmpp_2m"):
        with pytest.raises(ValueError, match=f"a recipe is a grid for adams.*is {method}"):
            sample(sde, model, (2, 2), method=method, grid=recipe)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a recipe"):
        load_recipe(tmp_path / "other.json")


def test_a_pilot_that_shows_too_little_is_refused():
    sde, data = PROBLEMS["humps"]
    with pytest.raises(ValueError, match=r"\(16, 2\) shows too little.*32 samples here"):
        calibrate(sde, data.score(sde), (16, 2))
    with pytest.raises(ValueError, match="at least 16 samples"):
        calibrate(sde, nn.Identity(), (8, 3, 32, 32))
    for noise in (torch.zeros(32, 2), torch.full((32, 2), torch.nan), torch.ones(32, 2).long()):
        with pytest.raises(ValueError, match="finite and not all the same"):
            calibrate(sde, data.score(sde), x_T=noise)
