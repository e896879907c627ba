"""Variational bounds: closed forms, above the flow, of learned variances; levels."""

import math

import pytest
import torch
from conftest import correlated_gaussian
from known_data import F64

from score_sde import VPSDE, Gaussian, ScoreModel, TableSDE, sample
from score_sde.likelihood import continuous_bound, variational_bound
from score_sde.likelihood.levels import log_level_probability
from score_sde.losses import ScoreMatching


class Nodes:
    """A noise source that draws given values, one row a sample, again and again."""

    def __init__(self, values):
        self.values = values

    def __call__(self, seeds, shape, dtype, device):
        return self

    def draw(self, t=None, s=None):
        return self.values


@pytest.mark.parametrize("variance", ["posterior", "transition", 0.3])
@pytest.mark.parametrize("table", ["linear", "cosine"])
def test_the_bound_of_a_chain_is_its_closed_form(table, variance):
    """One-dimensional Gaussian data: E_eps of each term is a number, to 1e-6 of the sum.

    With D = k x_t the guess of the mean is off by (weight of x_0) (x_0 - k x_t), whose square has
    the mean (x_0 (1 - k alpha))^2 + (k sigma)^2. Gauss-Hermite nodes as noise take it exactly.
    """
    import numpy as np

    sde = TableSDE(table=table, steps=30)
    var, x0 = 0.3, 0.7
    score = Gaussian(torch.zeros(1), var).score(sde)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(8))
    weights = weights / weights.sum()
    x = torch.full((8, 1), x0, dtype=F64)
    bound = variational_bound(
        sde, score, x, steps=30, variance=variance, noise=Nodes(nodes[:, None])
    )
    found = float((bound.nats * weights).sum())

    betas, bars = sde.chain.betas, sde.chain.alpha_bars
    before = torch.cat([torch.ones(1, dtype=F64), bars[:-1]])
    tilde = betas * (1 - before) / (1 - bars)
    k = bars.sqrt() * var / (bars * var + 1 - bars)
    off = x0**2 * (1 - k * bars.sqrt()) ** 2 + k**2 * (1 - bars)  # E (x_0 - D)^2
    share = {"posterior": 0.0, "transition": 1.0}.get(variance, variance)
    weight = before.sqrt() * betas / (1 - bars)
    total = 0.5 * (1 - bars[-1] + bars[-1] * x0**2 - 1 - (1 - bars[-1]).log())  # L_T
    for i in range(1, 30):
        p_var = betas[i] ** share * tilde[i] ** (1 - share)
        total += 0.5 * (
            tilde[i] / p_var - 1 - (tilde[i] / p_var).log() + weight[i] ** 2 * off[i] / p_var
        )
    first = betas[0] ** share * tilde[1] ** (1 - share)
    total += 0.5 * (off[0] / first + (2 * math.pi * first).log())
    assert found == pytest.approx(float(total), abs=1e-6)
    assert bound.steps.shape == (29, 8) and bound.nfe == 30


def test_bounds_are_above_the_flow_and_close():
    """-log p <= continuous bound <= chain bound, up to their errors, on exact data."""
    sde, data = VPSDE(), correlated_gaussian((3,))
    x = data.sample(1, 5).expand(2000, 3)
    score = data.score(sde)
    exact = -float(data.log_prob(x[0:1]))
    fine = continuous_bound(sde, score, x, seeds=range(2000))
    error = float(fine.nats.std()) / math.sqrt(2000)
    assert exact - 3 * error < float(fine.nats.mean()) < exact + 0.05 + 3 * error
    spread = fine.steps.sum(0).std()
    assert float(fine.stderr.mean()) == pytest.approx(float(spread), rel=0.5)
    chain = variational_bound(sde, score, x, steps=500, variance="transition", seeds=range(2000))
    error = float(chain.nats.std()) / math.sqrt(2000)
    assert exact - 3 * error < float(chain.nats.mean()) < exact + 0.5
    assert "L_T" in str(chain)


