"""Likelihoods against exact densities: the flow, its truncation, its noise, the bounds, latents."""

import math

import pytest
import torch
from conftest import PROCESSES, correlated_gaussian
from torchdiffeq import odeint

from score_sde import (
    VESDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    SubVPSDE,
    TableSDE,
    log_likelihood,
    sample,
)
from score_sde.likelihood import (
    continuous_bound,
    decode,
    dequantize,
    encode,
    interpolate,
    variational_bound,
)
from score_sde.likelihood.bounds import log_level_probability
from score_sde.losses import ScoreMatching
from score_sde.ode.adaptive import StoppedError, integrate_each
from score_sde.ode.clock import Clock
from score_sde.ode.divergence import score_and_traces
from score_sde.ode.frames import Frame
from score_sde.ode.multistep import integrate
from score_sde.sampling import ODEError

F64 = torch.float64
SONG = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}


def ring(modes=8, std=0.056):
    angle = torch.arange(modes, dtype=F64) * 2 * math.pi / modes
    means = 0.7 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1
    return GaussianMixture(torch.ones(modes), means, std**2)


def grid25(seed=0):
    """25 stretched and turned components, their axes from 0.018 to 0.14."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.linspace(-0.7, 0.7, 5, dtype=F64)
    means = torch.cartesian_prod(places, places)
    stds = 0.018 * 8 ** torch.rand(25, 2, generator=generator, dtype=F64)
    angle = math.pi * torch.rand(25, generator=generator, dtype=F64)
    axes = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(25, 2, 2)
    weights = 0.5 + torch.rand(25, generator=generator)
    return GaussianMixture(weights, means, axes @ torch.diag_embed(stds**2) @ axes.mT)


def clusters(dim=64, k=10, smallest=0.03, seed=0):
    """Full covariances with a wide spectrum around far means, of overall std 0.5."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.3 * torch.randn(k, dim, generator=generator, dtype=F64)
    axes = torch.linalg.qr(torch.randn(k, dim, dim, generator=generator, dtype=F64))[0]
    stds = torch.logspace(math.log10(0.9), math.log10(smallest), dim, dtype=F64)
    weights = torch.rand(k, generator=generator) + 0.3
    return GaussianMixture(weights, means, (axes * stds**2) @ axes.mT)


DATA = {"ring": ring(), "grid25": grid25(), "clusters": clusters()}


def at_t_min(data, sde, x):
    """log density of x_{t_min}/alpha at x."""
    t = torch.tensor(sde.t_min, dtype=F64)
    return data.log_prob(sde.alpha(t) * x, sde, t) + data.dim * sde.alpha(t).log()


class Counting:
    def __init__(self, score):
        self.score, self.calls = score, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.score(x, t)


# The flow


