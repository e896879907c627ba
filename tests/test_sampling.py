"""Samplers on data whose score is known: exact endpoints, orders, laws, seeds, counts."""

import math
from dataclasses import dataclass

import pytest
import torch
from conftest import PROCESSES, correlated_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from score_sde import VESDE, VPSDE, TableSDE, list_samplers, sample, verify
from score_sde.checks import UserError
from score_sde.noise import SeededNoise
from score_sde.processes.expand import expand
from score_sde.sampling import (
    SAMPLERS,
    ODEError,
    Predictor,
    PredictorCorrector,
    make_sampler,
)
from score_sde.sampling.grids import GRIDS, make_grid

F64 = torch.float64


def endpoint(sde, data, x_T):
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=F64)
    return data.flow(sde, x_T, *ends)


class CountingScore:
    def __init__(self, score):
        self.score, self.calls = score, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.score(x, t)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 2)])
def test_adaptive_ode_meets_the_exact_endpoint(song_sde, shape):
    """Within 1e-6 at rtol = atol = 1e-9, on vectors, series and images."""
    data = correlated_gaussian(shape)
    x_T = song_sde.prior_sample((8, *shape), torch.Generator().manual_seed(0), dtype=F64)
    x = sample(
        song_sde, data.score(song_sde), x_T=x_T, method="ode", denoise=False, rtol=1e-9, atol=1e-9
    )
    assert float((x - endpoint(song_sde, data, x_T)).abs().max()) < 1e-6


def options_of(method: str) -> dict:
    """What a method must be told."""
    return {"data_std": 0.5} if method in ("adams", "adams_sde") else {}


@pytest.mark.parametrize("method", ["ancestral", "euler_maruyama", "reverse_diffusion"])
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_stochastic_samplers_reach_mean_and_covariance(song_sde, method, shape):
    """On Gaussian data the law of the result is Gaussian; its moments converge as steps rise."""
    data, n = correlated_gaussian(shape), 8_000
    errors = []
    for steps in (20, 320):
        torch.manual_seed(0)
        x = sample(
            song_sde, data.score(song_sde), (n, *shape), method=method, steps=steps,
            ).double()  # fmt: skip
        flat = x.flatten(1)
        mean_error = (flat.mean(0) - data.mean().flatten()).abs().max()
        covariance_error = (torch.cov(flat.T) - data.covariance()).abs().max()
        errors.append((float(mean_error), float(covariance_error)))
    noise = 4 * 0.3 / math.sqrt(n)  # four standard errors of a variance of about 0.25
    assert errors[1][0] < 0.02 + noise and errors[1][1] < 0.03 + noise, errors
    assert max(errors[1]) < max(errors[0]) or max(errors[0]) < 0.02


def test_ancestral_on_the_table_is_ddpm_algorithm_2():
    """1000 evaluations: 999 posterior steps of the chain and the noiseless last one."""
    sde = TableSDE()
    data = correlated_gaussian((2,))
    score, seeds = data.score(sde), range(3)
    x = sample(sde, score, (3, 2), steps=999, seeds=seeds, dtype=F64, return_info=True)
    noise = SeededNoise(seeds, (2,), F64)
    y = noise.draw()
    for i in range(1000, 0, -1):
        t = torch.tensor(i / 1000, dtype=F64)
        x0 = sde.denoise(y, t, score)
        mean, variance = sde.chain.posterior(x0, y, torch.tensor(i))
        y = mean + (variance.sqrt() * noise.draw() if i > 1 else 0)
    torch.testing.assert_close(x.x, y, rtol=1e-6, atol=1e-7)
    assert x.nfe == 1000


def test_mixture_modes_get_their_weights(mixture):
    sde = VPSDE()
    torch.manual_seed(0)
    for method, steps in (("ancestral", 200), ("heun", 20), ("dpmpp_2m_sde", 40)):
        x = sample(sde, mixture.score(sde), (6000, 2), method=method, steps=steps).double()
        nearest = torch.cdist(x, mixture.means).argmin(1)
        share = torch.bincount(nearest, minlength=3) / len(x)
        truth = mixture.sample(200_000, seed=5)
        want = torch.bincount(torch.cdist(truth, mixture.means).argmin(1), minlength=3) / 200_000
        torch.testing.assert_close(share.double(), want.double(), atol=0.03, rtol=0)


