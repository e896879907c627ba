"""Processes: closed forms, what is derived from them, and DDPM as their discretisation."""

import math
from dataclasses import dataclass

import pytest
import torch
from conftest import PROCESSES, correlated_gaussian, times_of
from hypothesis import given, settings
from hypothesis import strategies as st

from score_sde import SDE, VESDE, VPSDE, CosineSDE, SubVPSDE, TableSDE
from score_sde.processes.chain import BETA_TABLES, Chain, cosine_betas, linear_betas
from score_sde.processes.expand import expand

F64 = torch.float64


def test_derivatives_equal_automatic_differentiation(sde):
    t = times_of(sde) + 1.37e-4  # inside the segments of a table
    dalpha, dsigma = sde.derivatives(t)
    want_alpha, want_sigma = SDE.derivatives(sde, t)
    torch.testing.assert_close(dalpha, want_alpha, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dsigma, want_sigma, rtol=1e-10, atol=1e-12)


def test_derived_float32_stays_float32():
    class Plain(VPSDE):
        derivatives = SDE.derivatives

    t = torch.tensor(0.3)
    assert all(d.dtype == torch.float32 for d in Plain().derivatives(t))
    x = torch.ones(2, 3)
    assert Plain().drift(x, t).dtype == torch.float32


def test_song_constants():
    """2011.13456, eqs. 29-33: drift, diffusion and kernel of VP, sub-VP and VE."""
    t, x = torch.tensor([0.01, 0.3, 1.0], dtype=F64), torch.ones(3, 2, dtype=F64)
    beta = 0.1 + t * 19.9
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    vp, subvp, ve = VPSDE(), SubVPSDE(), VESDE()
    for sde in (vp, subvp):
        torch.testing.assert_close(sde.drift(x, t), -0.5 * beta[:, None] * x)
        torch.testing.assert_close(sde.alpha(t), torch.exp(-0.5 * integral))
    torch.testing.assert_close(vp.diffusion(t), beta.sqrt())
    torch.testing.assert_close(vp.sigma(t), (1 - torch.exp(-integral)).sqrt())
    torch.testing.assert_close(subvp.diffusion(t) ** 2, beta * (1 - torch.exp(-2 * integral)))
    torch.testing.assert_close(subvp.sigma(t), 1 - torch.exp(-integral))
    torch.testing.assert_close(ve.sigma(t), 0.01 * 5000**t)
    torch.testing.assert_close(ve.diffusion(t), ve.sigma(t) * math.sqrt(2 * math.log(5000)))
    assert float(ve.drift(x, t).abs().max()) == 0
    assert (vp.t_min, ve.t_min, vp.prior_std()) == (1e-3, 1e-5, 1.0)
    assert ve.prior_std() == pytest.approx(50.0)


def test_sigma_is_accurate_in_float32_near_zero(sde):
    t = torch.tensor([1e-5, 1e-4, 1e-3]) if sde.t_max <= 1 else torch.tensor([2e-3, 1e-2])
    torch.testing.assert_close(sde.sigma(t).double(), sde.sigma(t.double()), rtol=2e-5, atol=0)


def test_transition_satisfies_chapman_kolmogorov(sde):
    times = times_of(sde, 12)
    s, u, t = times[0:4], times[4:8], times[8:12]
    a_su, b_su = sde.transition(s, u)
    a_ut, b_ut = sde.transition(u, t)
    a_st, b_st = sde.transition(s, t)
    torch.testing.assert_close(a_su * a_ut, a_st)
    torch.testing.assert_close(a_ut**2 * b_su**2 + b_ut**2, b_st**2)
    # From clean data it is the marginal.
    torch.testing.assert_close(a_st**2 * sde.sigma(s) ** 2 + b_st**2, sde.sigma(t) ** 2)


def test_posterior_is_bayes_rule(sde):
    """log q(x_s | x_t, x_0) = log p(x_t | x_s) + log p(x_s | x_0) + const, as quadratics in x_s."""
    times = times_of(sde, 6)
    s, t = times[:3], times[3:]
    x0, x = torch.tensor([[0.7], [-0.2], [0.1]], dtype=F64), torch.tensor([[1.5]] * 3, dtype=F64)
    mean, std = sde.posterior(x0, x, s, t)
    a, b = (c[:, None] for c in sde.transition(s, t))
    precision = a**2 / b**2 + 1 / sde.sigma(s)[:, None] ** 2
    linear = a * x / b**2 + sde.alpha(s)[:, None] * x0 / sde.sigma(s)[:, None] ** 2
    torch.testing.assert_close(std**-2, precision, rtol=1e-8, atol=0)
    torch.testing.assert_close(mean, linear / precision, rtol=1e-8, atol=1e-12)


