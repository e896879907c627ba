"""The whole family of samplers: orders, adaptivity, correctors, shared noise, recipes."""

import math
from typing import get_args

import pytest
import torch
from conftest import PROCESSES, correlated_gaussian
from test_sampling import endpoint, options_of

from score_sde import EDMSDE, VESDE, VPSDE, sample
from score_sde.diagnosis.verify import two_humps
from score_sde.noise import BrownianNoise, SeededNoise
from score_sde.ode import frames
from score_sde.sampling import (
    SAMPLERS,
    ODEError,
    Trajectory,
)
from score_sde.sampling.grids import make_grid
from score_sde.sampling.multistep import Multistep

F64 = torch.float64
FIXED = [n for n, c in SAMPLERS.items() if not c().stochastic and c().evaluations]


def orders(sde, method, steps, **options):
    """Slopes of the endpoint error on a mixture, whose curved flow flatters no method."""
    data = two_humps()
    x_T = sde.prior_sample((48, 1), torch.Generator().manual_seed(1), dtype=F64)
    t = torch.tensor([sde.t_max, sde.t_min], dtype=F64)
    want, errors = data.flow(sde, x_T, t[0], t[1]), []
    for n in steps:
        x = sample(sde, data.score(sde), x_T=x_T, method=method, steps=n, denoise=False, **options)
        errors.append(float((x - want).square().mean().sqrt()))
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)], errors


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("process", ["vp", "subvp", "ve", "edm", "flow", "user"])
def test_observed_order_is_the_claimed_one(process, method):
    options = options_of(method)
    claimed = SAMPLERS[method](**options).claimed_order
    steps = (256, 512) if method in ("lms", "adams") else (128, 256)  # of a long history
    measured, errors = orders(PROCESSES[process], method, steps, grid="logsnr", **options)
    assert abs(measured[-1] - claimed) < 0.15, (claimed, measured, errors)
    assert errors[-1] < 10.0 ** -(1.4 * claimed)


@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_order_in_plain_time(process, method):
    claimed = SAMPLERS[method].order
    options = {"variable": "time", "grid": "karras"}
    measured, errors = orders(PROCESSES[process], method, (256, 512), **options)
    assert abs(measured[-1] - claimed) < 0.15, (measured, errors)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("prediction", ["x0", "eps", "F"])
def test_order_of_multistep_settings(prediction, order):
    """The published DPM-Solver++(3M) would fail here: it is second order."""
    for corrector in (False, True):
        variable = "theta" if prediction == "F" else "lambda"
        method = Multistep(prediction, variable, order, corrector, data_std=0.5)
        measured, errors = orders(VPSDE(), method, (256, 512), grid="logsnr")
        assert abs(measured[-1] - order - corrector) < 0.15, (corrector, measured, errors)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_unipc_variants(variant, order):
    measured, _ = orders(VPSDE(), "unipc", (256, 512), grid="logsnr", variant=variant, order=order)
    assert abs(measured[-1] - order - 1) < 0.15, measured


def test_unipc_variants_are_those_published():
    """Two steps of UniPC-2 with B(h) by hand, from the update formulas of 2302.04867."""
    sde, data = VPSDE(), two_humps()
    times = torch.tensor([0.8, 0.5, 0.3], dtype=F64)
    x_T = sde.prior_sample((5, 1), torch.Generator().manual_seed(1), dtype=F64)
    denoised, lam = data.denoiser(sde), 0.5 * sde.log_snr(times)
    h = lam.diff()
    for variant, b in (("bh1", h), ("bh2", -torch.expm1(-h))):
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        m0 = denoised(x_T, times[0])
        base = sigma[1] / sigma[0] * x_T - alpha[1] * torch.expm1(-h[0]) * m0
        m1 = denoised(base, times[1])  # the predictor of order 1 is DDIM
        x1 = base + alpha[1] * b[0] / 2 * (m1 - m0)
        slope = (m1 - m0) * h[1] / h[0]
        x2 = sigma[2] / sigma[1] * x1 - alpha[2] * torch.expm1(-h[1]) * m1
        x2 = x2 + alpha[2] * b[1] / 2 * slope
        x = sample(sde, data.score(sde), x_T=x_T, method="unipc", order=2, variant=variant,
                   grid=times.tolist(), denoise=False)  # fmt: skip
        torch.testing.assert_close(x, x2)


