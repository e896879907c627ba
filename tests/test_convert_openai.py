"""OpenAI's networks, and the variances that they have learned."""

import json
import math

import pytest
import torch
from foreign import GivenNoise, openai_weights
from golden_cases import Case, gap

from score_sde import import_checkpoint, sample
from score_sde.cli import main
from score_sde.convert import openai

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def openai_run(tmp_path, monkeypatch):
    """EDM took this network over, with fewer groups where it is narrow."""
    torch.save(openai_weights(Case("edm_precond_iddpm")), tmp_path / "model.pt")
    options = openai.net_options

    def narrow(theirs, given):
        return options(theirs, given) | {"group_channels": 4}

    monkeypatch.setattr(openai, "net_options", narrow)
    return import_checkpoint(tmp_path / "model.pt", tmp_path / "run", {"size": 16, "steps": 1000})


def test_openai(openai_run):
    case, run = Case("edm_precond_iddpm"), openai_run
    assert run.config["net"]["out_channels"] == 6 and run.config["net"]["attention"] == [8, 4]
    labels = torch.tensor([207.0, 914.0])  # nearest to these sigmas in its table
    for call in case.calls:
        x, sigma, condition = case.inputs(call)
        if condition:
            continue  # with augmentation labels, which OpenAI's network does not have
        inputs = x / (1 + sigma**2).sqrt()[:, None, None, None]
        out = run.score.net(inputs, labels, **condition)
        assert gap(out, case.output(call, "array_F")) < 1e-5
    t = torch.tensor([0.208, 0.915], dtype=torch.float64)
    eps = run.score.eps(x.double(), t)
    assert gap(eps, run.score.net(x, labels)[:, :3].double()) < 1e-4


@pytest.mark.parametrize("i", [1000, 730, 2])
def test_learned_variances_of_openai_are_those_of_the_paper(openai_run, i):
    """x_{i-1} = mu + Sigma^(1/2) z, Sigma = exp(v log beta + (1 - v) log beta~), 2102.09672."""
    run = openai_run
    assert run.score.learned_variance and run.config["sde"]["table"] == "linear"
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cat([torch.ones(1), (1 - betas).cumprod(0)])
    beta, tilde = float(betas[i - 1]), float(betas[i - 1] * (1 - bars[i - 1]) / (1 - bars[i]))
    gen = torch.Generator().manual_seed(i)
    x, z = torch.randn(2, 2, 3, 16, 16, generator=gen)
    classes = torch.tensor([3, 8])
    with torch.no_grad():
        out = run.score.net(x, torch.full((2,), i - 1.0), class_labels=classes).double()
    eps, v = out[:, :3], (out[:, 3:] + 1) / 2
    assert float(v.std()) > 0.01  # it makes a difference
    mean = (x - beta / (1 - bars[i]).sqrt() * eps) / (1 - beta) ** 0.5
    want = mean + torch.exp(0.5 * (v * math.log(beta) + (1 - v) * math.log(tilde))) * z
    got = sample(run.sde, run.score.bind(class_labels=classes), x_T=x, method="ancestral",
                 variance="learned", grid=[i / 1000, (i - 1) / 1000], denoise=False,
                 noise=lambda *_: GivenNoise(z))  # fmt: skip
    assert gap(got.double(), want) < 1e-5


def test_ancestral_takes_learned_variances_unless_told(openai_run, tmp_path):
    command = ["main.py", "--workdir", str(openai_run.path), "--mode", "sample", "--device", "cpu",
               "--sampler", "ancestral", "--steps", "3", "--num_samples", "2"]  # fmt: skip
    for name, option in (("learned", []), ("posterior", ["--option", "variance=posterior"])):
        assert main([*command, *option, "--out", str(tmp_path / name)]) == 0
        facts = json.loads((tmp_path / name / "settings.json").read_text())
        assert facts["variance"] == name and len(facts["class_labels"]) == 2
