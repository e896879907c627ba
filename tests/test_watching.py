"""`training.evaluate_every`: held-out losses, distances of samples, the best checkpoint, --step."""

import json

import numpy as np
import pytest
import torch

from score_sde import cli, load
from score_sde.checks import UserError
from score_sde.runs.train import train
from score_sde.training.checkpoints import load_weights, steps_of
from score_sde.training.steps import best_step, held_out_losses

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(tmp, **training):
    rng = np.random.default_rng(0)
    path = tmp / "few.npz"
    if not path.exists():
        np.savez(path, train=rng.normal(size=(12, 2)), test=rng.normal(size=(300, 2)))
    return {
        "data": {"name": str(path), "scaling": "standard"},
        "sde": {"name": "vp"},
        "net": {"name": "mlp", "width": 64, "depth": 2},
        "model": {"target": "v", "data_std": 1.0},
        "training": {"steps": 120, "batch_size": 64, "lr": 5e-3, "warmup_steps": 5, "keep": 1,
                     "sample_every": 0, "save_every": 10_000, "tensorboard": False, "log_every": 20,
                     "evaluate_every": 20, "evaluate_samples": 40, "ema_sigma_rel": 0.1,
                     "keep_best": True, **training},
        "sampling": {"method": "euler", "steps": 5, "batch_size": 50},
    }  # fmt: skip


def lines_of(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "held_out_loss" in line}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learned twelve points by heart."""
    folder = tmp_path_factory.mktemp("watched")
    train(settings(folder), folder / "run", device="cpu")
    return folder / "run"


def test_the_curve_is_logged_and_the_best_checkpoint_stays(run):
    lines = lines_of(run)
    assert list(lines) == [20, 40, 60, 80, 100, 120]
    losses = {step: line["held_out_loss"] for step, line in lines.items()}
    best = min(losses, key=losses.get)
    kept = run / "checkpoints"
    assert best_step(kept) == best and best in steps_of(kept)
    assert held_out_losses(kept)[best] == losses[best]
    # Twelve points are learned by heart: what is held out is denoised worse than what is not.
    last = lines[120]
    assert last["held_out_loss"] > last["train_loss"]
    assert last["evaluation/energy_stderr"] > 0 and np.isfinite(last["evaluation/energy"])


def test_a_step_is_loaded_in_every_way(run, capsys):
    best = best_step(run / "checkpoints")
    for step in (best, str(best), "best"):
        loaded = load(run, device="cpu", step=step)
        state = load_weights(run / "checkpoints", best, "ema")
        assert loaded.step == best
        assert all(torch.equal(v, state[k]) for k, v in loaded.score.net.state_dict().items())
    common = ["--workdir", str(run), "--device", "cpu"]
    for words in (["--mode", "sample", "--num_samples", "3"], ["--mode", "evaluate", "--few",
                  "--num_samples", "30"], ["--mode", "likelihood", "--num_samples", "2"],
                  ["--mode", "encode", "--num_samples", "2", "--nfe", "8"]):  # fmt: skip
        assert cli.main(["x", *words, *common, "--step", "best"]) == 0, capsys.readouterr().err
    made = json.loads(next(run.glob("samples/*/settings.json")).read_text())
    assert made["request"]["step"] == best
    assert cli.main(["x", "--mode", "sample", *common, "--step", "7"]) == 2
    said = capsys.readouterr().err
    assert "keeps no checkpoint '7'; it has" in said and str(best) in said
    assert cli.main(["x", "--mode", "sample", *common, "--step", "last"]) == 2
    assert "keeps no checkpoint 'last'" in capsys.readouterr().err


def test_evaluating_changes_nothing_of_the_training_nor_does_a_resumption(run, tmp_path):
    config = settings(run.parent, evaluate_every=0, keep_best=False)
    train(config, tmp_path / "quiet", device="cpu")
    folders = (folder / "checkpoints" for folder in (run, tmp_path / "quiet"))
    mine, other = (load_weights(folder, 120, "model") for folder in folders)
    assert all(torch.equal(mine[k], other[k]) for k in mine)
    train(settings(run.parent, steps=50, decay=0.0), tmp_path / "parts", device="cpu")
    train(settings(run.parent), tmp_path / "parts", resume=True, device="cpu")
    assert lines_of(tmp_path / "parts")[120] == lines_of(run)[120]
    assert best_step(tmp_path / "parts" / "checkpoints") == best_step(run / "checkpoints")


def test_what_cannot_be_watched_is_said_before_training(tmp_path):
    alone = tmp_path / "alone.npy"
    np.save(alone, np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    for changes, said in (
        ({}, "keep_best=True needs held-out items"),
        ({"keep_best": False, "evaluate_samples": 0}, "has nothing to look at"),
        ({"evaluate_every": 0}, "set training.evaluate_every"),
        ({"evaluate_samples": 7}, "0 or at least 20"),
    ):
        config = settings(tmp_path, **changes)
        config["data"]["name"] = str(alone)
        with pytest.raises(UserError, match=said):
            train(config, tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()
    config = settings(tmp_path, keep_best=False, steps=2, evaluate_every=1)
    config["data"]["name"] = str(alone)
    train(config, tmp_path / "alone", device="cpu")
    with pytest.raises(UserError, match="no checkpoint whose held-out loss is known"):
        load(tmp_path / "alone", step="best")
