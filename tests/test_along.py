"""log p along a path that is no solution of the flow."""

import math

import pytest
import torch
from known_data import DATA, F64, SONG, at_t_min, ring

from score_sde import VESDE, log_likelihood
from score_sde.ode.along import Along, Node
from score_sde.ode.divergence import score_and_jacobian
from score_sde.ode.multistep import integrate

SDE, RING = VESDE(sigma_min=0.2, sigma_max=1.0), ring()


def node(x: torch.Tensor, t: torch.Tensor) -> Node:
    """A state of a path, and what the exact score says there of the probability flow."""
    value, jacobian = score_and_jacobian(RING.score(SDE), x, t)
    half = 0.5 * SDE.diffusion(t) ** 2
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    return Node(x, -half * value, value, half * trace)


def orders(errors: list[float]) -> float:
    """The order by which errors fall when steps are halved."""
    return math.log2(errors[0] / errors[1])


def test_a_step_is_known_from_both_sides():
    """Its rule is symmetric, three nodes on each side, but for the first and the last steps."""
    path = Along(torch.linspace(0, 1, 13, dtype=F64))
    around = [range(first - k, first - k + path.near) for k, first in enumerate(path.first)]
    assert around[:2] == [range(0, 6), range(-1, 5)]
    assert around[2:-2] == [range(-2, 4)] * 8  # of the step from node 0 to node 1
    assert around[-2:] == [range(-3, 3), range(-4, 2)]
    for w in path.weights[2:-2]:
        assert w == pytest.approx(w[::-1], abs=1e-14)


def test_any_path_gives_the_change_of_the_density():
    """By a path that swings to and fro, with no regard to the flow: to second order."""
    errors = []
    for steps in (30, 60):
        times = torch.linspace(1e-3, 1, steps + 1, dtype=F64)
        swing = torch.sin(3 * times)[:, None, None] * torch.tensor([0.4, -0.2], dtype=F64)
        path, states = Along(times), RING.sample(8, 1) + swing
        for x, t in zip(states, times, strict=True):
            path.visit(node(x, t))
        first, last = (RING.log_prob(states[i], SDE, times[i]) for i in (0, -1))
        errors.append(float((path.change[:, 0] - (last - first)).abs().mean()))
    assert orders(errors) > 1.8 and errors[1] < 2e-4


def test_what_a_solver_misses_is_taken_back():
    """The steps' defects, times the gradient of log p, are the solver's error but for that."""
    x, plain, taken_back = RING.sample(8, 1), [], []
    for steps in (24, 48):
        times = torch.linspace(1e-3, 1, steps + 1, dtype=F64)
        path, ends = Along(times), []

        def slope(state, t):
            at = node(state[:, :2], t)
            return torch.cat([at.flow, at.rate], 1)

        def visit(t, state, value):
            path.visit(node(state[:, :2], t))  # noqa: B023
            ends.append(state)  # noqa: B023

        state = torch.cat([x, torch.zeros(8, 1, dtype=F64)], 1)
        end = integrate(slope, state, times, order=1, again=1, visit=visit)
        want = RING.log_prob(x, SDE, times[0])
        last = RING.log_prob(ends[-1][:, :2], SDE, times[-1]) - path.change[:, 0]
        taken_back.append(float((last - want).abs().mean()))
        last = RING.log_prob(end[:, :2], SDE, times[-1]) - end[:, 2]
        plain.append(float((last - want).abs().mean()))
    assert 1.7 < orders(plain) < 2.5 and orders(taken_back) > 3, (plain, taken_back)
    assert taken_back[1] < 0.02 * plain[1]


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
@pytest.mark.parametrize("name", ["ring", "grid25"])
def test_48_evaluations_in_the_plane(process, name):
    """Half of the points are a hundred times nearer than a millinat; few lie where flows part."""
    sde, data = SONG[process], DATA[name]
    x = data.sample(32, 1)
    found = log_likelihood(
        sde, data.score(sde), x, nfe=48, truncation="none", check=0, data_std=data.std()
    )
    error = (found.nats - at_t_min(data, sde, x)).abs()
    assert found.nfe == 48 and float(error.median()) < 2e-5 and float(error.mean()) < 2e-3