def test_ipndm_has_the_weights_of_equal_steps():
    """On a grid uniform in sigma/alpha it is LMS with exact weights; elsewhere second order."""
    sde, data = EDMSDE(), two_humps()
    x_T = sde.prior_sample((5, 1), torch.Generator().manual_seed(1), dtype=F64)
    grid = torch.linspace(2.0, 0.1, 12).tolist()
    setting = {"x_T": x_T, "grid": grid, "denoise": False}
    score = data.score(sde)
    ours = sample(sde, score, method="ipndm", order=2, **setting)
    torch.testing.assert_close(ours, sample(sde, score, method="lms", order=2, **setting))
    measured, _ = orders(sde, "ipndm", (256, 512), order=4)
    assert abs(measured[-1] - 2) < 0.15


def test_exact_weights_integrate_polynomials():
    """w_j reproduce int P speed dlambda for any P that the nodes can interpolate."""
    sde = VPSDE()
    start, end = torch.tensor([-1.0], dtype=F64), torch.tensor([0.7], dtype=F64)
    nodes = torch.tensor([[-1.0, -2.1, -3.0]], dtype=F64)
    w = frames.weights(sde, start, end, nodes, "x0", "lambda")[0]
    fine = torch.linspace(-1.0, 0.7, 200_001, dtype=F64)
    for power in range(3):
        want = torch.trapezoid(fine**power * fine.exp(), fine)
        assert float((w * nodes[0] ** power).sum()) == pytest.approx(float(want), rel=1e-8)


