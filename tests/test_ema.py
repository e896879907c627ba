"""Averages of the weights: several at once, any length after training, nothing left out."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from score_sde import VPSDE, ScoreModel, cli, load
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP
from score_sde.training import EMA, CheckpointError, Trainer, TrainingSettings, posthoc
from score_sde.training.checkpoints import averages_of, load_weights, save_tensors

POINTS = [
    "--config=toy2d",
    "--config.training.batch_size=64",
    "--config.training.sample_every=0",
    "--config.training.tensorboard=False",
    "--config.sampling.batch_size=3",
    "--config.sampling.steps=3",
    "--device=cpu",
]


pytestmark = pytest.mark.usefixtures("one_thread")


class WithBuffers(nn.Module):
    """A network with buffers, one of which counts, and a weight that is not trained."""

    def __init__(self):
        super().__init__()
        self.layer, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x, label):
        self.count += self.training
        return self.frozen(self.layer(x)) * self.scale


def make_trainer(net=None, **settings) -> Trainer:
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=1) if net is None else net
    settings = {"batch_size": 32, "lr": 1e-2, "warmup_steps": 1, **settings}
    return Trainer(ScoreModel(net, VPSDE()), ScoreMatching(), TrainingSettings(**settings))


def train(trainer: Trainer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        trainer.update(torch.randn(32, 2, generator=generator))


@pytest.mark.parametrize("halflife", [3.0, 40.0])
def test_half_of_the_average_is_of_the_last_half_life(halflife):
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, halflife=halflife)
    for n in range(1, 2001):
        with torch.no_grad():
            net.weight.fill_(float(n > 2000 - halflife))  # a step at one half-life before the end
        ema.update(net)
    assert float(ema.net.weight.detach()) == pytest.approx(0.5, abs=1e-5)


def test_several_averages_at_once_are_those_one_would_have_alone():
    both = make_trainer(ema_decay=0.9, ema_halflives=(2.0, 50.0))
    train(both, 30)
    for halflife in (2.0, 50.0):
        alone = make_trainer(ema_decay=0.5 ** (1 / halflife))
        train(alone, 30)
        together = both.averages[f"ema_halflife_{halflife:g}"].net.state_dict()
        for key, value in alone.ema.net.state_dict().items():
            assert torch.equal(together[key], value), key


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_every_tensor_that_moved_is_in_the_average(compiled):
    trainer = make_trainer(WithBuffers(), ema_decay=0.9, compile=compiled)
    start = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    train(trainer, 4)
    live, averaged = trainer.model.net.state_dict(), trainer.ema.net.state_dict()
    assert live.keys() == averaged.keys() == start.keys()  # no prefix of a compiler or of DDP
    moved = {key for key in live if not torch.equal(live[key], start[key])}
    assert moved == {"layer.weight", "layer.bias", "count"}
    for key in live:
        assert torch.equal(averaged[key], start[key]) == (key not in moved), key
    assert torch.equal(averaged["count"], live["count"])


def test_an_average_that_does_not_follow_is_an_error(monkeypatch):
    ema, net = EMA(nn.Linear(2, 2)), nn.Linear(2, 2)
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: None)
    with pytest.raises(RuntimeError, match="matched 0 of the 2 tensors that moved"):
        ema.update(net)


# Post-hoc -----------------------------------------------------------------------------------------


def test_coefficients_give_back_what_was_stored():
    steps = [100, 200, 300, 400]
    for i, width in enumerate(posthoc.WIDTHS):
        expected = np.zeros((4, 2))
        expected[-1, i] = 1
        found = posthoc.coefficients(steps, posthoc.WIDTHS, 400, width)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2])
def test_coefficients_approach_the_profile_asked_for(sigma_rel):
    """The weights of past steps, against (gamma + 1) tau^gamma / t^(gamma + 1)."""
    steps = list(range(100, 3201, 100))
    tau = np.arange(1, 3201) - 0.5

    def profile(step: int, width: float) -> np.ndarray:
        gamma = posthoc.power_of(width)
        return np.where(tau < step, (gamma + 1) * (tau / step) ** gamma / step, 0)

    rows = posthoc.coefficients(steps, posthoc.WIDTHS, 3200, sigma_rel)
    made = sum(c * profile(s, w) for s, row in zip(steps, rows, strict=True)
               for c, w in zip(row, posthoc.WIDTHS, strict=True))  # fmt: skip
    wanted = profile(3200, sigma_rel)
    assert np.linalg.norm(made - wanted) < 0.03 * np.linalg.norm(wanted)
    assert made.sum() == pytest.approx(1, rel=1e-3)


def test_any_length_after_training(tmp_path, monkeypatch, capsys):
    """`--mode ema` agrees with an average of that width kept all along."""
    monkeypatch.chdir(tmp_path)
    train = [*POINTS, "--config.training.steps=300", "--config.training.ema_snapshot_every=20"]
    train += ["--config.training.ema_sigma_rel=0.15", "--config.training.save_every=0"]
    assert cli.main(["score-sde", *train, "--workdir=run"]) == 0
    ema = ["score-sde", "--workdir=run", "--mode=ema", "--device=cpu"]
    assert cli.main([*ema, "--sigma_rel=0.15"]) == 0
    assert "use it with --weights sigma_rel_0.15" in capsys.readouterr().out
    direct, live = (
        load_weights(tmp_path / "run" / "checkpoints", 300, name) for name in ("ema", "model")
    )
    made = load("run", "sigma_rel_0.15", device="cpu")
    assert made.step == 300
    state = made.score.net.state_dict()
    apart = sum(float((state[k] - direct[k]).square().sum()) for k in direct) ** 0.5
    lag = sum(float((live[k] - direct[k]).square().sum()) for k in direct) ** 0.5
    assert apart < 0.05 * lag
    sample = ["score-sde", "--workdir=run", "--mode=sample", "--device=cpu", "--num_samples=3"]
    assert cli.main([*sample, "--weights=sigma_rel_0.15"]) == 0
    assert cli.main([*sample, "--weights=sigma_rel_0.3"]) == 2
    assert "weights 'sigma_rel_0.3' is unknown" in capsys.readouterr().err
    assert cli.main([*ema, "--sigma_rel=0.1", "--step=200"]) == 0
    assert json.loads((tmp_path / "run/averages/sigma_rel_0.1.json").read_text()) == {"step": 200}


def test_averages_without_snapshots_are_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = [*POINTS, "--config.training.steps=6", "--config.training.ema_halflives=(3.0, 8.0)"]
    assert cli.main(["score-sde", *train, "--workdir=run"]) == 0
    names = averages_of(tmp_path / "run" / "checkpoints", 6)
    assert names == ["ema", "ema_halflife_3", "ema_halflife_8", "model"]
    load("run", "ema_halflife_3", device="cpu")
    ema = ["score-sde", "--workdir=run", "--mode=ema", "--device=cpu"]
    for arguments, message in (
        ([], "needs --sigma_rel"),
        (["--sigma_rel=0.1"], "0 snapshots and two are needed.*ema_snapshot_every"),
        (["--sigma_rel=0.5"], "two are needed"),
    ):
        assert cli.main([*ema, *arguments]) == 2
        import re

        assert re.search(message, capsys.readouterr().err)


def test_damaged_and_missing_snapshots_are_named(tmp_path):
    state = posthoc.snapshot_state({w: EMA(WithBuffers(), sigma_rel=w) for w in posthoc.WIDTHS})
    for step in (1, 2, 3):
        save_tensors(posthoc.snapshot_path(tmp_path, step), state)
    step, made = posthoc.reconstruct(tmp_path, 0.1)
    assert step == 3 and made.keys() == WithBuffers().state_dict().keys()
    assert made["count"].dtype == torch.long and made["layer.weight"].dtype == torch.float32
    with pytest.raises(CheckpointError, match="no snapshot of step 7; choose from"):
        posthoc.reconstruct(tmp_path, 0.1, step=7)
    posthoc.snapshot_path(tmp_path, 2).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="step_00000002.safetensors is not a whole snapshot"):
        posthoc.reconstruct(tmp_path, 0.1)