def test_level_probabilities_sum_to_one_and_are_exact_in_the_tails():
    levels = torch.linspace(-1, 1, 256, dtype=F64)[:, None]
    for mean, std in ((0.1, 0.3), (-0.99, 0.001), (0.5, 3.0)):
        log_p = log_level_probability(levels, torch.tensor(mean, dtype=F64),
                                      torch.tensor(std, dtype=F64), 256, -1.0, 2.0)  # fmt: skip
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    far = log_level_probability(levels[:129][-1:], torch.tensor(-1.0, dtype=F64),
                                torch.tensor(0.01, dtype=F64), 256, -1.0, 2.0)  # fmt: skip
    assert -5100 < float(far) < -4900  # 100 standard deviations: finite, and of the right size


# Learned variances


class TwoHeads(torch.nn.Module):
    """eps of Gaussian data of variance var, and a given v in the second half of the channels."""

    def __init__(self, var, v, sde):
        super().__init__()
        self.var, self.sde = var, sde
        self.v = torch.nn.Parameter(torch.tensor(float(v)))

    def forward(self, x, label):
        t = (label / 999).double()
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        eps = x * (sigma / (alpha**2 * self.var + sigma**2)).reshape(-1, 1, 1, 1)
        return torch.cat([eps, (2 * self.v - 1).expand_as(x)], 1).float()


def test_learned_variance_lies_between_and_is_used_by_ancestral_and_bounds():
    sde, seeds = TableSDE(steps=50), range(8)
    x = 0.5 * torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    grid = [1.0, 0.6, 0.3, 0.02]
    for v, same in ((0.0, "posterior"), (1.0, "transition"), (0.4, 0.4)):
        model = ScoreModel(TwoHeads(0.25, v, sde), sde, learned_variance=True)
        learned, fixed = (
            sample(sde, model, (8, 1, 2, 2), method="ancestral", variance=variance, grid=grid,
                   seeds=seeds)
            for variance in ("learned", same)
        )  # fmt: skip
        torch.testing.assert_close(learned, fixed, rtol=1e-4, atol=1e-5)
        bounds = [
            variational_bound(sde, model, x, steps=50, variance=variance, seeds=seeds).nats
            for variance in ("learned", same)
        ]
        torch.testing.assert_close(*bounds, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="no learned variances"):
        sample(sde, ScoreModel(TwoHeads(0.25, 0.5, sde), sde), (8, 1, 2, 2), method="ancestral",
               variance="learned", grid=grid)  # fmt: skip
    with pytest.raises(ValueError, match="trained with model.learned_variance"):
        score = correlated_gaussian((2,)).score(sde)
        sample(sde, score, (8, 2), method="ancestral", variance="learned", grid=grid)


def test_hybrid_loss_is_the_bound_and_trains_the_variance_alone():
    """Its expectation over steps is the chain's bound; its gradient finds the best variance."""
    sde, n = TableSDE(steps=25), 25
    x0 = 0.5 * torch.randn(25, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(TwoHeads(0.25, 0.5, sde), sde, learned_variance=True)
    plain = ScoreMatching(times="discrete", steps=n)
    hybrid = ScoreMatching(times="discrete", steps=n, variance_weight=0.001)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    terms = (hybrid(model, x0, t, eps).loss - plain(model, x0, t, eps).loss) / (0.001 * n)
    for i in range(n):  # the same x_0 and noise at step i
        bound = variational_bound(sde, model, x0[i : i + 1], steps=n, variance="learned",
                                  noise=Nodes(eps[i : i + 1]))  # fmt: skip
        want = bound.decoder[0] if i == 0 else bound.steps[i - 1, 0]
        assert float(terms[i].detach()) == pytest.approx(
            float(want) / (4 * math.log(2)), rel=2e-3, abs=1e-5
        )

    def best(weight):
        """v after gradient descent, the mean being exact: the posterior plus what x_0 adds."""
        model.net.v.data.fill_(0.5)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            weight(model, x0, t, eps).loss.mean().backward()
            optimizer.step()
        return float(model.net.v.detach())

    found = best(hybrid)
    losses = []
    for v in (found - 0.15, found, found + 0.15):
        model.net.v.data.fill_(v)
        losses.append(float(hybrid(model, x0, t, eps).loss.mean().detach()))
    assert losses[1] < losses[0] and losses[1] < losses[2]
    with pytest.raises(ValueError, match="needs loss.times=discrete"):
        ScoreMatching(variance_weight=0.001)
