"""Training with conditions: what is told, what is dropped, and that it goes on as it began."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import score_sde
from score_sde import VPSDE, ScoreModel, load
from score_sde.conditioning.classes import LabelError, class_labels_of
from score_sde.conditioning.told import Conditioning
from score_sde.losses import ScoreMatching
from score_sde.nets import UNet
from score_sde.noise import StepRandomness
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.checkpoints import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(width=8, multipliers=(1,), blocks=1, decoder_blocks=1, attention=(), middle=(),
             group_channels=4)  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Bright and dark squares with their classes, and a network of a few thousand numbers."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = rng.integers(0, 60, (40, 8, 8, 1)) + 180 * labels[:, None, None, None]
    np.savez(tmp_path / "squares.npz", x=images.astype(np.uint8), y=labels)
    return {
        "data": {"name": str(tmp_path / "squares.npz")},
        "sde": {"name": "vp"},
        "net": {"name": "unet", **SMALL},
        "conditioning": {"classes": True, "dropout": 0.3},
        "training": {
            "batch_size": 8, "steps": 6, "warmup_steps": 2, "log_every": 2, "sample_images": 5,
            "save_every": 3, "sample_every": 3, "tensorboard": False, "keep": 9,
        },
        "sampling": {"method": "ddim", "steps": 3},
    }  # fmt: skip


class Recorder(nn.Module):
    """A network that notes the classes it is told."""

    def __init__(self):
        super().__init__()
        self.weight, self.told = nn.Parameter(torch.ones(1)), []

    def forward(self, x, noise_label, class_labels=None):
        self.told.append(class_labels)
        return x * self.weight


@pytest.mark.parametrize("passes", [None, 3])
def test_what_is_dropped_is_a_function_of_seed_step_and_row(passes):
    settings = TrainingSettings(batch_size=64, steps=9, batch_per_device=passes)
    trainer = Trainer(ScoreModel(Recorder(), VPSDE()), ScoreMatching(), settings, 5, dropout=0.25)
    x, labels, share = torch.randn(64, 2), torch.arange(64) % 7, []
    for step in range(4):
        trainer.model.net.told.clear()
        trainer.update(x, class_labels=labels)
        told = torch.cat(trainer.model.net.told)
        dropped = StepRandomness(5, step, 64).dropped(0.25, range(64))
        assert torch.equal(told, torch.where(dropped, -1, labels))
        part = StepRandomness(5, step, 64).dropped(0.25, range(20, 50))
        assert torch.equal(part, dropped[20:50])
        share.append(float(dropped.float().mean()))
    assert 0.1 < sum(share) / 4 < 0.4 and len(set(share)) > 1


def test_a_dropped_row_is_what_no_condition_gives_bit_for_bit():
    net = UNet(1, (8, 8), **SMALL, classes=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = ScoreModel(net, VPSDE())
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.3, 0.5, 0.9])
    told = torch.tensor([0, -1, 1, -1])
    with torch.no_grad():
        mixed, free = model.bind(class_labels=told)(x, t), model.bind()(x, t)
    assert torch.equal(mixed[1::2], free[1::2]) and not torch.allclose(mixed[::2], free[::2])


def test_a_run_is_told_its_classes_and_resumes_bit_for_bit(config, tmp_path, capsys):
    run = score_sde.train(config, tmp_path / "whole", device="cpu")
    assert run.score.net.classes == 2 and run.data_spec.classes == ("0", "1")
    assert "told class_labels" in capsys.readouterr().out
    score_sde.train(config, tmp_path / "parts", device="cpu", **{"training.steps": 3})
    score_sde.train(config, tmp_path / "parts", resume=True, device="cpu")
    for name in ("model", "ema"):
        a, b = (load_weights(tmp_path / d / "checkpoints", 6, name) for d in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    for picture in (tmp_path / "whole" / "progress").iterdir():
        other = tmp_path / "parts" / "progress" / picture.name
        assert picture.read_bytes() == other.read_bytes()
    assert run.sample(2, class_labels="1").x.shape == (2, 1, 8, 8)


def test_classes_that_are_not_used_are_named_and_what_does_not_fit_is_a_sentence(
    config, tmp_path, capsys
):
    config["training"]["steps"] = 1
    score_sde.train(config | {"conditioning": {}}, tmp_path / "a", device="cpu")
    assert "2 classes found (0, 1); this model is unconditional" in capsys.readouterr().out
    np.save(tmp_path / "plain.npy", np.load(tmp_path / "squares.npz")["x"])
    for changes, sentence in (
        ({"data.name": str(tmp_path / "plain.npy")}, "conditioning.classes is True, but the data"),
        ({"conditioning.others": ("pooled",)}, "pooled is asked, but the data have class_labels"),
        ({"net.classes": 3}, "net.classes is filled in"),
        ({"conditioning.dropout": 1.5}, "conditioning.dropout must be less than 1"),
        ({"conditioning.classes": False}, "has nothing to drop"),
        ({"conditioning.text": "words"}, "needs data with captions"),
    ):
        with pytest.raises(ValueError, match=sentence):
            score_sde.train(config, tmp_path / "b", device="cpu", **changes)
        assert not (tmp_path / "b").exists()


def test_conditions_are_chosen_by_name():
    batch = {"class_labels": torch.zeros(2), "pooled": torch.ones(2, 3), "text": torch.ones(2)}
    assert set(Conditioning(True, others=("pooled",)).of(batch)) == {"class_labels", "pooled"}
    assert Conditioning().of(batch) == {}


def test_classes_by_name():
    net = UNet(1, (8, 8), **SMALL, classes=3)
    names = ("T-shirt/top", "ankle boot", "dress")
    for given, want in (
        ("ankle boot", [1, 1, 1]), ("Dress, t-shirt/top", [2, 0, 2]), ("2,dress,0", [2, 2, 0]),
        (["dress", 1, "ankle boot"], [2, 1, 1]), ("all", [0, 1, 2]),
    ):  # fmt: skip
        assert class_labels_of(net, given, 3, names).tolist() == want
    with pytest.raises(LabelError, match="'drss' is not a class.* Did you mean 'dress'"):
        class_labels_of(net, "drss", 3, names)


def test_a_run_of_before_the_mark_still_loads_samples_and_resumes(tmp_path, capsys):
    """golden/run_before_marks.tar.xz: twenty steps of the quick start in small, at eb8f406."""
    archive = Path(__file__).parent / "golden" / "run_before_marks.tar.xz"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    path = tmp_path / "vp_fashion"
    run = load(path, device="cpu")
    pixels = run.data_spec.to_uint8(run.sample(2, nfe=3).x).permute(0, 2, 3, 1).numpy()
    expected = np.load(path / "expected.npz")["samples"]
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 2  # bfloat16 of any machine
    again = score_sde.train(None, path, resume=True, device="cpu", **{"training.steps": 22})
    assert again.step == 22 and "resumed" in capsys.readouterr().out
    assert json.loads((path / "run.json").read_text())["format"] == "score_sde run"
