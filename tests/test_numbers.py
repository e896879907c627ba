"""Numbers at their ends: seeds of 64 bits, times and states of any dtype, the ends of time."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from score_sde import (
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowSDE,
    Gaussian,
    ScoreModel,
    TableSDE,
    sample,
)
from score_sde.checks import UserError
from score_sde.nets import MLP, Transformer, UNet
from score_sde.noise import BrownianNoise, SeededNoise, fresh_seeds, generator_of

F64 = torch.float64


@dataclass(frozen=True)
class Quarter(SDE):
    """The process of the documentation."""

    def alpha(self, t):
        return torch.cos(t * math.pi / 2)

    def sigma(self, t):
        return torch.sin(t * math.pi / 2)


def fingerprint(x):
    return hashlib.sha256(x.double().numpy().tobytes()).hexdigest()[:16]


# Seeds --------------------------------------------------------------------------------------------


def test_streams_of_seeds_below_two_to_the_32_are_what_they_were():
    seeds = [0, 7, 2**31 + 5, 2**32 - 1]
    noise = SeededNoise(seeds, (3,))
    assert fingerprint(torch.stack([noise.draw() for _ in range(200)])) == "cba4a9134baccb29"
    assert fingerprint(noise.draw(which=torch.tensor([1, 3]))) == "cb0127445c2c97bc"
    path = BrownianNoise(seeds, (2,), sde=VPSDE())
    path.draw()
    assert fingerprint(path.draw(0.9, 0.7)) == "82a53d46b031c5fe"
    assert fingerprint(path.draw(0.7, 0.1)) == "6fa11a293ebb9f5c"


def test_all_64_bits_of_a_seed_count():
    seeds = [7, *(7 + 2**bit for bit in range(32, 64)), 2**64 - 1]
    for noise in (SeededNoise(seeds, (4,)), BrownianNoise(seeds, (4,), sde=VPSDE())):
        for drawn in (noise.draw(), noise.draw(0.9, 0.5), noise.draw(which=torch.arange(33))):
            assert len(drawn.unique(dim=0)) == len(drawn)
    sde, score = VPSDE(), Gaussian([0.0, 0.0], 1.0).score(VPSDE())
    x = sample(sde, score, (3, 2), method="ddim", steps=3, seeds=[7, 7 + 2**32, 7])
    assert torch.equal(x[0], x[2]) and not torch.allclose(x[0], x[1])


def test_wide_seeds_give_normal_numbers_that_are_unrelated():
    x = SeededNoise(fresh_seeds(2000), (200,)).draw().double()
    n = x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < 5 * math.sqrt(variance / n)
    between = torch.corrcoef(x[:200])[~torch.eye(200, dtype=torch.bool)]
    assert abs(float(between.square().mean()) * 200 - 1) < 0.05
    assert fresh_seeds(1)[0] != fresh_seeds(1)[0]


@pytest.mark.slow
def test_two_hundred_thousand_samples_without_seeds_hold_no_duplicates():
    x = SeededNoise(fresh_seeds(200_000), (2,)).draw()
    assert len(x.unique(dim=0)) == len(x)


def test_torch_generators_of_small_seeds_are_torchs_own():
    expected = torch.randn(5, generator=torch.Generator().manual_seed(11))
    assert torch.equal(torch.randn(5, generator=generator_of(11)), expected)
    first = (torch.randn(5, generator=generator_of(11 + (i << 32))) for i in (0, 1, 2))
    assert len(torch.stack(list(first)).unique(dim=0)) == 3


@pytest.mark.parametrize("seed", [-1, 0.2, 0.7, True, 2**64, "7", None, float("nan"), [1]])
def test_a_seed_is_a_whole_number_of_64_bits(seed):
    sde, score = VPSDE(), Gaussian([0.0, 0.0], 1.0).score(VPSDE())
    with pytest.raises(UserError, match=r"seeds .*whole number"):
        sample(sde, score, (1, 2), method="ddim", steps=2, seeds=[seed])
    for kind in (np.int64, np.uint64, torch.tensor):
        assert torch.equal(SeededNoise([kind(3)], (2,)).draw(), SeededNoise([3], (2,)).draw())


# Times and states ---------------------------------------------------------------------------------


def test_times_may_be_numbers(sde):
    t, x = 0.5 * sde.t_max, torch.randn(4, 3, dtype=F64)
    exact = torch.tensor(t, dtype=F64)
    for name in ("alpha", "sigma", "diffusion", "log_snr"):
        assert float(getattr(sde, name)(t)) == pytest.approx(float(getattr(sde, name)(exact)))
    for name in ("marginal", "drift"):
        for ours, theirs in zip(
            getattr(sde, name)(x, t), getattr(sde, name)(x, exact), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    a, b = sde.transition(0.5 * t, t)
    torch.testing.assert_close(torch.stack([a, b]), torch.stack(sde.transition(exact / 2, exact)))
    score = Gaussian([0.0] * 3, 1.0).score(sde)
    torch.testing.assert_close(sde.denoise(x, t, score), sde.denoise(x, exact, score))
    assert sde.reverse(score).drift(x, t).shape == x.shape
    torch.testing.assert_close(score(x, t), score(x, exact))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.bfloat16,
                                   torch.float16, torch.float32, F64])  # fmt: skip
def test_coefficients_of_any_dtype_of_time_are_not_cut_off(sde, dtype):
    t = torch.tensor([1, 1]).to(dtype)
    if sde.t_max < 1:
        t = (
            (0.5 * torch.ones(2)).to(dtype)
            if dtype.is_floating_point
            else torch.zeros(2, dtype=dtype)
        )
    exact = t.double()
    for ours, theirs in ((sde.alpha(t), sde.alpha(exact)), (sde.sigma(t), sde.sigma(exact))):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bfloat16, torch.float16, F64])
def test_states_of_any_dtype_meet_whole_coefficients(dtype):
    sde, x = VPSDE(), torch.tensor([[1.0, 2.0], [3.0, 250.0]])
    for t in (0.5, torch.tensor([0.3, 0.7])):
        mean, std = sde.marginal(x.to(dtype), t)
        exact, exact_std = sde.marginal(x, t)
        size = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 1e-6)
        torch.testing.assert_close(mean.double(), exact.double(), rtol=size, atol=0)
        torch.testing.assert_close(std.double(), exact_std.double(), rtol=1e-6, atol=0)
        assert mean.dtype == (dtype if dtype.is_floating_point else torch.float32)


def test_steps_of_a_chain_may_be_numbers_and_nothing_but_steps():
    chain, x = VPSDE().discretize(1000), torch.ones(2, 3)
    for ours, theirs in zip(
        chain.marginal(x, 500), chain.marginal(x, torch.tensor(500)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    chain.posterior(x, x, 500)
    for bad in (0, 1001, 1.5, True, torch.tensor([3.0]), float("nan")):
        with pytest.raises(UserError, match="chain steps are whole numbers"):
            chain.marginal(x, bad)


@pytest.mark.parametrize("t", [500, -0.1, 1.5, float("nan"), torch.tensor(500),
                               torch.tensor([0.5, 7.0]), torch.tensor(math.inf)])  # fmt: skip
def test_times_outside_of_a_process_are_named(t):
    with pytest.raises(UserError, match=r"times must lie between 0 and sde.t_max \(1.0\)"):
        VPSDE().marginal(torch.ones(2, 3), t)


@pytest.mark.parametrize("target", ["eps", "x0", "v", "F", "score"])
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16, torch.float16], ids=str)
def test_a_model_computes_in_the_dtype_of_its_network(target, dtype):
    torch.manual_seed(0)
    model = ScoreModel(MLP(dim=2, width=16), VPSDE(), target).requires_grad_(False)
    torch.nn.init.normal_(model.net.last.weight)
    x, t = torch.randn(5, 2), torch.linspace(0.2, 0.9, 5)
    expected = model(x, t)
    model = model.to(dtype)
    assert model.dtype == dtype
    for state in (x, x.to(dtype)):
        for time in (t, 0.5, torch.tensor(0.5)):
            value = model(state, time)
            assert value.dtype == state.dtype and bool(torch.isfinite(value).all())
    size = {F64: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    assert float((model(x, t) - expected).norm() / expected.norm()) < size


@pytest.mark.parametrize("make", [UNet, Transformer])
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16], ids=str)
def test_networks_of_images_run_in_any_dtype(make, dtype):
    options = {"multipliers": (1, 2), "attention": ()} if make is UNet else {"depth": 1, "heads": 2}
    net = make(channels=1, size=(8, 8), width=64, **options)
    model = ScoreModel(net, VPSDE()).requires_grad_(False).to(dtype)
    value = model(torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7]))
    assert value.dtype == torch.float32 and bool(torch.isfinite(value).all())


def test_with_float64_as_the_default_dtype_everything_runs():
    sde, seeds = VPSDE(), [3, 4]
    score, settings = Gaussian([0.0, 0.0], 1.0).score(sde), {"method": "ddim", "steps": 3}
    x = sample(sde, score, (2, 2), seeds=seeds, **settings)
    torch.set_default_dtype(F64)
    try:
        model = ScoreModel(MLP(dim=2, width=16), sde)
        assert model(torch.randn(3, 2), 0.5).dtype == F64
        again = sample(sde, score, (2, 2), seeds=seeds, **settings)
        assert bool(torch.isfinite(sample(sde, model, (2, 2), steps=3)).all())
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(again, x)


# The ends of time ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        Quarter,
        lambda: FlowSDE(t_max=1.0),
        lambda: FlowSDE(t_max=1 - 1e-9),
        lambda: FlowSDE(t_max=2.0),
        lambda: CosineSDE(t_max=1.0),
        lambda: VESDE(sigma_max=1e40),
        lambda: Quarter(t_max=1.2),
    ],
)
def test_a_process_without_signal_at_its_end_names_the_time_that_can_be_used(make):
    with pytest.raises(
        UserError, match=r"cannot end at sde.t_max .*Usable is sde.t_max=([\d.]+)"
    ) as error:
        make()
    usable = float(str(error.value).rpartition("=")[2].rstrip("."))
    kind = Quarter if "Quarter" in str(error.value) else FlowSDE
    assert 0 < usable < 1
    if "sigma_max" not in str(error.value):
        sde = kind(t_max=usable)
        x = sample(
            sde, Gaussian([0.0], 0.25).score(sde), (200, 1), method="euler_maruyama", steps=1000
        )
        assert 0.3 < float(x.std()) < 0.8


@pytest.mark.parametrize(
    "sde", [VPSDE(), CosineSDE(), TableSDE(), TableSDE("cosine"), FlowSDE(), VESDE()]
)
def test_coefficients_are_finite_at_time_zero_and_differentiable_inside(sde):
    zero = torch.zeros((), dtype=F64)
    for value in (sde.alpha(zero), sde.sigma(zero), sde.diffusion(zero)):
        assert bool(torch.isfinite(value))
    near = torch.tensor(1e-8, dtype=F64)
    torch.testing.assert_close(sde.diffusion(zero), sde.diffusion(near), rtol=1e-3, atol=1e-3)
    for t in (sde.t_min, sde.t_max):
        time = torch.tensor(t, dtype=F64, requires_grad=True)
        for value in (sde.alpha(time), sde.sigma(time), sde.diffusion(time)):
            if value.requires_grad:
                assert bool(torch.isfinite(torch.autograd.grad(value, time)[0]))