@pytest.mark.parametrize("process", ["vp", "subvp", "ve", "edm", "flow", "cosine", "user"])
def test_a_gaussian_in_its_own_frame_stands_still(process):
    """Nothing is left to integrate, so the result is exact whatever the number of evaluations."""
    sde, data = PROCESSES[process], correlated_gaussian((2, 3))
    x = data.sample(5, 0)
    result = log_likelihood(sde, data.score(sde), x, nfe=8, gaussian=data, truncation="none")
    torch.testing.assert_close(result.nats, at_t_min(data, sde, x), rtol=0, atol=2e-5)
    assert float(result.solver_error.max()) < 1e-10 and result.nfe == 8
    t = torch.tensor([sde.t_min, sde.t_max], dtype=F64)
    want = data.flow(sde, sde.alpha(t[0]) * x, t[0], t[1])
    torch.testing.assert_close(result.latent, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
@pytest.mark.parametrize("name", ["ring", "grid25", "clusters"])
def test_64_evaluations_give_a_millinat(process, name):
    sde, data = SONG[process], DATA[name]
    x, score = data.sample(32, 1), Counting(data.score(sde))
    frame = {"gaussian": Gaussian(data.mean(), data.covariance())} if data.dim > 2 else {}
    common = {"divergence": "exact", "truncation": "none", "check": 0}
    result = log_likelihood(sde, score, x, **common, **frame)
    error = (result.nats - at_t_min(data, sde, x)).abs()
    assert float(error.mean()) < 1e-3, float(error.mean())
    assert result.nfe == score.calls == 64
    # The estimate of the error is of the size of the error.
    assert 0.02 < float(result.solver_error.mean() / error.mean()) < 50


def test_thin_data_take_128_evaluations():
    """A spread of 0.007 among 0.5: the flow must start below it, and step finely there."""
    sde, data = VPSDE(), clusters(k=16, smallest=0.007)
    x = data.sample(6, 1)
    frame = Gaussian(data.mean(), data.covariance())
    result = log_likelihood(sde, data.score(sde), x, nfe=128, t_min=1e-5, gaussian=frame)
    assert float((result.nats - data.log_prob(x)).abs().mean()) < 1e-3


@pytest.mark.parametrize("process", ["vp", "subvp"])
@pytest.mark.parametrize("name", ["ring", "grid25"])
def test_adaptive_solves_need_fewer_evaluations_than_in_plain_time(process, name):
    sde, data = SONG[process], DATA[name]
    x, most = data.sample(16, 1), dopri5_in_plain_time(sde, data, data.sample(16, 1))
    result = log_likelihood(sde, data.score(sde), x, solver="dopri5", truncation="none")
    error = (result.nats - at_t_min(data, sde, x)).abs()
    assert float(error.mean()) < 2e-3
    # Every sample has its own steps, and knows its error: that of its steps, which grows where
    # neighbouring flows part (between the modes of a grid, up to twenty times).
    assert bool((error < 20 * result.solver_error + 1e-4).all())
    assert float(error.median()) < 2 * float(result.solver_error.median())
    assert result.solver_error.max() < 2e-3
    assert result.nfe <= most, (result.nfe, most)


def test_adaptive_solves_do_not_depend_on_their_batch():
    sde, data = SONG["vp"], DATA["ring"]
    x, setting = data.sample(5, 1), {"solver": "dopri5", "data_std": DATA["ring"].std()}
    whole, alone = (log_likelihood(sde, data.score(sde), part, **setting) for part in (x, x[3:4]))
    torch.testing.assert_close(alone.nats[0], whole.nats[3], rtol=1e-10, atol=1e-10)


def dopri5_in_plain_time(sde, data, x):
    """Evaluations that torchdiffeq needs for the flow and its divergence in t, at 1e-5."""
    calls = 0
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=F64)

    def plain(t, state):
        nonlocal calls
        calls += 1
        found = score_and_traces(data.score(sde), state[:, :-1], t, None)
        drift = sde.reverse(lambda x, t: found.score, 0.0).drift(state[:, :-1], t)
        rate = data.dim * sde.derivatives(t)[0] / sde.alpha(t)
        divergence = rate - 0.5 * sde.diffusion(t) ** 2 * found.traces[0]
        return torch.cat([drift, divergence[:, None]], 1)

    start = torch.cat([x * sde.alpha(ends[0]), torch.zeros(len(x), 1, dtype=F64)], 1)
    options = {"step_t": ends}
    odeint(plain, start, ends, rtol=1e-5, atol=1e-5, method="dopri5", options=options)
    return calls


class Sine:
    """y' = -u y in the first columns, 5 cos(5 u) in the last, whose solutions are known."""

    def __init__(self):
        self.visited = []

    def take(self, rows):
        return self

    def at(self, u):
        def slope(y, u):
            self.visited += u.tolist()
            return torch.cat([-u[:, None] * y[:, :-1], 5 * torch.cos(5 * u)[:, None]], 1)

        return [lambda y, row=row: slope(y, row) for row in u]


@pytest.mark.parametrize("start, end", [(0.0, 2.0), (-1.0, 1.5)])
def test_adaptive_steps_are_as_exact_as_they_are_asked_to_be(start, end):
    """Steps are in proportion to tolerance^(-1/5)."""
    state, counts = torch.tensor([[1.0, 2.0, 0.0]], dtype=F64), []
    exact = state[:, :2] * math.exp((start**2 - end**2) / 2)
    growth = torch.tensor([[math.sin(5 * end) - math.sin(5 * start)]], dtype=F64)
    exact = torch.cat([exact, growth], 1)
    for tolerance in (1e-4, 1e-9):
        field = Sine()
        found = integrate_each(field, state, start, end, tolerance, tolerance, 10_000, (2, 1))
        worst = float((found.state - exact).abs().max())
        assert worst < 10 * tolerance
        assert worst < float(found.change.abs().max()) + tolerance
        assert start <= min(field.visited) and max(field.visited) <= end
        counts.append(len(field.visited))
    assert counts[1] < 2 * 1e5**0.2 * counts[0], counts


