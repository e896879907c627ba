"""Solvers of the likelihood's flow: adaptive steps, fixed orders, clock and frame."""

import math

import pytest
import torch
from conftest import correlated_gaussian
from known_data import DATA, F64, SONG, at_t_min, ring
from torchdiffeq import odeint

from score_sde import log_likelihood
from score_sde.ode.adaptive import StoppedError, integrate_each
from score_sde.ode.clock import Clock
from score_sde.ode.divergence import score_and_traces
from score_sde.ode.frames import Frame
from score_sde.ode.multistep import integrate
from score_sde.sampling import ODEError


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
            error = (integrate(slope, state, nodes, order) - exact).abs()
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
