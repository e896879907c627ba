"""Likelihoods against exact densities: the flow, its truncation, its noise, latents."""

import math

import pytest
import torch
from conftest import PROCESSES, correlated_gaussian
from known_data import DATA, F64, SONG, Counting, at_t_min, clusters, ring

from score_sde import VPSDE, Gaussian, ScoreModel, log_likelihood
from score_sde.likelihood import decode, dequantize, encode, interpolate, variational_bound
from score_sde.ode.divergence import score_and_traces
from score_sde.sampling import ODEError

# The flow


@pytest.mark.parametrize("process", ["vp", "subvp", "ve", "edm", "flow", "cosine", "user"])
def test_a_gaussian_in_its_own_frame_stands_still(process):
    """Nothing is left to integrate, so the result is exact whatever the number of evaluations."""
    sde, data = PROCESSES[process], correlated_gaussian((2, 3))
    x = data.sample(5, 0)
    result = log_likelihood(sde, data.score(sde), x, nfe=8, gaussian=data, truncation="none")
    torch.testing.assert_close(result.nats, at_t_min(data, sde, x), rtol=0, atol=2e-5)
    assert float(result.solver_error.max()) < 1e-9 and result.nfe == 8
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
        ({"seeds": [1]}, "1 seeds do not fit 3 samples"),
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
        (x * math.nan, "x: .* values are not finite"),
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
