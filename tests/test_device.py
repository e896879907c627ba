"""What the mathematics comes to on a device, beside what it comes to on the CPU.

    pytest tests/test_device.py --device cuda      (or mps, cuda:1; without, the CPU beside itself)

Every process, sampler, loss, likelihood, network, operator and stream of noise is computed there
and here from the same numbers. Orders of convergence are measured there by themselves.
"""

import math

import pytest
import torch
from conftest import PROCESSES, times_of

from score_sde import VPSDE, Gaussian, ScoreModel, log_likelihood, restore, sample
from score_sde.losses import TIMES, WEIGHTINGS, ScoreMatching
from score_sde.nets import MLP, UNet
from score_sde.nets.transformer import Transformer
from score_sde.noise import BrownianNoise, PhiloxNoise, SeededNoise, StepRandomness
from score_sde.processes.process import SDE
from score_sde.restoration import operators, pictures
from score_sde.sampling import list_samplers
from score_sde.training.optim import orthogonalize

OPTIONS = {"adams": {"data_std": 0.5}, "adams_sde": {"data_std": 0.5}}
SAMPLERS = sorted({entry["name"] for entry in list_samplers()})


def close(there: torch.Tensor, here: torch.Tensor, rtol=2e-4, atol=2e-5) -> None:
    torch.testing.assert_close(there.cpu().to(here.dtype), here, rtol=rtol, atol=atol)


def gaussian(device="cpu", dtype=torch.float32) -> Gaussian:
    mean = torch.tensor([0.4, -0.3], dtype=dtype)
    covariance = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=dtype)
    return Gaussian(mean.to(device), covariance.to(device))


def states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(device, name):
    sde: SDE = PROCESSES[name]
    t = times_of(sde, 5).float()
    x, score = states(5, 3), states(5, 3)
    s = 0.6 * t
    for of in (
        lambda x, score, s, t: sde.marginal(x, t)[0],
        lambda x, score, s, t: torch.stack(sde.transition(s, t)),
        lambda x, score, s, t: sde.drift(x, t),
        lambda x, score, s, t: torch.stack([sde.diffusion(t), sde.alpha(t), sde.log_snr(t)]),
        lambda x, score, s, t: sde.denoise(x, t, score),
        lambda x, score, s, t: torch.stack(
            [sde.log_snr(t), sde.posterior(x, score, s, t)[0][:, 0]]
        ),
        lambda x, score, s, t: sde.reverse(lambda x, t: score).drift(x, t),
        lambda x, score, s, t: sde.prior_log_prob(x),
    ):
        there = of(*(value.to(device) for value in (x, score, s, t)))
        assert there.device.type == device.type
        close(there, of(x, score, s, t), rtol=1e-3)


@pytest.mark.parametrize("method", SAMPLERS)
def test_samplers(device, method):
    """Same seeds, same samples."""
    options = {"method": method, "seeds": range(4), **OPTIONS.get(method, {})}
    if method not in ("rk45", "adaptive_sde", "ode"):
        options["steps"] = 8
    here = sample(VPSDE(), gaussian().score(VPSDE()), (4, 2), **options)
    there = sample(VPSDE(), gaussian(device).score(VPSDE()), (4, 2), device=device, **options)
    assert there.device.type == device.type
    close(there, here, rtol=5e-3, atol=5e-3 if method == "adaptive_sde" else 1e-3)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2),
                                               ("dpmpp_3m", 3), ("rk4", 4)])  # fmt: skip
def test_orders(device, wide, method, order):
    sde, data = VPSDE(), gaussian(device, wide)
    x_T = states(64, 2).to(device, wide)
    exact = sample(sde, data.score(sde), x_T=x_T, method="rk4", steps=300, denoise=False)
    errors = []
    for steps in (20, 40, 80):
        options = {"method": method, "steps": steps, "grid": "logsnr", "denoise": False}
        x = sample(sde, data.score(sde), x_T=x_T, **options)
        errors.append(float((x - exact).square().mean().sqrt()))
    found = math.log2(errors[1] / errors[2])
    assert found > order - 0.35, errors


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_losses(device, times, weighting):
    torch.manual_seed(0)
    here = ScoreModel(MLP(3, width=8, depth=1), VPSDE(), target="v")
    there = ScoreModel(MLP(3, width=8, depth=1), VPSDE(), target="v")
    there.load_state_dict(here.state_dict())
    there = there.to(device)
    objective = ScoreMatching(times=times, weighting=weighting)
    torch.manual_seed(1)
    t = objective.draw_times(here, 6, "cpu")
    x0, eps = states(6, 3), states(6, 3).flip(0)
    a = objective(here, x0, t, eps)
    b = objective(there, x0.to(device), t.to(device), eps.to(device))
    close(b.loss.detach(), a.loss.detach())
    a.loss.sum().backward()
    b.loss.sum().backward()
    for p, q in zip(here.net.parameters(), there.net.parameters(), strict=True):
        close(q.grad, p.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_likelihood(device, divergence):
    x = states(5, 2)
    sde = VPSDE()
    options = {"nfe": 24, "divergence": divergence, "data_std": 0.5, "seeds": range(5)}
    here = log_likelihood(sde, gaussian().score(sde), x, **options)
    there = log_likelihood(sde, gaussian(device).score(sde), x.to(device), **options)
    close(there.nats, here.nats, rtol=1e-3, atol=2e-3)


def nets():
    torch.manual_seed(0)
    unet = UNet(2, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,))
    return {"unet": unet, "mlp": MLP(128, width=16, depth=2),
            "dit": Transformer(2, (8, 8), width=32, depth=1, heads=2)}  # fmt: skip