def test_moments_of_the_forward_sde_are_the_closed_form():
    """m' = f m and v' = 2 f v + g^2, integrated from t_min, reach alpha and sigma^2."""
    for name in ("vp", "subvp", "ve", "flow"):
        sde = PROCESSES[name]
        end = 0.6 * sde.t_max
        grid = torch.linspace(math.log(sde.t_min), math.log(end), 4001, dtype=F64).exp()
        mean, variance = sde.alpha(grid[0]), sde.sigma(grid[0]) ** 2
        one = torch.ones(1, 1, dtype=F64)
        for t, dt in zip(grid[:-1] + grid.diff() / 2, grid.diff(), strict=True):
            f = sde.drift(one, t)[0, 0]
            mean = mean * torch.exp(f * dt)
            variance = (
                variance * torch.exp(2 * f * dt) + torch.exp(f * dt) * sde.diffusion(t) ** 2 * dt
            )
        torch.testing.assert_close(mean, sde.alpha(grid[-1]), rtol=1e-5, atol=0)
        # The midpoint rule itself errs by 3e-5 on VE here.
        torch.testing.assert_close(variance, sde.sigma(grid[-1]) ** 2, rtol=1e-4, atol=0)


def test_snr_falls_and_inverts(sde):
    t = times_of(sde, 50)
    log_snr = sde.log_snr(t)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(sde.time_of_log_snr(log_snr), t, rtol=1e-9, atol=0)
    torch.testing.assert_close(SDE.time_of_log_snr(sde, log_snr), t, rtol=1e-9, atol=0)


@given(st.integers(1, 3), st.integers(0, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_expand_broadcasts_over_any_state(batch, extra_axes, batched):
    x = torch.ones(batch, *[2] * extra_axes, 3)
    c = torch.arange(1.0, batch + 1, dtype=F64) if batched else torch.tensor(2.0, dtype=F64)
    y = expand(c, x) * x
    assert y.shape == x.shape and y.dtype == x.dtype
    for i in range(batch):
        assert bool((y[i] == (i + 1 if batched else 2)).all())


def test_expand_refuses_other_shapes():
    x = torch.ones(4, 3)
    for t in (torch.ones(4, 1), torch.ones(3)):
        with pytest.raises(ValueError, match=r"shape \(\) or \(B,\)"):
            expand(t, x)


def test_prior_log_prob_is_the_density_of_prior_sample(sde):
    x = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.0, 0.0]], dtype=F64)
    want = torch.distributions.Normal(0, sde.prior_std()).log_prob(x).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x), want.to(F64))
    draws = sde.prior_sample((20_000, 3), torch.Generator().manual_seed(0))
    assert abs(float(draws.std()) / sde.prior_std() - 1) < 0.02


def test_tweedie_and_reverse_drift_on_a_gaussian(sde):
    data = correlated_gaussian((3,))
    score, x = data.score(sde), torch.randn(5, 3, dtype=F64)
    t = times_of(sde, 5)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for i in range(5):  # E[x_0 | x] by linear regression of x_0 on x
        joint = alpha[i] ** 2 * data.covariance() + sigma[i] ** 2 * torch.eye(3, dtype=F64)
        gain = alpha[i] * data.covariance() @ torch.linalg.inv(joint)
        want = data.mean() + gain @ (x[i] - alpha[i] * data.mean())
        got = sde.denoise(x, t, score)[i]
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    flow, reverse = sde.reverse(score, 0.0), sde.reverse(score, 1.0)
    g2 = sde.diffusion(t)[:, None] ** 2
    torch.testing.assert_close(reverse.drift(x, t) - flow.drift(x, t), -0.5 * g2 * score(x, t))
    torch.testing.assert_close(reverse.diffusion(t), sde.diffusion(t))
    assert float(flow.diffusion(t).abs().max()) == 0


# DDPM ---------------------------------------------------------------------------------------------


def test_discretize_gives_ddpms_table():
    chain = VPSDE().discretize(1000)
    torch.testing.assert_close(chain.betas, torch.linspace(1e-4, 0.02, 1000, dtype=F64))
    torch.testing.assert_close(chain.alpha_bars, torch.cumprod(1 - chain.betas, 0))
    assert abs(float(chain.alpha_bars[-1]) - 4.036e-5) < 1e-8  # the published end of the chain


