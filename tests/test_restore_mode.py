"""--mode restore: files, what is seen exactly, sentences; the Gaussian that is kept with a run."""

import json
import shutil

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
        assert (file["mean"][:, :, :5] == originals[:, :, :5]).all()
    assert (draws[:, :, :, :5] == originals[:, None, :, :5]).all()
    assert not (draws[:, :, :, 5:] == originals[:, None, :, 5:]).all()
    assert Image.open(run / "a" / "grid.png").size[1] % (8 * 2 + 2) == 0  # enlarged


@pytest.mark.parametrize("task", ["colourise", "upscale", "deblur", "fourier"])
def test_every_task(run, task, capsys):
    scale = [] if task == "colourise" else ["--factor", "2"]
    assert restored(run, "--task", task, *scale) == 0, capsys.readouterr().err
    assert "residual^2/noise^2" in capsys.readouterr().out


def test_the_gaussian_is_kept_and_is_that_of_the_data(run):
    loaded = load(run / "run")
    gaussian = loaded.gaussian
    assert (run / "run" / "gaussian.safetensors").is_file()
    raw = torch.from_numpy(np.load(run / "pictures.npy")).permute(0, 3, 1, 2)
    mean = loaded.data_spec.to_model(raw).mean(0)
    torch.testing.assert_close(gaussian.mean().float(), mean, atol=1e-5, rtol=1e-5)


def test_the_gaussian_of_a_run_that_went_on_with_other_data_is_made_anew(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    before = load(tmp_path / "run").gaussian.mean()
    pictures = np.load(run / "pictures.npy")[:, ::-1].copy()  # upside down
    np.save(tmp_path / "other.npy", pictures)
    words = ["main.py", "--mode", "train", "--workdir", str(tmp_path / "run"), "--resume"]
    words += ["--resume_changed", f"--config.data.name={tmp_path / 'other.npy'}"]
    assert main([*words, "--config.training.steps=3"]) == 0
    again = load(tmp_path / "run")
    raw = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    mean = again.data_spec.to_model(raw).mean(0)
    torch.testing.assert_close(again.gaussian.mean().float(), mean, atol=1e-5, rtol=1e-5)
    assert (mean - before).abs().max() > 0.01
    assert torch.equal(load(tmp_path / "run").gaussian.mean(), again.gaussian.mean())


def test_a_measurement_of_ones_own_is_as_one_that_is_made_here(run, capsys):
    made = ["--task", "upscale", "--factor", "2"]
    assert restored(run, *made, "--out", str(run / "made")) == 0, capsys.readouterr().err
    with np.load(run / "made" / "measurement.npz") as file:
        np.save(run / "y.npy", file["y"][0])
    own = [*made, "--measurement", str(run / "y.npy"), "--out", str(run / "own")]
    assert restored(run, *own) == 0, capsys.readouterr().err
    with np.load(run / "made" / "samples.npz") as a, np.load(run / "own" / "samples.npz") as b:
        assert (a["samples"] == b["samples"]).all() and "originals" not in b
    assert "psnr_of_mean" not in json.loads((run / "own" / "settings.json").read_text())


def test_a_picture_as_a_measurement_and_a_mask(run, capsys):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:] = 255
    Image.fromarray(mask).save(run / "lower.png")
    seen = np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(seen).save(run / "seen.png")
    words = ["--task", "inpaint", "--measurement", str(run / "seen.png"), "--noise", "0"]
    words += ["--mask", str(run / "lower.png"), "--out", str(run / "b")]
    assert restored(run, *words) == 0, capsys.readouterr().err
    with np.load(run / "b" / "samples.npz") as file:
        assert (file["samples"][0, :, 2:] == seen[2:]).all()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task", "upscale", "--factor", "3"], "does not divide"),
        (["--task", "deblur", "--factor", "1000000"], "wider than pictures"),
        (["--task", "inpaint", "--factor", "2"], "--factor is of --task upscale"),
        (["--task", "upscale", "--noise", "0"], "noise must be positive"),
        (["--task", "upscale", "--noise", "1e-7"], "far below what the process resolves"),
        (["--task", "upscale", "--measurement", "y_bytes.npy"], "model's range"),
        (["--task", "upscale", "--mask", "m.png"], "is of --task inpaint"),
        (["--task", "inpaint", "--mask", "none.png"], "no picture that can be read"),
        (["--task", "inpaint", "--mask", "mask5.png"], "5 x 5"),
        (["--task", "inpaint", "--restoration", "particle"], "Did you mean"),
        (["--task", "upscale", "--measurement", "mask5.png"], "must be 2 x 2"),
        (["--task", "upscale", "--measurement", "y_int.npy"], "floating point"),
        (["--task", "upscale", "--measurement", "y_long.npy"], "measures (3, 2, 2)"),
        (["--task", "upscale", "--measurement", "none.npy"], "there is no file none.npy"),
        (["--task", "fourier", "--measurement", "mask5.png"], ".npy"),
        (["--task", "upscale", "--measurement", "y.npy", "--data", "x"], "give one of them"),
        (["--task", "upscale", "--guidance", "3"], "leads from no condition"),
        (["--task", "upscale", "--prompt", "a boat"], "without captions"),
        ([], "--task"),
    ],
)
def test_what_cannot_be_restored_is_a_sentence(run, words, message, capsys, monkeypatch):
    monkeypatch.chdir(run)
    Image.new("L", (5, 5), 255).save(run / "mask5.png")
    np.save(run / "y_int.npy", np.zeros((3, 2, 2), np.uint8))
    np.save(run / "y_bytes.npy", np.full((3, 2, 2), 200.0))
    np.save(run / "y_long.npy", np.zeros((3, 2, 3)))
    assert restored(run, *words) == 2
    assert message in capsys.readouterr().err