def test_adaptive_solves_end_in_a_sentence():
    class Broken(Sine):
        def __init__(self, value):
            self.value = value

        def at(self, u):
            return [lambda y, row=row: self.value * (row[:, None] > 0.5) + 0 * y for row in u]

    state = torch.ones(1, 2, dtype=F64)
    with pytest.raises(StoppedError, match="not finite"):
        integrate_each(Broken(math.inf), state, 0.0, 1.0, 1e-5, 1e-5, 10_000)
    with pytest.raises(StoppedError, match="step size vanishes"):
        integrate_each(Broken(1e20), state, 0.0, 1.0, 1e-12, 1e-5, 10_000)
    sde, data = SONG["vp"], ring()
    with pytest.raises(ODEError, match="stopped at t=.* after 20 evaluations"):
        log_likelihood(sde, data.score(sde), data.sample(4, 0), solver="dopri5", max_evaluations=20)


def test_the_adams_method_has_its_order():
    """On dz/du = -u z, d log p/du = cos(u) with known solutions."""

    def slope(y, u):
        return torch.cat([-u * y[:, :2], u.cos().expand(1, 1)], 1)

    state = torch.tensor([[1.0, 2.0, 0.0]], dtype=F64)
    growth = torch.tensor([[math.sin(2)]], dtype=F64)
    exact = torch.cat([state[:, :2] * math.exp(-2), growth], 1)
    for order in (2, 3):
        errors = []
        for steps in (64, 128):
            nodes = torch.linspace(0, 2, steps + 1, dtype=F64)
            error = (integrate(slope, state, nodes, order).state - exact).abs()
            errors.append([error[:, :2].max(), error[:, 2]])
        rates = [math.log2(float(a / b)) for a, b in zip(*errors, strict=True)]
        assert rates[0] == pytest.approx(order + 1, abs=0.3), rates
        assert rates[1] > order + 0.7


def test_clock_and_frame_are_their_own_inverses():
    clock = Clock(0.02, 1.0)
    for s in (1e-4, 0.3, 150.0):
        u, h = torch.tensor(clock.u(s), dtype=F64), 1e-6
        assert float(clock.level(u)) == pytest.approx(s, rel=1e-9)
        slope = (clock.level(u + h) - clock.level(u - h)) / (2 * h)
        assert float(clock.speed(torch.tensor(s))) == pytest.approx(float(slope), rel=1e-5)
    data, s = correlated_gaussian((3,)), torch.tensor(0.4, dtype=F64)
    variances, axes = torch.linalg.eigh(data.covariance())
    frame = Frame(data.mean(), variances, axes)
    y = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(frame.to_y(frame.to_z(y, s), s), y)
    torch.testing.assert_close(frame.to_y(frame.to_z(y, s.expand(4)), s.expand(4)), y)
    jacobian = torch.func.jacfwd(lambda z: frame.to_y(z[None], s)[0])(y[0])
    assert frame.log_scale(s, 3) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]))


# What surrounds it


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_truncation_is_corrected(process):
    """From t_min to 0: p_{t_min} is not the data's density, the correction makes it so."""
    sde, data = SONG[process], ring()
    x = data.sample(32, 1)
    raw = log_likelihood(sde, data.score(sde), x, truncation="none").nats - data.log_prob(x)
    better = log_likelihood(sde, data.score(sde), x).nats - data.log_prob(x)
    assert float(raw.abs().mean()) > 20 * float(better.abs().mean())
    assert float(better.abs().mean()) < 1e-4


def test_the_bound_of_the_truncation_is_its_closed_form():
    """Gaussian data, thin and thick beside s_min: with k = lambda/(lambda + v) and v = s_min^2,

    E log p_min(y) + (1 - E (x - D)^2 / v) / 2,  E (x - D)^2 = (1 - k)^2 x^2 + k^2 v
    """
    variances = torch.tensor([0.5, 0.1, 0.005], dtype=F64) ** 2
    data, sde = Gaussian(torch.zeros(3), variances), VPSDE()
    x = data.sample(1, 3)
    result = log_likelihood(sde, data.score(sde), x.expand(4000, 3), truncation="bound", nfe=16,
                            gaussian=data, seeds=range(4000))  # fmt: skip
    t = torch.tensor(sde.t_min, dtype=F64)
    v = (sde.sigma(t) / sde.alpha(t)) ** 2
    wide, k = variances + v, variances / (variances + v)
    want = -0.5 * ((2 * math.pi * wide).log() + (x**2 + v) / wide)
    want = want + 0.5 * (1 - ((1 - k) ** 2 * x**2 + k**2 * v) / v)
    found, error = float(result.nats.mean()), float(result.nats.std()) / math.sqrt(4000)
    assert found == pytest.approx(float(want.sum()), abs=4 * error) and error < 0.03
    assert float(want.sum()) < float(data.log_prob(x)) - 0.1


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_prior_matched_to_a_mean(process):
    """The process's own prior has mean 0; data far from 0 tell the difference."""
    sde, data = SONG[process], Gaussian(torch.full((4,), 2.0), 0.25)
    x = data.sample(16, 1)
    matched, own = (
        log_likelihood(sde, data.score(sde), x, prior=prior, truncation="none").nats
        - at_t_min(data, sde, x)
        for prior in ("matched", "sde")
    )
    assert float(matched.abs().mean()) < 1e-5
    assert 3e-3 < float(own.abs().mean()) < 0.5


