"""Losses and gradients that are not finite, memory that is not enough: named, skipped, ended."""

import numpy as np
import pytest
import torch
from small_training import run_for, small_data, small_trainer, train

from score_sde import VPSDE, ScoreModel
from score_sde.data import ArrayData
from score_sde.losses import ScoreMatching
from score_sde.nets import UNet
from score_sde.training import Trainer, TrainingError, TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def data_with_a_bad_item(bad: int) -> ArrayData:
    """small_data with file names, and NaN in one item."""
    data = small_data()
    raw = data.raw.float()
    raw[bad] = float("nan")
    return ArrayData(raw, {}, data.spec, names=tuple(f"img_{i:02d}.png" for i in range(30)))


def test_a_bad_item_is_named_with_its_step_and_noise_level_and_its_steps_skipped(tmp_path, capsys):
    trainer = small_trainer(steps=8, log_every=1, save_every=0, sample_every=0)
    lines = run_for(trainer, data_with_a_bad_item(11), tmp_path)
    skipped = [
        b["skipped_steps"] - a["skipped_steps"] for a, b in zip(lines, lines[1:], strict=False)
    ]
    assert trainer.outcomes.skipped_steps == 2 and sum(skipped) in (
        1,
        2,
    )  # 8 batches of 8 of 30 items
    printed = capsys.readouterr().out
    assert printed.count("the loss of 1 of 8 items is not finite (noise level ") == 2
    assert printed.count("; img_11.png); skipped, 1 in a row") == 2
    assert lines[-1]["loss_smooth"] is not None
    assert all(torch.isfinite(p).all() for p in trainer.model.net.parameters())
    assert all(torch.isfinite(p).all() for p in trainer.ema.net.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_non_finite_steps_are_skipped_and_end_the_run_in_the_end(optimizer):
    trainer = small_trainer(optimizer=optimizer, max_bad_steps=5, log_every=1)
    train(trainer, 2)
    before = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    bad = torch.full((8, 1, 8, 8), float("nan"))
    for _ in range(4):
        trainer.update(bad)
    train(trainer, 1)  # a good step in between starts the count anew
    assert trainer.outcomes.bad_steps == 0 and trainer.outcomes.skipped_steps == 4
    before = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    moments = [s for o in trainer.optimizers for s in o.state_dict()["state"].values()]
    moments = [{k: v.clone() for k, v in s.items()} for s in moments]
    for _ in range(4):
        trainer.update(bad)
    with pytest.raises(TrainingError, match="not been finite for 5 steps.*Try half the lr"):
        trainer.update(bad)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.net.state_dict().items())
    after = [s for o in trainer.optimizers for s in o.state_dict()["state"].values()]
    for was, now in zip(moments, after, strict=True):
        assert all(torch.equal(now[name], value) for name, value in was.items())
    assert all(torch.isfinite(p).all() for p in trainer.ema.net.parameters())


def test_what_came_of_updates_is_read_together(capsys):
    """Many at a time or each by itself: the same losses, counts and words."""
    said = []
    for log_every in (1, 6):
        trainer = small_trainer(log_every=log_every)
        train(trainer, 2)
        trainer.update(torch.full((8, 1, 8, 8), float("nan")))
        train(trainer, 3)
        assert not trainer.outcomes.unread
        said.append(
            (trainer.outcomes.smooth_loss, trainer.outcomes.skipped_steps, capsys.readouterr().out)
        )
    assert said[0] == said[1] and said[0][1] == 1 and "step 2: the loss of 8 of 8" in said[0][2]


def test_a_gradient_that_is_not_finite_though_the_loss_is(capsys):
    trainer = small_trainer(log_every=1)
    weight = next(iter(trainer.model.net.parameters()))
    handle = weight.register_hook(lambda g: g * float("inf"))
    train(trainer, 1)
    assert "the gradient is not finite though the loss is; skipped" in capsys.readouterr().out
    handle.remove()
    train(trainer, 1)
    assert trainer.outcomes.bad_steps == 0 and torch.isfinite(weight).all()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "Out of memory at 8 items a pass.* batch_per_device=4: the same result from 2 passes"),
        ({"batch_per_device": 3}, "at 3 items a pass.*batch_per_device=1: .* from 8 passes"),
        ({"batch_per_device": 1}, "at 1 items a pass.*bf16, a smaller network"),
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you")]
)
def test_out_of_memory_says_what_fits(monkeypatch, settings, advice, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(ScoreMatching, "__call__", full)
    with pytest.raises(TrainingError, match=advice.replace("batch_per", "training.batch_per")):
        train(small_trainer(**settings), 1)


def test_the_advice_on_memory_gives_the_same_result():
    """batch_per_device changes the passes, not the update (dropout apart)."""
    results = []
    for settings in ({}, {"batch_per_device": 4}, {"batch_per_device": 3}):
        torch.manual_seed(0)
        net = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,))
        settings = TrainingSettings(batch_size=8, warmup_steps=5, **settings)
        trainer = Trainer(ScoreModel(net, VPSDE()), ScoreMatching(), settings)
        results.append([v["loss"] for v in train(trainer, 8)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-6)
