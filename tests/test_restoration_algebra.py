"""What y says at one noise level, by every algebra that says it: the same, and by the formulas."""

import math

import pytest
import torch

from score_sde import Gaussian
from score_sde.restoration import Covariance, Grey, Matrix, Nonlinear
from score_sde.restoration.algebra import Dense, Linearised, MatrixFree
from score_sde.restoration.measurement import make_measurement
from score_sde.restoration.spectral import Spectral
from score_sde.restoration.system import System

F64 = torch.float64


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


Q, A = normal(12, 12, seed=0), normal(4, 12, seed=1)
DATA = Gaussian(normal(3, 2, 2, seed=2), Q @ Q.T / 12)
ROOT = normal(4, 4, seed=3)
NOISES = {"white": 0.1, "uneven": torch.tensor([0.1, 0.2, 0.05, 0.3]),
          "correlated": Covariance(ROOT @ ROOT.T + 0.01 * torch.eye(4))}  # fmt: skip


class Units:
    """In place of normal numbers the rows of I, so that noise (B, D) is a root of its covariance.

    Of two draws for states and one for measurements: B = 2 D + m.
    """

    def __init__(self, D: int, m: int):
        rows = torch.eye(2 * D + m, dtype=F64)
        self.states, self.measurement = [rows[:, :D], rows[:, D : 2 * D]], rows[:, 2 * D :]

    def state(self):
        return self.states.pop(0)

    def measured(self):
        return self.measurement


def levels_of(noise, nu, count):
    """The level by every algebra, at ``count`` states."""
    measurement = make_measurement(Matrix(A), normal(4, seed=4), noise, (3, 2, 2))
    bent = make_measurement(Nonlinear(Matrix(A)), normal(4, seed=4), noise, (3, 2, 2))
    D = torch.zeros(count, 12, dtype=F64)
    found = [
        System(DATA, measurement).at(nu, D),
        System(DATA, measurement).factored(nu, D),
        System(DATA, bent).at(nu, D),
        System(DATA, measurement, dense=False).at(nu, D),
    ]
    kinds = [Spectral, Dense, Linearised, MatrixFree]
    assert [type(level) for level in found] == kinds
    return measurement, found


@pytest.mark.parametrize("nu", [0.01, 0.7, math.inf])
@pytest.mark.parametrize("noise", NOISES)
def test_every_algebra_says_what_the_formulas_do(noise, nu):
    measurement, levels = levels_of(NOISES[noise], nu, 30)
    C = torch.linalg.inv(torch.linalg.inv(DATA.covariance()) + torch.eye(12) / nu**2)
    S = measurement.covariance + A @ C @ A.T
    G = C @ A.T @ torch.linalg.inv(S)
    K = C - G @ A @ C
    r, v = normal(30, 4, seed=5), normal(30, 12, seed=6)
    density = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=F64), S).log_prob(r)
    close = dict(atol=1e-8, rtol=1e-7)
    for level in levels:
        if isinstance(level, MatrixFree):
            close = dict(atol=1e-4, rtol=1e-4)
        for rows in (slice(None), slice(0, 5)):  # more states than entries, and fewer
            if rows == slice(None) or not isinstance(level, Linearised | MatrixFree):
                given = level.given_spread(measurement, v[rows], v[rows])
                torch.testing.assert_close(given, v[rows] @ K, **close)
            torch.testing.assert_close(level.spread(v[rows]), v[rows] @ C, **close)
        solved, gained = level.solve_and_gain(r)
        for q in (solved, level.solve(r)):
            torch.testing.assert_close(q, r @ torch.linalg.inv(S), **close)
        for moved in (gained, level.gain(r)):
            torch.testing.assert_close(moved, r @ G.T, **close)
        if not isinstance(level, MatrixFree):
            torch.testing.assert_close(level.log_density(r), density, **close)
            freedom = level.freedom().expand(30, 1)
            torch.testing.assert_close(freedom, (A @ G).trace().expand(30, 1), **close)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_its_covariance_by_every_algebra(noise):
    nu, share, white = 0.7, 0.6, 0.3
    measurement, levels = levels_of(NOISES[noise], nu, 28)
    S_y, r = measurement.covariance, normal(28, 4, seed=7)
    for level in levels:
        D = torch.zeros(28, 12, dtype=F64)
        K = level.given_spread(measurement, D, torch.eye(12, dtype=F64).repeat(3, 1)[:28])[:12]
        close = dict(atol=1e-5, rtol=1e-5)
        noise = level.drawn(measurement, D, Units(12, 4), None, share, white)
        expected = share**2 * K + white**2 * torch.eye(12)
        torch.testing.assert_close(noise.T @ noise, expected, **close)
        moved = level.drawn(measurement, D, Units(12, 4), r, share, white) - noise
        torch.testing.assert_close(moved, share * level.gain(r), **close)
        alone = level.drawn(measurement, D, Units(12, 4))
        torch.testing.assert_close(alone.T @ alone, K, **close)
        seen = level.seen(measurement, D, Units(12, 4))
        torch.testing.assert_close(seen.T @ seen, A @ K @ A.T, **close)
        left = S_y - S_y @ level.solve(torch.eye(4, dtype=F64).repeat(7, 1))[:4] @ S_y
        torch.testing.assert_close(seen.T @ seen, left, **close)


def test_what_does_not_vary_stays_as_it_is():
    flat = Gaussian(torch.zeros(3, 2, 2), torch.tensor([1.0, 0.0, 0.5]).repeat(4).reshape(3, 2, 2))
    measurement = make_measurement(Grey(), normal(5, 1, 2, 2, seed=8), 0.1, (3, 2, 2))
    system, D, r = System(flat, measurement), torch.zeros(5, 12, dtype=F64), normal(5, 4, seed=9)
    still = flat.covariance().diagonal() == 0
    for nu in (0.3, math.inf):
        level = system.at(nu, D)
        assert float(level.gain(r)[:, still].abs().max()) < 1e-8
        other = system.factored(nu, D)
        torch.testing.assert_close(level.gain(r), other.gain(r), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(level.log_density(r), other.log_density(r))
