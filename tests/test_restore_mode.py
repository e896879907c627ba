"""--mode restore: files, what is seen exactly, sentences; the Gaussian that is kept with a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import load
from score_sde.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restore")
    data = folder / "pictures.npy"
    side = np.linspace(0, 1, 8)
    g = np.random.default_rng(0)
    waves = [np.outer(np.sin(6 * side * a + b), np.cos(3 * side * b)) for a, b in g.random((64, 2))]
    pictures = (127 + 120 * np.stack(waves)).astype(np.uint8)
    np.save(data, np.stack([pictures] * 3, -1))
    words = ["main.py", "--config", "vp_fashion", "--workdir", str(folder / "run")]
    words += ["--data", str(data), "--config.training.steps=2", "--config.training.batch_size=8"]
    words += ["--config.sampling.nfe=3", "--config.training.log_every=1"]
    words += ["--config.net.width=16", "--config.net.heads=1", "--config.net.attention=()"]
    assert main(words) == 0
    return folder


def restored(run, *words):
    return main(["main.py", "--mode", "restore", "--workdir", str(run / "run"), "--nfe", "6",
                 "--num_samples", "3", *words])  # fmt: skip


def test_seen_pixels_are_exact_and_the_files_say_what_was_done(run, capsys):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(mask).save(run / "mask.png")
    words = ["--task", "inpaint", "--mask", str(run / "mask.png"), "--noise", "0"]
    words += ["--items", "2", "--out", str(run / "a")]
    assert restored(run, *words) == 0, capsys.readouterr().err
    facts = json.loads((run / "a" / "settings.json").read_text())
    assert facts["method"] == "hybrid" and "hybrid" in facts["said"]
    with np.load(run / "a" / "samples.npz") as file:
        draws, originals = file["samples"], file["originals"]
        assert draws.shape == (2, 3, 8, 8, 3) and file["std"].shape == (2, 8, 8, 3)
    assert (draws[:, :, :, :5] == originals[:, None, :, :5]).all()
    assert not (draws[:, :, :, 5:] == originals[:, None, :, 5:]).all()
    assert Image.open(run / "a" / "grid.png").size[1] == 8 * 2 + 2


@pytest.mark.parametrize("task", ["colourise", "upscale", "deblur", "fourier"])
def test_every_task(run, task, capsys):
    assert restored(run, "--task", task, "--factor", "2") == 0, capsys.readouterr().err
    assert "residual^2/noise^2" in capsys.readouterr().out


def test_the_gaussian_is_kept_and_is_that_of_the_data(run):
    loaded = load(run / "run")
    gaussian = loaded.gaussian
    assert (run / "run" / "gaussian.safetensors").is_file()
    raw = torch.from_numpy(np.load(run / "pictures.npy")).permute(0, 3, 1, 2)
    mean = loaded.data_spec.to_model(raw).mean(0)
    torch.testing.assert_close(gaussian.mean().float(), mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task", "upscale", "--factor", "3"], "does not divide"),
        (["--task", "upscale", "--noise", "0"], "noise must be positive"),
        (["--task", "upscale", "--mask", "m.png"], "is of --task inpaint"),
        (["--task", "inpaint", "--mask", "none.png"], "no picture that can be read"),
        (["--task", "inpaint", "--mask", "mask5.png"], "5 x 5"),
        (["--task", "inpaint", "--restoration", "particle"], "Did you mean"),
        ([], "--task"),
    ],
)
def test_what_cannot_be_restored_is_a_sentence(run, words, message, capsys, monkeypatch):
    monkeypatch.chdir(run)
    Image.new("L", (5, 5), 255).save(run / "mask5.png")
    assert restored(run, *words) == 2
    assert message in capsys.readouterr().err
