"""Objectives: exact expectations, weights, densities, and the minimiser being the score."""

import math

import pytest
import torch
from conftest import correlated_gaussian
from torch import nn

from score_sde import EDMSDE, VESDE, VPSDE, FlowSDE, ScoreModel, TableSDE
from score_sde.losses import WEIGHTINGS, ScoreMatching, trivial_error
from score_sde.processes.expand import expand

F64 = torch.float64


class Zero(nn.Module):
    def forward(self, x, label):
        return torch.zeros_like(x)


class ExactEps(nn.Module):
    """eps of the exact score, read off the noisy input; the label is 999 t."""

    def __init__(self, sde, data):
        super().__init__()
        self.sde, self.score = sde, data.score(sde)

    def forward(self, x, label):
        t = label / 999
        return -expand(self.sde.sigma(t), x) * self.score(x, t)


def test_loss_of_the_exact_score_is_the_irreducible_one_and_any_other_is_worse():
    """E (eps - E[eps|x])^2 at fixed t is known for a Gaussian; perturbing the score adds to it."""
    sde, data = VPSDE(), correlated_gaussian((3,))
    t = torch.full((100_000,), 0.3)
    torch.manual_seed(0)
    x0 = data.sample(len(t)).float()
    exact = ScoreMatching()(ScoreModel(ExactEps(sde, data), sde), x0, t=t).loss.mean()
    alpha, sigma = sde.alpha(t[0].double()), sde.sigma(t[0].double())
    spread = alpha**2 * data.covariance()
    total = spread + sigma**2 * torch.eye(3, dtype=F64)
    want = torch.trace(spread @ torch.linalg.inv(total)) / 3
    assert abs(float(exact) - float(want)) < 0.005

    class Shifted(ExactEps):
        def forward(self, x, label):
            return super().forward(x, label) + 0.2

    torch.manual_seed(0)
    worse = ScoreMatching()(ScoreModel(Shifted(sde, data), sde), data.sample(len(t)).float(), t=t)
    assert float(worse.loss.mean() - exact) == pytest.approx(0.04, abs=0.003)


def test_gradient_at_the_exact_score_vanishes():
    """Denoising score matching is minimised by the score: the derivative along any bump is 0."""
    sde, data = VPSDE(), correlated_gaussian((2,))

    class Bumped(ExactEps):
        def __init__(self, *args):
            super().__init__(*args)
            self.size = nn.Parameter(torch.zeros(()))

        def forward(self, x, label):
            return super().forward(x, label) + self.size * torch.sin(3 * x + 1)

    model = ScoreModel(Bumped(sde, data), sde)
    torch.manual_seed(0)
    ScoreMatching()(model, data.sample(200_000).float()).loss.mean().backward()
    assert abs(float(model.net.size.grad)) < 0.01


def test_weights_are_those_of_the_papers():
    vp, edm = VPSDE(), EDMSDE()
    t = torch.tensor([0.05, 0.5, 0.9], dtype=F64)
    model = ScoreModel(Zero(), vp, data_std=0.5)
    snr = vp.log_snr(t).exp()
    want = {
        "simple": torch.ones(3, dtype=F64),
        "likelihood": vp.diffusion(t) ** 2 / vp.sigma(t) ** 2,
        "min_snr": torch.minimum(snr, torch.tensor(5.0)) / snr,
        "edm": 1 + 1 / snr / 0.25,
        "output": torch.ones(3, dtype=F64),  # the target is eps
    }
    assert set(want) == set(WEIGHTINGS)
    for name, values in want.items():
        torch.testing.assert_close(WEIGHTINGS[name](model, t), values)
    # EDM: lambda(sigma) |D - x0|^2 with lambda = (sigma^2 + sd^2)/(sigma sd)^2.
    sigma = torch.tensor([0.1, 1.0, 20.0], dtype=F64)
    model = ScoreModel(Zero(), edm, target="F", data_std=0.5)
    on_x0 = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(WEIGHTINGS["edm"](model, sigma), on_x0 * sigma**2)
    torch.testing.assert_close(WEIGHTINGS["output"](model, sigma), on_x0 * sigma**2)