@pytest.mark.parametrize("method", list(SAMPLERS))
def test_a_sample_depends_on_its_seed_alone(method, mixture):
    """The same for batch 1, 7 and 64, in any order, bit for bit with a batch-invariant score."""
    sde = VPSDE()

    def score(x, t):  # elementwise, hence batch-invariant
        return -(x - expand(sde.alpha(t), x)) / expand(1.25 * sde.sigma(t) ** 2 + 0.3, x)

    if method == "ode":
        pytest.skip("its step size belongs to the batch, as its docstring says")
    steps, options = 5, options_of(method)
    everything = sample(
        sde, score, (64, 3, 4), method=method, steps=steps, seeds=range(64), **options
    )
    for seeds in ([5], [3, 60, 5, 8, 1, 0, 2]):
        shape = (len(seeds), 3, 4)
        part = sample(sde, score, shape, method=method, steps=steps, seeds=seeds, **options)
        assert torch.equal(part, everything[seeds])
    batched = sample(
        sde, score, (64, 3, 4), method=method, steps=steps, seeds=range(64), batch_size=7, **options
    )
    assert torch.equal(batched, everything)


def test_unseeded_samples_follow_the_global_generator_and_differ():
    sde, score = VPSDE(), correlated_gaussian((2,)).score(VPSDE())
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(sample(sde, score, (4, 2), steps=3))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_seeded_noise_is_normal_and_independent_of_its_batch():
    noise = SeededNoise(range(500), (3,))
    draws = torch.stack([noise.draw() for _ in range(30)])
    assert abs(float(draws.mean())) < 0.02 and abs(float(draws.std()) - 1) < 0.02
    alone = SeededNoise([17], (3,))
    assert all(torch.equal(alone.draw()[0], draws[k, 17]) for k in range(30))


@pytest.mark.parametrize("method", list(SAMPLERS))
@pytest.mark.parametrize("denoise", [True, False])
def test_evaluations_are_counted_exactly(method, denoise):
    sde = VPSDE()
    score = CountingScore(correlated_gaussian((2,)).score(sde))
    options = options_of(method)
    settings = {"method": method, "denoise": denoise, **options}
    result = sample(sde, score, (5, 2), steps=4, return_info=True, **settings)
    assert result.nfe == score.calls
    evaluations = SAMPLERS[method](**options).evaluations
    if evaluations:
        assert score.calls == 4 * evaluations + denoise
        for nfe in (evaluations + denoise, 9, 14):
            budget = CountingScore(score.score)
            sample(sde, budget, (2, 2), nfe=nfe, **settings)
            assert nfe - evaluations < budget.calls <= nfe
    assert method in str(result) and f"NFE {result.nfe}" in str(result)


@given(st.sampled_from(sorted(PROCESSES)), st.sampled_from(sorted(GRIDS)), st.integers(1, 1500))
@settings(max_examples=60, deadline=None)
def test_grids_fall_strictly_from_end_to_end(process, grid, steps):
    sde = PROCESSES[process]
    times = make_grid(sde, grid, steps, data_std=0.5)
    assert len(times) == steps + 1 and times.dtype == F64
    assert (float(times[0]), float(times[-1])) == (sde.t_max, sde.t_min)
    assert bool((times.diff() < 0).all())


def test_explicit_grid_and_hook():
    sde, score = VPSDE(), correlated_gaussian((2,)).score(VPSDE())
    seen = []
    grid = [0.9, 0.5, 0.2, 0.01]
    x = sample(sde, score, (3, 2), method="euler", grid=grid, hook=lambda x, t: seen.append(t))
    assert [float(t) for t in seen] == grid[1:] and bool(torch.isfinite(x).all())
    pinned = sample(
        sde, score, (3, 2), method="euler", steps=5, denoise=False, hook=lambda x, t: x * 0 + 7
    )
    assert bool((pinned == 7).all())


def test_a_users_predictor_needs_a_step_and_nothing_else():
    class Still(Predictor):
        def step(self, run, x, t, s):
            return x

    x_T = torch.randn(2, 3)
    x = sample(VPSDE(), lambda x, t: -x, x_T=x_T, method=Still(), steps=3, denoise=False)
    assert torch.equal(x, x_T)


def test_a_users_predictor_is_found_by_dotted_path():
    sde, score = VPSDE(), correlated_gaussian((2,)).score(VPSDE())
    ours = sample(sde, score, (3, 2), method="test_verify.Clipped", steps=5, seeds=range(3))
    direct = sample(sde, score, (3, 2), method=make_sampler("test_verify.Clipped"), steps=5,
                    seeds=range(3))  # fmt: skip
    assert torch.equal(ours, direct)
    report = verify(sde, "test_verify.WeightedHeun", steps=(64, 128), weight=0.45)
    assert report.passed is False and report.settings["weight"] == 0.45
    with pytest.raises(ValueError, match="'nowhere.Mine' cannot be imported"):
        sample(sde, score, (3, 2), method="nowhere.Mine")
    with pytest.raises(ValueError, match="option of test_verify.WeightedHeun: 'wait' is unknown"):
        sample(sde, score, (3, 2), method="test_verify.WeightedHeun", wait=1)