def test_chain_posterior_is_ddpm_equation_7():
    chain = VPSDE().discretize(100)
    beta, bar = chain.betas, chain.alpha_bars
    x0, x = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    for i in (2, 50, 100):
        mean, variance = chain.posterior(x0, x, torch.tensor(i))
        b, now, before = beta[i - 1], bar[i - 1], bar[i - 2]
        want = before.sqrt() * b / (1 - now) * x0
        want = want + (1 - b).sqrt() * (1 - before) / (1 - now) * x
        torch.testing.assert_close(mean, want)
        torch.testing.assert_close(variance, (1 - before) / (1 - now) * b)
    mean, variance = chain.posterior(x0, x, torch.tensor([1, 1]))
    torch.testing.assert_close(mean, x0)  # x_0 is known at the first step
    assert float(variance.max()) < 1e-15


@pytest.mark.parametrize("table", list(BETA_TABLES))
def test_table_process_agrees_with_its_chain(table):
    """At t = i/n the process through the table has the chain's marginal and posterior."""
    sde = TableSDE(table, steps=50, t_min=0.01)
    i = torch.tensor([1, 2, 7, 33, 50])
    x0, x = torch.randn(5, 4, dtype=F64), torch.randn(5, 4, dtype=F64)
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-5)):
        t = (i.to(dtype) / 50).to(dtype)
        mean, std = sde.marginal(x0, t)
        want_mean, want_std = sde.chain.marginal(x0, i)
        torch.testing.assert_close(mean, want_mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(std, want_std, rtol=tolerance, atol=tolerance)
    mean, std = sde.posterior(x0[1:], x[1:], (i[1:] - 1) / 50.0, i[1:].to(F64) / 50)
    want_mean, want_variance = sde.chain.posterior(x0[1:], x[1:], i[1:])
    torch.testing.assert_close(mean, want_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std**2, want_variance, rtol=1e-5, atol=1e-9)


def test_discrete_chain_converges_to_the_sde_at_first_order():
    """alpha_bar of DDPM's chain with n steps against alpha^2 of the VP SDE, at fixed t."""
    sde, errors = VPSDE(), []
    t = torch.tensor([0.25, 0.5, 1.0], dtype=F64)
    for n in (1000, 2000, 4000):
        bars = sde.discretize(n).alpha_bars[(t * n).long() - 1]
        errors.append(float((bars.log() - 2 * sde.alpha(t).log()).abs().max()))
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(abs(order - 1) < 0.02 for order in orders), orders
    assert errors[-1] < 0.02


def test_cosine_tables():
    betas = cosine_betas(1000)
    t = torch.arange(0, 1001, dtype=F64) / 1000
    bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    want = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    torch.testing.assert_close(betas, want, rtol=1e-9, atol=1e-12)
    sde = CosineSDE()
    torch.testing.assert_close(sde.alpha(t[:996]) ** 2, bar[:996] / bar[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(linear_betas(1000), torch.linspace(1e-4, 0.02, 1000, dtype=F64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VESDE(sigma_min=50, sigma_max=0.01),
            r"sigma_min \(50.0\) must be positive",
        ),
        (lambda: VPSDE(beta_min=3, beta_max=1), "beta_min"),
        (lambda: VPSDE(t_min=0), r"t_min \(0.0\) must be above 0"),
        (lambda: VPSDE(t_min=2.0), "below sde.t_max"),
        (lambda: TableSDE("linaer"), "sde.table must be .linear. or .cosine. or a list"),
        (lambda: TableSDE(steps=0), "at least 1"),
        (lambda: VPSDE().discretize(10), "beta_i must lie between 0 and 1"),
        (lambda: Chain(torch.tensor([])), "n >= 1"),
        (lambda: VPSDE().discretize(100).marginal(torch.ones(1, 1), torch.tensor(0)), "from 1 to"),
    ],
)
def test_bad_settings_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_post_init_of_ones_own_need_not_call_that_of_the_process():
    @dataclass(frozen=True)
    class Scaled(SDE):
        rate: float = 1.0

        def __post_init__(self):
            object.__setattr__(self, "doubled", 2 * self.rate)

        def alpha(self, t):
            return torch.exp(-self.doubled * t)

        def sigma(self, t):
            return torch.sqrt(-torch.expm1(-2 * self.doubled * t))

    @dataclass(frozen=True)
    class Child(Scaled):
        def __post_init__(self):
            super().__post_init__()  # first: its ends are checked when all is over

    for kind in (Scaled, Child):
        assert float(kind().alpha(1.0)) == pytest.approx(math.exp(-2))
        with pytest.raises(ValueError, match=r"sde.t_min \(2\) must be above 0 and below"):
            kind(t_min=2)
        with pytest.raises(ValueError, match="cannot end at sde.t_max"):
            kind(rate=100.0)