@pytest.mark.parametrize("target", ["x0", "v", "velocity", "F"])
def test_output_weighting_is_the_squared_error_of_the_network(target):
    sde = FlowSDE() if target == "velocity" else VPSDE()

    class Net(nn.Module):
        def forward(self, x, label):
            self.out = torch.tanh(x)
            return self.out

    model = ScoreModel(Net(), sde, target=target, data_std=0.7)
    x0, eps, t = torch.randn(5, 3), torch.randn(5, 3), torch.linspace(0.1, 0.9, 5)
    loss = ScoreMatching("output")(model, x0, t=t, eps=eps).loss
    a, b = (c[:, None] for c in model.row(t))
    want = (model.net.out - (a * x0 + b * eps)).square().mean(1)
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", ["likelihood", "min_snr", "edm"])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_importance_sampling_estimates_the_uniform_objective(sde, weighting):
    """E_{t ~ p} [Z] f(t) = E_{t uniform} w(t) f(t), here for f = t and f = 1."""
    model = ScoreModel(Zero(), sde)
    objective = ScoreMatching(weighting, times="importance", t_min=0.01)
    torch.manual_seed(0)
    t = objective.draw_times(model, 400_000, "cpu").double()
    constant = float(objective.weights(model, t)[0])
    grid = torch.linspace(0.01, 1, 200_001, dtype=F64)
    weights = WEIGHTINGS[weighting](model, grid)
    assert constant == pytest.approx(float(weights.mean()), rel=2e-3)
    want = float((weights * grid).mean())
    assert constant * float(t.mean()) == pytest.approx(want, rel=0.02)
    assert t.min() >= 0.01 and t.max() <= sde.t_max


def test_importance_sampling_lowers_the_variance_of_the_likelihood_loss():
    sde, data = VPSDE(), correlated_gaussian((2,))
    model = ScoreModel(ExactEps(sde, data), sde)
    spread = {}
    for times in ("uniform", "importance"):
        torch.manual_seed(0)
        objective = ScoreMatching("likelihood", times=times, t_min=1e-4)
        spread[times] = objective(model, data.sample(20_000).float()).loss
    assert float(spread["importance"].std()) < 0.2 * float(spread["uniform"].std())
    gap = float(spread["importance"].mean() - spread["uniform"].mean())
    error = math.hypot(*(float(s.std()) / len(s) ** 0.5 for s in spread.values()))
    assert abs(gap) < 5 * error


def test_discrete_times_are_the_steps_of_the_chain():
    """DDPM's objective: i uniform on 1..T and x_i = sqrt(bar) x_0 + sqrt(1 - bar) eps."""
    sde = TableSDE("cosine", steps=10, t_min=0.05)
    objective = ScoreMatching(times="discrete", steps=10)
    t = objective.draw_times(ScoreModel(Zero(), sde), 50_000, "cpu")
    index = (t * 10).round().long()
    torch.testing.assert_close(t, index / 10)
    counts = torch.bincount(index, minlength=11)
    assert counts[0] == 0 and len(counts) == 11
    assert float((counts[1:] / 5000 - 1).abs().max()) < 0.08

    class Spy(nn.Module):
        def forward(self, x, label):
            self.x = x
            return x

    model, x0, eps = ScoreModel(Spy(), sde), torch.randn(10, 2), torch.randn(10, 2)
    i = torch.arange(1, 11)
    objective(model, x0, t=i / 10, eps=eps)
    mean, std = sde.chain.marginal(x0, i)
    torch.testing.assert_close(model.net.x, mean + std * eps, rtol=1e-4, atol=1e-5)


def test_lognormal_times_have_edms_distribution():
    for sde in (EDMSDE(), VPSDE()):
        objective = ScoreMatching(times="lognormal", t_min=1e-6, log_sigma_mean=-0.5)
        torch.manual_seed(0)
        t = objective.draw_times(ScoreModel(Zero(), sde), 50_000, "cpu").double()
        log_sigma = -0.5 * sde.log_snr(t)
        assert float(log_sigma.mean()) == pytest.approx(-0.5, abs=0.02)
        assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.02)


def test_stratified_times_fill_the_interval_evenly():
    objective = ScoreMatching(stratified=True)
    t = objective.draw_times(ScoreModel(Zero(), VPSDE()), 64, "cpu")
    ranks = ((t - 1e-3) / (1 - 1e-3) * 64).floor().long()
    assert sorted(ranks.tolist()) == list(range(64))


def test_t_min_and_reductions():
    model, x0 = ScoreModel(Zero(), VPSDE()), torch.randn(2000, 6)
    assert float(ScoreMatching(t_min=1e-5).draw_times(model, 20_000, "cpu").min()) < 1e-3
    t, eps = torch.full((2000,), 0.5), torch.randn(2000, 6)
    mean = ScoreMatching()(model, x0, t=t, eps=eps)
    half = ScoreMatching(reduction="half_sum")(model, x0, t=t, eps=eps)
    torch.testing.assert_close(half.loss, 3 * mean.loss)
    torch.testing.assert_close(mean.error, eps.square().mean(1))


def test_trivial_error_is_that_of_the_best_linear_guess():
    sde, t, sd = VPSDE(), torch.tensor(0.3), 0.5
    x0, eps = sd * torch.randn(200_000), torch.randn(200_000)
    x = sde.alpha(t) * x0 + sde.sigma(t) * eps
    slope = (x * eps).mean() / (x * x).mean()
    error = (eps - slope * x).square().mean()
    assert float(trivial_error(sde, t, sd)) == pytest.approx(float(error), rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weighting": "simpel"}, "loss.weighting 'simpel' is unknown"),
        ({"times": "normal"}, "loss.times"),
        ({"reduction": "sum"}, "loss.reduction"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatching(**arguments)