def test_dtype_and_start_are_kept():
    sde, score = VESDE(), correlated_gaussian((2,)).score(VESDE())
    for dtype in (torch.float32, F64):
        x_T = sde.prior_sample((3, 2), dtype=dtype)
        kept = x_T.clone()
        for method in SAMPLERS:
            loose = {"rtol": 1e-3} if method in ("ode", "rk45") else options_of(method)
            x = sample(sde, score, x_T=x_T, method=method, steps=3, **loose)
            assert x.dtype == dtype and bool(torch.isfinite(x).all())
        assert torch.equal(x_T, kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"steps must be at least 1 \(got 0\)"),
        ({"steps": -3}, r"steps must be at least 1 \(got -3\)"),
        ({"nfe": 1}, "too few"),
        ({"nfe": 5, "steps": 5}, "not both"),
        ({"method": "heum"}, "sampler 'heum' is unknown. Did you mean 'heun'"),
        ({"method": "heun", "etaa": 1}, "option of heun: 'etaa' is unknown"),
        ({"method": "euler_maruyama", "eta": -1}, "eta must be at least 0"),
        ({"method": "ancestral", "variance": "big"}, "must be 'posterior', 'transition'"),
        ({"method": "ode", "nfe": 9}, "cannot bound"),
        ({"method": "ode", "rtol": 0}, "rtol must be greater than 0"),
        ({"method": "ode", "solver": "dopri6"}, "solver must be .* Did you mean 'dopri8'"),
        ({"grid": "karas"}, "grid 'karas' is unknown. Did you mean 'karras'"),
        ({"grid": [0.5, 0.6, 0.1]}, "fall strictly"),
        ({"grid": [2.0, 0.1]}, "within"),
        ({"grid": [0.5]}, "at least two"),
        ({"seeds": [1, 2]}, "2 seeds do not fit 3 samples"),
        ({"shape": (3,)}, "shape must be"),
        ({"x_T": torch.zeros(3, 2)}, "exactly one of"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings_are_explained(arguments, message):
    arguments = {"shape": (3, 2), **arguments}
    with pytest.raises(ValueError, match=message):
        sample(VPSDE(), lambda x, t: -x, **arguments)


def test_ode_errors_name_the_cause():
    sde = VPSDE()
    with pytest.raises(ODEError, match="not finite"):
        sample(sde, lambda x, t: x * float("nan"), (2, 2), method="ode")
    with pytest.raises(ODEError, match="after 40 evaluations. Loosen rtol"):
        score = correlated_gaussian((2,)).score(sde)
        sample(sde, score, (2, 2), method="ode", max_evaluations=40)


def test_list_samplers_describes_all():
    rows = {row["name"]: row for row in list_samplers()}
    assert set(rows) == set(SAMPLERS)
    assert rows["heun"]["evaluations"] == 2 and rows["ancestral"]["stochastic"]
    assert all(row["about"] for row in rows.values())


@dataclass(frozen=True)
class Mine(Predictor):
    """A step of a user's, with mistakes by name."""

    mistake: str

    def prepare(self, sde, times):
        rows = {"few": [1.0], "none": None, "no_argument": [1.0] * (len(times) - 1)}
        return rows.get(self.mistake, [None] * (len(times) - 1))

    def step(self, run, x, t, s):
        return {"nothing": None, "fewer": x[:2], "number": 0.0}.get(self.mistake, x)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("few", "Mine.prepare must return an entry for each of 3 steps .got 1."),
        ("none", "Mine.prepare must return an entry for each of 3 steps .got 0."),
        ("no_argument", r"Mine.step is called as step.run, x, t, s, numbers., as prepare returns"),
        ("nothing", "what Mine.step returns must be a tensor like x, .*; it is None"),
        ("fewer", "what Mine.step returns must be a tensor like x, .4, 2.* it is .2, 2."),
        ("number", "what Mine.step returns must be a tensor like x"),
    ],
)  # fmt: skip
def test_a_predictor_of_ones_own_is_held_to_what_it_declares(mistake, message):
    sde, score = VPSDE(), lambda x, t: -x
    sample(sde, score, (4, 2), method=Mine("no"), steps=3)
    for method in (Mine(mistake), PredictorCorrector(predictor=Mine(mistake))):
        with pytest.raises(UserError, match=message):
            sample(sde, score, (4, 2), method=method, steps=3)