@pytest.mark.parametrize("prediction", get_args(frames.Prediction))
def test_frames_turn_the_flow_into_an_integral(sde, prediction):
    """d(x/scale)/dlambda = speed P along the exact flow of a Gaussian."""
    data, h = correlated_gaussian((2,)), 1e-5
    t = torch.tensor(0.37 * sde.t_max + 1.3e-4, dtype=F64)
    x, lam = torch.randn(3, 2, dtype=F64), frames.half_log_snr(sde, t)
    ends = [sde.time_of_log_snr(2 * (lam + sign * h)) for sign in (1, -1)]
    z = [data.flow(sde, x, t, u) / frames.scale(sde, u, prediction, 0.4) for u in ends]
    p, q = frames.predict(sde, t, prediction, 0.4)
    want = frames.speed(lam, prediction, 0.4) * (p * x + q * data.score(sde)(x, t))
    torch.testing.assert_close((z[0] - z[1]) / (2 * h), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", list(SAMPLERS))
@pytest.mark.parametrize("process", ["vp", "subvp", "ve", "edm", "flow", "cosine"])
def test_every_sampler_on_every_process_is_finite_and_right(process, method):
    """Finite for any number of steps; near the data's spread at thirty."""
    sde, data = PROCESSES[process], correlated_gaussian((4,))
    adaptive = SAMPLERS[method].evaluations == 0
    for steps in (1,) if adaptive else (1, 2, 3, 30):
        x = sample(
            sde, data.score(sde), (300, 4), method=method, steps=steps, seeds=range(300),
            **options_of(method),
        )  # fmt: skip
        assert bool(torch.isfinite(x).all())
    if method not in ("euler_maruyama", "reverse_diffusion", "edm_stochastic", "pc"):
        spread = torch.cov(x.T.double()).diagonal().sqrt()
        want = data.covariance().diagonal().sqrt()
        assert float((spread / want - 1).abs().max()) < 0.35, spread / want


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow", "user"])
def test_rk45_meets_the_exact_endpoint_with_steps_of_its_own(process):
    sde, data = PROCESSES[process], correlated_gaussian((3,))
    x_T = sde.prior_sample((8, 3), torch.Generator().manual_seed(0), dtype=F64)
    settings = {"method": "rk45", "denoise": False, "rtol": 1e-8, "atol": 1e-8, "data_std": 0.5}
    x = sample(sde, data.score(sde), x_T=x_T, **settings)
    assert float((x - endpoint(sde, data, x_T)).abs().max()) < 1e-6
    alone = sample(sde, data.score(sde), x_T=x_T[3:4], **settings)
    torch.testing.assert_close(alone[0], x[3], rtol=1e-10, atol=1e-10)


def test_adaptive_sde_is_independent_of_its_batch_and_has_the_law():
    sde, data = VPSDE(), correlated_gaussian((2,))
    score, settings = data.score(sde), {"method": "adaptive_sde", "rtol": 0.02, "atol": 0.005}
    x = sample(sde, score, (2000, 2), seeds=range(2000), **settings)
    some = sample(sde, score, (3, 2), seeds=[7, 1000, 2], **settings)
    torch.testing.assert_close(some, x[[7, 1000, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cov(x.T).double(), data.covariance(), atol=0.04, rtol=0)
    with pytest.raises(ODEError, match="adaptive SDE stopped at .* Loosen rtol"):
        sample(sde, score, (3, 2), method="adaptive_sde", max_evaluations=10)


@pytest.mark.parametrize("corrector", ["langevin", "annealed_langevin"])
def test_langevin_keeps_p_t_and_moves_towards_it(corrector):
    """At fixed t a corrector leaves N(0, s^2) near itself and narrows what is too wide."""
    sde, data = VESDE(), correlated_gaussian((40,))
    score, t = data.score(sde), torch.tensor(0.6, dtype=F64)
    pc = SAMPLERS["pc"](corrector=corrector, snr=0.1)
    noise = SeededNoise(range(500), (40,), F64)
    run, sigma = Trajectory(sde, score, noise.draw), float(sde.sigma(t))
    std = (sigma**2 + data.std() ** 2) ** 0.5  # of p_t
    for width in (1.0, 2.0):
        x = width * std * noise.draw()
        for _ in range(60):
            x = pc.correct(run, x, t, 1.0)
        ratio = float(x.std()) / std
        # A step size from the sample's own norms is off by O(1/dim): 2/40 here in the variance.
        assert abs(ratio - 1) < 0.05 if width == 1 else 0.95 < ratio < 1.75, ratio


def test_langevin_with_a_zero_score_stands_still():
    pc, noise = SAMPLERS["pc"](), SeededNoise([0, 1], (3,))
    run = Trajectory(VPSDE(), lambda x, t: torch.zeros_like(x), noise.draw)
    x = torch.ones(2, 3)
    assert torch.equal(pc.correct(run, x, torch.tensor(0.5), 1.0), x)


def test_ddim_with_eta_one_is_ancestral_and_with_zero_is_euler_in_sigma():
    sde, score = VPSDE(), correlated_gaussian((2,)).score(VPSDE())
    settings = {"seeds": range(5), "steps": 20, "dtype": F64, "grid": "uniform"}
    one = sample(sde, score, (5, 2), method="ddim", eta=1.0, **settings)
    torch.testing.assert_close(one, sample(sde, score, (5, 2), method="ancestral", **settings))
    zero = sample(sde, score, (5, 2), method="ddim", **settings)
    torch.testing.assert_close(zero, sample(sde, score, (5, 2), method="euler", **settings))


def test_variance_between_is_geometric():
    sde, times = VPSDE(), make_grid(VPSDE(), "uniform", 10)
    stds = [
        torch.tensor([row[2] for row in SAMPLERS["ancestral"](variance=v).prepare(sde, times)])
        for v in ("posterior", 0.5, "transition")
    ]
    torch.testing.assert_close(stds[1], (stds[0] * stds[2]).sqrt())


def test_no_noise_is_an_ablation():
    """Without noise while generating, samples collapse towards the mean."""
    sde, score = VPSDE(), correlated_gaussian((2,)).score(VPSDE())
    x = sample(sde, score, (500, 2), steps=100, noise_scale=0.0, seeds=range(500))
    noisy = sample(sde, score, (500, 2), steps=100, seeds=range(500))
    assert float(x.var()) < 0.5 * float(noisy.var())


def test_brownian_noise_is_shared_between_numbers_of_steps():
    """Runs of n and 4n steps with one path come closer as n rises; with fresh noise they do not."""
    sde, score = VPSDE(), correlated_gaussian((3,)).score(VPSDE())

    def run(steps: int, noise: str) -> torch.Tensor:
        return sample(
            sde, score, (20, 3), method="dpmpp_2m_sde", steps=steps, grid="logsnr", noise=noise,
            seeds=range(20), dtype=F64,
        )  # fmt: skip

    def gap(a: int, b: int, noise: str) -> float:
        return float((run(a, noise) - run(b, noise)).square().mean().sqrt())

    gaps = [gap(8, 32, "brownian"), gap(32, 128, "brownian")]
    assert gaps[1] < 0.5 * gaps[0] and gaps[1] < 0.2 * gap(32, 128, "seeded"), gaps


def test_brownian_increments_add_up_and_are_normal():
    sde = VPSDE()
    one = BrownianNoise(range(200), (4,), F64, sde=sde)
    two = BrownianNoise(range(200), (4,), F64, sde=sde)
    log_snr = [float(sde.log_snr(torch.tensor(t, dtype=F64))) for t in (0.9, 0.5, 0.1)]
    a, b, whole = log_snr[1] - log_snr[0], log_snr[2] - log_snr[1], log_snr[2] - log_snr[0]
    first, second = one.draw(0.9, 0.5), one.draw(0.5, 0.1)
    total = two.draw(0.9, 0.1)
    joined = (first * a**0.5 + second * b**0.5) / whole**0.5
    torch.testing.assert_close(joined, total, rtol=1e-3, atol=1e-3)
    for z in (first, second, total):
        assert abs(float(z.mean())) < 0.12 and abs(float(z.std()) - 1) < 0.08
    assert abs(float((first * second).mean())) < 0.12
    alone = BrownianNoise([17], (4,), F64, sde=sde).draw(0.9, 0.1)
    torch.testing.assert_close(alone[0], total[17])


def test_a_score_that_misbehaves_is_explained():
    sde = VPSDE()
    with pytest.raises(ValueError, match=r"the score must be a tensor like x, \(2, 3\)"):
        sample(sde, lambda x, t: x[:, :1], (2, 3), steps=2)
    with pytest.raises(ValueError, match="float64"):
        sample(sde, lambda x, t: x.double(), (2, 3), steps=2)
    with pytest.raises(ODEError, match="2 of 2 samples are not finite after 3 evaluations by anc"):
        sample(sde, lambda x, t: x * float("nan"), (2, 3), steps=2)
    with pytest.raises(ODEError, match="RK45 stopped .*not finite"):
        sample(sde, lambda x, t: x * float("nan"), (2, 3), method="rk45")
    with pytest.raises(ODEError, match="RK45 stopped at t=.* after"):
        sample(sde, lambda x, t: -x, (2, 3), method="rk45", max_evaluations=12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "adams"}, "data_std must be a positive number"),
        ({"method": "adams", "data_std": 2.3e-308}, "of 1e-30 to 1e30 .got 2.3e-308"),
        ({"method": "adams", "data_std": 1e50}, "of 1e-30 to 1e30 .got 1e.50"),
        ({"method": "pc", "snr": 0}, "snr must be greater than 0"),
        ({"method": "pc", "corrector": "lagevin"}, "Did you mean .langevin."),
        ({"method": "pc", "corrector_steps": 0}, "corrector_steps must be at least 1"),
        ({"method": "ddim", "eta": 1.5}, "at most 1"),
        ({"method": "edm_stochastic", "churn": -1}, "churn must be at least 0"),
        ({"method": "rk45", "atol": 0}, "atol must be greater than 0"),
        ({"method": "unipc", "order": 9}, "order must be at most 6"),
        ({"method": "lms", "eta": 1.0}, "needs prediction=x0"),
        ({"noise": "pink"}, "noise 'pink' is unknown"),
        ({"noise_scale": -1}, "noise_scale"),
        ({"method": "ancestral", "variance": 2.0}, "or at most 1"),
        ({"method": "heun", "grid": [0.9, 0.5, 0.1], "nfe": 3}, "needs 5 evaluations"),
    ],
)
def test_bad_settings_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(VPSDE(), lambda x, t: -x, (3, 2), **arguments)


def test_steps_count_in_the_law_of_pc():
    """Predictor-corrector reaches the law of VE data; more corrector steps do not spoil it."""
    sde, data = VESDE(), correlated_gaussian((64,))
    for steps, correct in ((200, 1), (100, 2)):
        x = sample(
            sde, data.score(sde), (200, 64), method="pc", steps=steps, corrector_steps=correct,
            snr=0.1, seeds=range(200),
        )  # fmt: skip
        ratio = math.sqrt(float(x.var(0).sum()) / float(data.covariance().trace()))
        assert abs(ratio - 1) < 0.06