@pytest.mark.parametrize("name", ["unet", "mlp", "dit"])
def test_nets(device, name):
    here, there = nets()[name].eval(), nets()[name].eval().to(device)
    x, label = states(3, 2, 8, 8), torch.tensor([0.1, 5.0, 900.0])
    for net in (here, there):  # new networks end in zeros
        torch.manual_seed(1)
        for p in net.parameters():
            p.data.copy_(0.1 * torch.randn(p.shape))
    a, b = here(x, label), there(x.to(device), label.to(device))
    close(b.detach(), a.detach(), rtol=2e-3, atol=2e-3)
    a.square().sum().backward()
    b.square().sum().backward()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        scale = float(p.grad.abs().max()) + 1e-6
        close(q.grad / scale, p.grad / scale, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["grey", "pool", "downsample", "blur", "fourier", "mask"])
def test_operators(device, name):
    made = {
        "grey": pictures.Grey, "pool": lambda: pictures.Pool(2),
        "downsample": lambda: pictures.Downsample(2),
        "blur": lambda: pictures.Blur(pictures.gaussian_kernel(1.0)),
        "fourier": lambda: pictures.Fourier(torch.arange(64).view(8, 8) % 3 == 0),
        "mask": lambda: operators.Mask(torch.arange(64).view(8, 8) % 2 == 0),
    }  # fmt: skip
    operator, x = made[name](), states(2, 3, 8, 8)
    here, there = operator(x), operator(x.to(device))
    close(there, here)
    u = torch.randn(here.shape, generator=torch.Generator().manual_seed(1))
    close(operator.adjoint(u.to(device), (3, 8, 8)), operator.adjoint(u, (3, 8, 8)))


def test_restoration(device):
    """Half of a Gaussian is seen: the mean of what is restored is that on the CPU."""
    sde, y = VPSDE(), torch.tensor([0.5])
    operator = operators.Mask(torch.tensor([True, False]))
    options = {"noise_std": 0.1, "method": "mmps", "nfe": 30, "seeds": range(3), "shape": (2,)}
    options |= {"n": 3}
    here = restore(sde, gaussian().score(sde), y, operator, **options)
    prior = gaussian(device).score(sde)
    there = restore(sde, prior, y.to(device), operator, device=str(device), **options)
    close(there, here, rtol=5e-3, atol=5e-3)


def test_noise(device):
    seeds = [5, 2**50, 7]
    for make in (SeededNoise, PhiloxNoise):
        here, there = make(seeds, (3, 2)), make(seeds, (3, 2), device=device)
        for _ in range(2):
            close(there.draw(), here.draw(), rtol=1e-5, atol=1e-6)
        which = torch.tensor([0, 2])
        close(there.draw(which=which.to(device)), here.draw(which=which), rtol=1e-5, atol=1e-6)
    here = BrownianNoise(seeds, (2,), sde=VPSDE())
    there = BrownianNoise(seeds, (2,), device=device, sde=VPSDE())
    close(there.draw(0.9, 0.4), here.draw(0.9, 0.4))
    like = torch.empty(6, 5, device=device)
    whole = StepRandomness(0, 3, 6).noise(like, range(6))
    assert torch.equal(StepRandomness(0, 3, 6).noise(like[:2], range(2, 4)), whole[2:4])


def test_orthogonalisation(device):
    matrices = states(2, 6, 9)
    there = orthogonalize(matrices.to(device), dtype=torch.float32)
    close(there, orthogonalize(matrices, dtype=torch.float32), rtol=1e-3, atol=1e-3)