# Hutchinson


def test_one_evaluation_serves_score_and_divergence():
    data, sde = correlated_gaussian((1, 2, 3)), VPSDE()
    t = torch.tensor(0.3, dtype=F64)
    x = torch.randn(5, 1, 2, 3, dtype=F64)
    score = Counting(data.score(sde))
    exact = score_and_traces(score, x, t, None)
    assert score.calls == 1
    jacobian = torch.func.jacrev(lambda v: data.score(sde)(v[None], t)[0])(x[0]).reshape(6, 6)
    torch.testing.assert_close(exact.traces[0], jacobian.trace().expand(5))
    torch.testing.assert_close(exact.score, data.score(sde)(x, t))
    probes = torch.randn(7, 5, 1, 2, 3, dtype=F64)
    found = score_and_traces(score, x, t, probes).traces
    flat = probes.flatten(2)
    torch.testing.assert_close(found, torch.einsum("kbi,ij,kbj->kb", flat, jacobian, flat))
    assert score.calls == 2


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_interval_covers_the_exact_value(kind):
    """200 repetitions with probes of their own: 95 % intervals hold 90 to 99 % of the time."""
    sde, data = VPSDE(), clusters(dim=16, k=3, smallest=0.05)
    x = data.sample(1, 5).expand(200, 16)
    frame = Gaussian(data.mean(), data.covariance())
    result = log_likelihood(sde, data.score(sde), x, divergence="hutchinson", probes=8, nfe=64,
                            probe_kind=kind, truncation="none", gaussian=frame,
                            seeds=range(200))  # fmt: skip
    low, high = result.interval(0.95)
    exact = at_t_min(data, sde, x)
    covered = float(((low <= exact) & (exact <= high)).double().mean())
    assert 0.90 <= covered <= 0.99, covered
    assert float(result.stderr.mean()) > 50 * float(result.solver_error.mean())
    bias = float((result.nats - exact).mean()) / (float(result.nats.std()) / math.sqrt(200))
    assert abs(bias) < 3


def test_a_likelihood_depends_on_its_seed_alone():
    sde, data = VPSDE(), clusters(dim=8, k=3, smallest=0.1)
    x = data.sample(6, 5)
    setting = {"divergence": "hutchinson", "data_std": 0.5, "nfe": 16}
    whole = log_likelihood(sde, data.score(sde), x, seeds=range(6), **setting)
    parts = log_likelihood(sde, data.score(sde), x, seeds=range(6), batch_size=4, **setting)
    one = log_likelihood(sde, data.score(sde), x[2:3], seeds=[2], **setting)
    torch.testing.assert_close(whole.nats, parts.nats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.nats[2:3], one.nats, rtol=1e-12, atol=1e-12)
    other = log_likelihood(sde, data.score(sde), x, seeds=range(1, 7), **setting)
    assert float((other.nats - whole.nats).abs().min()) > 1e-6


def test_results_say_what_they_are():
    sde, data = VPSDE(), correlated_gaussian((1, 2, 2))
    x = data.sample(3, 5)
    unit = log_likelihood(sde, data.score(sde), x, levels=256, scale=1.0, nfe=16)
    signed = log_likelihood(sde, data.score(sde), x, levels=256, scale=2.0, nfe=16)
    assert unit.offset == 8 and signed.offset == 7
    torch.testing.assert_close(signed.bits_per_dim, -signed.nats / (4 * math.log(2)) + 7)
    assert "bits/dim" in str(unit) and "truncation=corrected" in str(unit)
    plain = log_likelihood(sde, data.score(sde), x, nfe=16)
    assert "nats over 3 samples" in str(plain)
    with pytest.raises(ValueError, match="bits/dim needs discrete levels"):
        _ = plain.bits_per_dim


def test_bits_per_dim_do_not_depend_on_the_scaling():
    """The same data in [0, 1] and [-1, 1]: densities differ by 2^D, probabilities do not."""
    unit = Gaussian(torch.full((4,), 0.5), 0.04)
    signed = Gaussian(torch.zeros(4), 0.16)
    x = unit.sample(8, 1)
    sde = VPSDE()
    a = log_likelihood(sde, unit.score(sde), x, levels=256, scale=1.0)
    b = log_likelihood(sde, signed.score(sde), 2 * x - 1, levels=256, scale=2.0)
    torch.testing.assert_close(a.bits_per_dim, b.bits_per_dim, rtol=0, atol=1e-3)


