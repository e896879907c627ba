"""Training: resume equals uninterrupted, averages, optimisers, learning rates."""

import itertools
import types

import numpy as np
import pytest
import torch
from small_training import run_for, small_data, small_trainer, train
from torch import nn

from score_sde import VPSDE, ScoreModel
from score_sde.data import ArrayData, DataSpec
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP
from score_sde.training import EMA, Trainer, TrainingSettings, checkpoints
from score_sde.training.ema import power_of
from score_sde.training.logs import BIN_NAMES, NoiseBins
from score_sde.training.optim import Muon, learning_rate_factor, make_optimizers, orthogonalize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, optimizer):
    """Weights, average, losses and learning rates, with dropout, flips and random times."""
    whole = small_trainer(optimizer=optimizer, ema_sigma_rel=0.1)
    log = train(whole, 12)
    first = small_trainer(optimizer=optimizer, ema_sigma_rel=0.1)
    train(first, 7)
    checkpoints.save_checkpoint(tmp_path, first.step, first.checkpoint())
    torch.manual_seed(999)  # nothing may depend on the state of the global generator
    second = small_trainer(optimizer=optimizer, ema_sigma_rel=0.1)
    second.restore(checkpoints.load_checkpoint(tmp_path))
    assert second.step == 7
    assert train(second, 5) == log[7:]
    for a, b in ((whole.model.net, second.model.net), (whole.ema.net, second.ema.net)):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y), name


def test_the_average_never_touches_the_weights_and_follows_them():
    trainer = small_trainer(ema_decay=0.9)
    before = [p.clone() for p in trainer.model.net.parameters()]
    train(trainer, 3)
    live = [p.clone() for p in trainer.model.net.parameters()]
    averaged = list(trainer.ema.net.parameters())
    moved = 0
    for old, new, mean in zip(before, live, averaged, strict=True):
        if not torch.equal(old, new):
            assert not torch.equal(mean, old) and not torch.equal(mean, new)
            moved += 1
    assert moved > 20
    trainer.ema.net(torch.randn(1, 1, 8, 8), torch.ones(1))
    assert all(torch.equal(p, q) for p, q in zip(live, trainer.model.net.parameters(), strict=True))


def test_ema_warm_up_and_decay():
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, decay=0.99)
    value = float(net.weight)
    for n in range(1, 2000):
        with torch.no_grad():
            net.weight.fill_(n)
        ema.update(net)
        decay = min(0.99, (1 + n) / (10 + n))
        value = decay * value + (1 - decay) * n
    assert float(ema.net.weight) == pytest.approx(value, rel=1e-4)
    assert float(ema.net.weight) == pytest.approx(1999 - 99, abs=2)  # lags by decay/(1 - decay)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_power_average_has_the_width_it_promises(sigma_rel):
    """2312.02696: the weights of past steps follow t^gamma, of relative deviation sigma_rel."""
    net = nn.Linear(1, 1, bias=False)
    moments = []
    for power in (1, 2):
        ema = EMA(net, sigma_rel=sigma_rel)
        for n in range(1, 4001):
            with torch.no_grad():
                net.weight.fill_((n / 4000) ** power)
            ema.update(net)
        moments.append(float(ema.net.weight))
    mean, spread = moments[0], (moments[1] - moments[0] ** 2) ** 0.5
    gamma = power_of(sigma_rel)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=2e-3)
    assert spread == pytest.approx(sigma_rel, rel=0.02)


def test_orthogonalize_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert 0.6 < float(singular.min()) and float(singular.max()) < 1.35


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_by_the_orthogonal_factor(layout):
    """One step against the singular value decomposition, whatever the layout in memory."""
    torch.manual_seed(0)
    weights = [
        nn.Parameter(torch.randn(shape)) for shape in ((4, 3, 3, 3), (12, 5, 1, 1), (4, 3, 3, 3))
    ]
    weights = [nn.Parameter(p.detach().to(memory_format=layout)) for p in weights]
    before = [p.detach().clone() for p in weights]
    for p in weights:
        p.grad = torch.randn(p.shape)  # contiguous, as the weight may not be
    Muon(weights, lr=0.1, dtype=torch.float32).step()
    for p, old in zip(weights, before, strict=True):
        rows, columns = p.shape[0], p[0].numel()
        u, _, v = torch.linalg.svd(p.grad.reshape(rows, columns), full_matrices=False)
        moved = (old - p.detach()).reshape(rows, columns) / (0.1 * max(1, rows / columns) ** 0.5)
        inside = u.T @ moved @ v.T  # diagonal, the singular values that five iterations reach
        assert 0.65 < float(inside.diagonal().min()) and float(inside.diagonal().max()) < 1.25
        assert float((moved - u @ torch.diag(inside.diagonal()) @ v).abs().max()) < 1e-5


