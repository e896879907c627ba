"""`diagnose` on trained runs: broken ones are named for what they are, five sound ones cleared.

The checks themselves are held to exact denoisers in test_causes.py; benchmarks/diagnosis.py makes
any number of fresh runs.
"""

import contextlib
import copy
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from score_sde import cli, diagnose
from score_sde.checks import UserError
from score_sde.nets import MLP
from score_sde.ode.solve import ODEError
from score_sde.runs.train import train
from score_sde.training import checkpoints

pytestmark = [pytest.mark.usefixtures("one_thread")]
BASE = {
    "data": {"name": "ring8", "scaling": "standard"},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 64, "depth": 2},
    "model": {"target": "v", "data_std": 1.0},
    "loss": {"t_min": 1e-3},
    "training": {
        "steps": 700, "batch_size": 256, "lr": 2e-3, "warmup_steps": 50, "decay": 0.5,
        "ema_sigma_rel": 0.1, "sample_every": 0, "save_every": 10_000, "tensorboard": False,
        "log_every": 20, "sample_images": 1,
    },
    "sampling": {"method": "heun", "steps": 20, "batch_size": 500},
}  # fmt: skip
FEW = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)


class Deaf(nn.Module):
    """A network that does not listen to its noise label."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = MLP(dim, 64, 2)

    def forward(self, x, noise_label):
        return self.net(x, torch.zeros_like(noise_label))


def changed(**changes):
    """The config with whole sections, or fields named section__field, in place of its own."""
    config = copy.deepcopy(BASE)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


def tampered(folder, name, change):
    """Change a file of weights and what says what it holds."""
    kept = folder / "checkpoints"
    step = checkpoints.steps_of(kept)[-1]
    saved = checkpoints.load_checkpoint(kept)
    state = {k: v.clone() for k, v in getattr(saved, name).items()}
    setattr(saved, name, change(state))
    saved.meta["step"] = step + 1
    checkpoints.save_checkpoint(kept, step + 1, saved, keep=1, keep_every=0)


def never_updated(state):
    torch.manual_seed(0)
    return {k: v for k, v in MLP(2, 64, 2).state_dict().items() if k in state} | {
        k: MLP(2, 64, 2).state_dict()[k] for k in state
    }


def broken_weights(state):
    key = sorted(state)[0]
    state[key].view(-1)[0] = float("nan")
    return state


def edited(folder, **changes):
    """Change the run's config after training, as one does who loads it with other settings."""
    file = folder / "config.json"
    saved = json.loads(file.read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        saved["config"][section][key] = value
    file.write_text(json.dumps(saved))


def few_items(tmp):
    np.savez(tmp / "few.npz", train=FEW, test=np.random.default_rng(1).normal(size=(500, 2)))
    return str(tmp / "few.npz")


EDITED = {
    "EMA never updated": lambda folder: tampered(folder, "ema", never_updated),
    "weights not finite": lambda folder: tampered(folder, "ema", broken_weights),
    "wrong prediction type": lambda folder: edited(folder, model__target="eps"),
    "bad sampler settings": lambda folder: edited(folder, sampling__steps=3,
                                                  sampling__method="euler"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A sound run, to be copied."""
    folder = tmp_path_factory.mktemp("sound") / "ring"
    train(BASE, folder, device="cpu")
    return folder


def make(kind, tmp, ring):
    """A run of this kind."""
    folder = tmp / kind.replace(" ", "_")
    if kind in EDITED:
        shutil.copytree(ring, folder)
        EDITED[kind](folder)
        return folder
    short = {"training__steps": 400}
    configs = {
        "wrong data range": {"data__scaling": "none", "data__name": str(tmp / "pixels.npz"),
                             "training__steps": 100},
        "ignored t": {"net": {"name": f"{Deaf.__module__}.Deaf"}},
        "sigma_max too small": {"sde": {"name": "ve", "sigma_max": 1.0, "sigma_min": 0.01},
                                **short},
        "learning rate too high": {"training__lr": 0.5, "training__grad_clip": 0.0,
                                   "training__decay": 0.0, **short},
        "undertrained": {"training__steps": 15, "training__warmup_steps": 10},
        "overfit": {"data__name": few_items(tmp), "training__steps": 1500},
        "t_min too large": {"sde": {"name": "vp", "t_min": 0.2}, "loss__t_min": 0.2, **short},
        "noise levels not trained": {"loss": {"times": "lognormal", "log_sigma_mean": 1.0,
                                              "log_sigma_std": 0.15, "t_min": 1e-3}, **short},
        "beta too small": {"sde": {"name": "vp", "beta_max": 1.0}, **short},
    }  # fmt: skip
    np.savez(tmp / "pixels.npz", train=128 + 60 * FEW.repeat(20, 0), test=128 + 60 * FEW)
    config = changed(**configs[kind])
    with contextlib.suppress(ODEError):  # the pictures of a run whose weights have exploded
        train(config, folder, device="cpu")
    return folder


BROKEN = {
    "EMA never updated": "EMA never updated",
    "wrong data range": "wrong data range",
    "ignored t": "ignored t",
    "wrong prediction type": "wrong prediction type",
    "sigma_max too small": "sigma_max too small",
    "beta too small": "sigma_max too small",
    "learning rate too high": "learning rate too high",
    "undertrained": "undertrained",
    "overfit": "overfit",
    "bad sampler settings": "bad sampler settings",
    "t_min too large": "t_min too large",
    "noise levels not trained": "noise levels not trained",
    "weights not finite": "weights not finite",
}
SOUND = {
    "ring8, v, VP": {},
    "moons, eps, VP": {"data__name": "moons", "model__target": "eps", "loss__t_min": 1e-3},
    "checkerboard, F, EDM": {
        "data__name": "checkerboard",
        "sde": {"name": "edm"},
        "model": {"target": "F", "data_std": 1.0, "time_input": "log_sigma"},
        "loss": {"weighting": "edm", "times": "lognormal", "log_sigma_mean": -0.5,
                 "log_sigma_std": 1.6},
        "sampling": {"method": "heun", "steps": 20, "grid": "karras", "batch_size": 500},
    },
    "swissroll, velocity, flow": {
        "data__name": "swissroll", "sde": {"name": "flow"}, "model__target": "velocity",
        "loss": {"weighting": "output", "t_min": 1e-3},
    },
    "ring8, F, VE": {
        "sde": {"name": "ve", "sigma_max": 20.0, "sigma_min": 0.01},
        "model": {"target": "F", "data_std": 1.0, "time_input": "log_sigma"},
        "loss": {"weighting": "edm", "times": "lognormal", "log_sigma_mean": -0.5,
                 "log_sigma_std": 1.8},
        "sampling": {"method": "heun", "steps": 30, "grid": "karras", "batch_size": 500},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_a_run_broken_on_purpose_is_named_for_what_it_is(kind, tmp_path, ring):
    found = diagnose(make(kind, tmp_path, ring), device="cpu")
    assert found.causes[:1] == (BROKEN[kind],), str(found)
    assert found.findings[0].evidence and found.findings[0].fix


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_found_in_a_sound_run(name, tmp_path):
    train(changed(**SOUND[name]), tmp_path / "run", device="cpu")
    found = diagnose(tmp_path / "run", device="cpu")
    assert found.causes == (), str(found)
    assert "nothing found; checked were" in str(found)


def test_the_command_writes_what_it_found(tmp_path, capsys):
    config = changed(training__steps=15, training__warmup_steps=10)
    train(config, tmp_path / "run", device="cpu")
    words = ["x", "--mode", "diagnose", "--workdir", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(words) == 0
    assert "undertrained" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "evaluation" / "diagnosis.json").read_text())
    assert saved["findings"][0]["cause"] == "undertrained" and len(saved["levels"]) == 9
    with pytest.raises(UserError, match="at least 20 to be judged, or 0 for none"):
        diagnose(tmp_path / "run", num_samples=3, device="cpu")
    with pytest.raises(UserError, match="items must be at least 16"):
        diagnose(tmp_path / "run", items=3, device="cpu")


class Told(nn.Module):
    """A network that is told one of some classes, or none."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classes, self.net = classes, MLP(dim + classes + 1, 16, 1)

    def forward(self, x, noise_label, class_labels=None):
        if class_labels is None:
            class_labels = torch.full((len(x),), -1, device=x.device)
        told = nn.functional.one_hot(class_labels + 1, self.classes + 1).to(x.dtype)
        return self.net(torch.cat([x, told], 1), noise_label)[:, : x.shape[1]]


def test_samples_with_guidance_are_judged_beside_careful_ones_without(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    x = rng.normal(size=(300, 2)) * 0.2 + 2.0 * y[:, None] - 1
    np.savez(tmp_path / "two.npz", train=x, train_labels=y)
    config = changed(training__steps=5, training__warmup_steps=2, sampling__steps=3,
                     data__name=str(tmp_path / "two.npz"),
                     net={"name": f"{Told.__module__}.Told"})  # fmt: skip
    train(config | {"conditioning": {"classes": True, "dropout": 0.2}}, tmp_path / "run")
    seen = []
    monkeypatch.setattr("score_sde.runs.diagnose.diagnose_model", lambda *given: seen.append(given))
    diagnose(tmp_path / "run", num_samples=20, guidance=3.0, device="cpu")
    subject = seen[0][0]
    assert subject.sampler.endswith("evaluations and guidance 3")
    assert subject.samples.shape == subject.careful.shape == (20, 2)
    with pytest.raises(UserError, match="guidance"):
        diagnose(tmp_path / "run", num_samples=20, guidance=-1.0, device="cpu")