def test_dequantised_levels_fill_their_cells():
    levels = torch.tensor([[-1.0, 1 / 255, 1.0]]).expand(4000, 3)
    x = dequantize(levels, 256, -1.0, 2.0, seeds=range(4000))
    for j, index in enumerate((0, 128, 255)):
        u = (x[:, j].double() + 1) / 2 * 256 - index
        assert 0 <= float(u.min()) and float(u.max()) <= 1
        assert float(u.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(u.var()) == pytest.approx(1 / 12, rel=0.06)
    again = dequantize(levels[:5], 256, -1.0, 2.0, seeds=range(5))
    torch.testing.assert_close(again, x[:5], rtol=0, atol=0)


# Bounds


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


# Latents


@pytest.mark.parametrize("process", ["vp", "subvp", "ve", "edm", "flow"])
def test_encoding_is_inverted_and_follows_the_exact_flow(process):
    sde, data = PROCESSES[process], correlated_gaussian((2, 2))
    x = data.sample(4, 3)
    latent = encode(sde, data.score(sde), x, nfe=96, data_std=0.6)
    t = torch.tensor([sde.t_min, sde.t_max], dtype=F64)
    want = data.flow(sde, sde.alpha(t[0]) * x, t[0], t[1])
    torch.testing.assert_close(latent, want, rtol=1e-4, atol=1e-4 * sde.prior_std())
    back = decode(sde, data.score(sde), latent, nfe=96, data_std=0.6)
    torch.testing.assert_close(back, x, rtol=0, atol=2e-4)


def test_interpolation_keeps_to_the_sphere():
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    path = interpolate(a, b, 7)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    norms = path.flatten(1).norm(dim=1)
    ends = torch.stack([a.norm(), b.norm()])
    assert float(norms.min()) > 0.999 * float(ends.min())
    steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    assert float(steps.max() / steps.min()) < 1.1
    torch.testing.assert_close(interpolate(a, a, 3)[1], a)


# Bad input


def test_bad_input_is_explained():
    sde, data = VPSDE(), correlated_gaussian((2,))
    score, x = data.score(sde), data.sample(3, 1)
    cases = [
        ({"probes": 0}, "probes must be at least 1"),
        ({"divergence": "approximate"}, "divergence must be .auto., .exact. or"),
        ({"solver": "rk4"}, "solver must be .adams. or .dopri5."),
        ({"nfe": 3}, "nfe must be at least 8"),
        ({"t_min": -1.0}, "t_min must be greater than 0"),
        ({"seeds": [1]}, "3 samples need 3 seeds"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"data_std": -1.0}, "data_std must be greater than 0"),
        ({"levels": 1}, "levels must be at least 2"),
        ({"rtol": -1}, "rtol must be greater than 0"),
        ({"atol": math.nan}, "atol must be finite"),
        ({"seeds": 4}, "seeds must be a list"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            log_likelihood(sde, score, x, **options)
    states = [
        (torch.zeros(3, 2, dtype=torch.uint8), "floating-point values"),
        (x * math.nan, "not finite in 3 of 3"),
        (torch.zeros(2), "two axes"),
    ]
    for bad, message in states:
        with pytest.raises(ValueError, match=message):
            log_likelihood(sde, score, bad)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        log_likelihood(sde, lambda x, t: score(x.detach(), t), x)
    with pytest.raises(ODEError, match="not finite"):
        log_likelihood(sde, lambda x, t: score(x, t) * math.nan, x, prior="sde")
    with pytest.raises(ODEError, match="after 20 evaluations"):
        log_likelihood(sde, score, x, solver="dopri5", max_evaluations=20)
    with pytest.raises(ValueError, match="not on 256 levels"):
        variational_bound(sde, score, x, levels=256)
    with pytest.raises(ValueError, match="learned variances"):
        variational_bound(sde, score, x, variance="learned")


def test_dropout_is_refused():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.1)

        def forward(self, x, t):
            return self.drop(x)

    model = ScoreModel(Net(), VPSDE())
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"score.eval\(\)"):
        log_likelihood(VPSDE(), model, x)
    log_likelihood(VPSDE(), model.eval(), x, prior="sde", nfe=8)


def test_flow_counts_and_keeps_dtype():
    sde, data = VPSDE(), correlated_gaussian((2,))
    x = data.sample(3, 1).float()
    result = log_likelihood(sde, data.score(sde), x)
    assert result.latent.dtype == torch.float32 and result.nats.dtype == F64
    assert isinstance(result.nfe, int)