def test_muon_takes_the_convolutions_and_lowers_the_loss():
    trainer = small_trainer(optimizer="muon", lr=3e-3, decay=0.0)
    adam, muon = trainer.optimizers
    assert isinstance(muon, Muon)
    shapes = [p.ndim for group in muon.param_groups for p in group["params"]]
    assert shapes and all(n == 4 for n in shapes)
    total = sum(len(g["params"]) for o in trainer.optimizers for g in o.param_groups)
    assert total == len(list(trainer.model.net.parameters()))
    losses = [v["loss"] for v in train(trainer, 60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(k, 10, k / 100, 0.5) for k in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[50] == 1.0
    assert factors[75] == pytest.approx(0.5) and factors[99] == pytest.approx(0.02)
    assert learning_rate_factor(0, 0, 0.0, 0.0) == 1.0
    assert learning_rate_factor(5, 0, 1.5, 0.5) == 0.0  # past the end of its time


def test_minutes_end_the_run_and_its_learning_rate(tmp_path, monkeypatch):
    """By a clock that goes on by 30 ms whenever it is looked at, whatever the machine does."""
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: 0.03 * next(ticks))
    monkeypatch.setattr("score_sde.training.session.time", clock)
    trainer = small_trainer(minutes=0.02, steps=10**6, log_every=1, save_every=0, sample_every=0)
    lines = run_for(trainer, small_data(), tmp_path)
    assert 1.2 <= trainer.seconds < 1.3 and trainer.step < 41
    assert lines[-1]["lr"] < 0.3 * max(line["lr"] for line in lines)
    wanted = {"loss", "loss_smooth", "grad_norm", "lr", "images_per_second", "eta_seconds"}
    assert wanted <= set(lines[-1])
    bins = [key for line in lines for key in line if key.startswith("eps_error/")]
    assert bins and all(key.removeprefix("eps_error/") in BIN_NAMES for key in bins)
    assert any(key.startswith("trivial/") for line in lines for key in line)


def test_noise_bins_are_means():
    bins = NoiseBins()
    bins.add(torch.tensor([0.01, 0.2, 0.2]), torch.tensor([1.0, 2.0, 4.0]), torch.ones(3))
    assert bins.pop() == {
        "eps_error/below_0.03": 1.0, "trivial/below_0.03": 1.0,
        "eps_error/0.1_to_0.3": 3.0, "trivial/0.1_to_0.3": 1.0,
    }  # fmt: skip
    assert bins.pop() == {}


def test_training_learns(tmp_path):
    """Loss falls well below the trivial predictor's on data with structure."""
    torch.manual_seed(0)
    model = ScoreModel(MLP(2, width=64, depth=2), VPSDE(), target="v")
    settings = TrainingSettings(batch_size=256, steps=300, lr=3e-3, warmup_steps=10, decay=0.5)
    trainer = Trainer(model, ScoreMatching(), settings)
    line = torch.randn(5000, 1) * torch.tensor([[1.0, 0.5]])
    data = ArrayData(line, {}, DataSpec((2,)))
    batches = data.batches(256, seed=0)
    for _ in range(300):
        trainer.update(next(batches)[0])
    result = trainer.bins.pop()
    trainer.update(next(batches)[0])
    assert result["eps_error/0.1_to_0.3"] < 0.75 * result["trivial/0.1_to_0.3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingSettings(batch_size=0), "training.batch_size must be at least 1"),
        (lambda: TrainingSettings(steps=0), "training.steps"),
        (lambda: TrainingSettings(lr=-1.0), "training.lr"),
        (lambda: TrainingSettings(minutes=-1.0), "training.minutes"),
        (lambda: TrainingSettings(decay=2.0), "training.decay"),
        (lambda: EMA(nn.Linear(1, 1), decay=1.0), "ema.decay must be less than 1"),
        (lambda: EMA(nn.Linear(1, 1), sigma_rel=0.5), "ema.sigma_rel must be less than 0.28"),
        (
            lambda: make_optimizers(nn.Linear(1, 1), "sgd", 1, (0, 0), 0, 1),
            "name must be 'adam' or 'muon'",
        ),
    ],
)
def test_bad_settings_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
