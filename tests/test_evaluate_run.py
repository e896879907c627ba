"""`--mode evaluate`: runs, folders and files, statistics, and what is asked for wrongly."""

import json

import numpy as np
import pytest
import torch

from score_sde import cli
from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.evaluation import Measure, Report
from score_sde.evaluation.statistics import load_statistics
from score_sde.plotting.pictures import image_array, save_png
from score_sde.runs import drawn
from score_sde.runs.evaluate import evaluate_to_files
from score_sde.runs.sweep import summary

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(toy_run):
    return toy_run


def test_a_run_is_evaluated_and_what_is_drawn_is_not_drawn_again(run, monkeypatch):
    report = evaluate_to_files(run, num_samples=300, measures="frechet,energy", device="cpu")
    assert report.protocol["n"] == 300 and report.protocol["nfe"] == 5
    assert report.protocol["weights"] == "ema" and report.protocol["step"] == 5
    assert report.memorisation.nearer is not None  # the toy set has a test split
    saved = json.loads((run / "evaluation" / "report_none_train.json").read_text())
    assert saved["measures"]["energy"]["value"] == report.energy.value
    assert "ring8 (train)" in report.sentence and "first_seed 0" in report.sentence

    drawn_parts = []
    original = drawn.Run.sample_shared

    def counted(self, n, first_seed, *rest, **changes):
        drawn_parts.append((first_seed, n))
        return original(self, n, first_seed, *rest, **changes)

    monkeypatch.setattr(drawn.Run, "sample_shared", counted)
    again = evaluate_to_files(run, num_samples=300, measures="frechet,energy", device="cpu")
    assert drawn_parts == [] and again.energy == report.energy
    evaluate_to_files(run, num_samples=400, measures="energy", device="cpu")
    assert drawn_parts == [(250, 150)]
    other = evaluate_to_files(
        run, num_samples=300, measures="energy", device="cpu", steps=6, weights="model"
    )
    assert other.protocol["nfe"] == 7 and drawn_parts[1:] == [(0, 250), (250, 50)]
    assert other.energy.value != report.energy.value


def test_folders_files_and_statistics_agree(tmp_path):
    images = load_data("fashion_mnist", split="test").raw[:200]
    for i, image in enumerate(images):
        save_png(image_array(image), tmp_path / "pngs" / f"{i:03d}.png")
    np.savez(tmp_path / "samples.npz", samples=images.numpy())
    np.savez(tmp_path / "real.npz", x=load_data("fashion_mnist").raw[:500].numpy())
    real = str(tmp_path / "real.npz")
    one = evaluate_to_files(samples=str(tmp_path / "samples.npz"), data=real, out=tmp_path / "out")
    assert one.frechet.label == "FD-fashion-classifier"
    assert (tmp_path / "out" / "neighbours.png").is_file()
    other = evaluate_to_files(samples=str(tmp_path / "pngs"), data=real)
    assert other.frechet == one.frechet and other.kid == one.kid

    assert evaluate_to_files(data=real, save=tmp_path / "stats.npz") is None
    stats = load_statistics(tmp_path / "stats.npz")
    assert stats.n == 500 and stats.facts["extractor"] == "fashion-classifier"
    third = evaluate_to_files(samples=str(tmp_path / "pngs"), reference=tmp_path / "stats.npz")
    assert third.frechet.value == pytest.approx(one.frechet.value, rel=1e-5)
    with pytest.raises(UserError, match="made with extractor fashion-classifier"):
        evaluate_to_files(samples=str(tmp_path / "pngs"), reference=tmp_path / "stats.npz",
                          features="pixels", few=True)  # fmt: skip


def test_published_statistics_are_read(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 6))
    np.savez(tmp_path / "song.npz", pool_3=features.reshape(50, 1, 1, 6))
    np.savez(tmp_path / "edm.npz", mu=features.mean(0), sigma=np.cov(features.T))
    song, edm = (load_statistics(tmp_path / name) for name in ("song.npz", "edm.npz"))
    assert song.n == 50 and edm.n is None
    torch.testing.assert_close(song.moments.covariance, edm.moments.covariance)


def test_wrong_questions_have_sentences(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    images = load_data("fashion_mnist", split="test").raw[:6]
    np.savez(tmp_path / "six.npz", samples=images.numpy())
    np.savez(tmp_path / "eight.npz", samples=images[:, :, 4:-4, 4:-4].numpy())
    six = str(tmp_path / "six.npz")
    grey, colour, plane, space = (str(tmp_path / f"{name}.npz") for name in "gcps")
    for path, shape in ((grey, (40, 1, 8, 8)), (colour, (40, 3, 8, 8)), (plane, (40, 2)),
                        (space, (40, 3))):  # fmt: skip
        drawn = np.random.default_rng(0).integers(0, 255, shape)
        np.savez(path, train=drawn.astype(np.uint8 if len(shape) == 4 else np.float32))
    np.savez(tmp_path / "below.npz", mu=np.zeros(2), sigma=-np.eye(2))
    np.savez(tmp_path / "three.npz", mu=np.zeros(3), sigma=np.eye(3))
    for words, said in (
        ([], "needs --workdir RUN, or --samples PATH with --data DATA"),
        (["--samples", six], "needs --workdir RUN"),
        (["--data", "ring8"], "give --samples to evaluate, or --save"),
        (["--workdir", str(run), "--samples", six], "give one of them"),
        (["--workdir", str(tmp_path / "none")], "is not a run directory"),
        (["--samples", str(tmp_path / "empty"), "--data", "fashion_mnist"], "No images"),
        (["--samples", six, "--data", "ring8"], "shape"),
        (["--samples", str(tmp_path / "eight.npz"), "--data", "fashion_mnist"], "(1, 20, 20)"),
        (["--samples", six, "--data", "fashion_mnist"], "6 samples are too few"),
        (["--samples", six, "--data", "fashion_mnist", "--num_samples", "7"], "holds 6 samples"),
        (["--samples", six, "--reference", str(tmp_path / "none.npz")], "does not exist"),
        (["--samples", six, "--reference", str(tmp_path / "eight.npz")], "(1, 20, 20)"),
        (["--samples", grey, "--data", colour], "(3, 8, 8)"),
        (["--samples", plane, "--data", space], "shape (2,)"),
        (["--workdir", str(run), "--num_samples", "2"], "2 samples are too few"),
        (["--workdir", str(run), "--values", "2,3"], "points of a --sweep"),
        (["--data", plane, "--save", six], "holds no statistics"),
        (["--samples", plane, "--reference", str(tmp_path / "below.npz")], "no covariance"),
        (["--samples", plane, "--reference", str(tmp_path / "three.npz")], "3 features are no"),
        (["--workdir", str(run), "--measures", "fid"], "'fid' is unknown"),
    ):
        assert cli.main(["x", "--mode", "evaluate", "--device", "cpu", *words]) == 2, words
        assert said in capsys.readouterr().err, words


def test_the_same_set_twice_is_said_and_a_reference_may_be_data(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.savez(tmp_path / "x.npz", train=x)
    np.savez(tmp_path / "y.npz", train=x + 1)
    words = ["x", "--mode", "evaluate", "--measures", "frechet", "--device", "cpu"]
    for reference, same in (("x.npz", True), ("y.npz", False)):
        given = ["--samples", str(tmp_path / "x.npz"), "--reference", str(tmp_path / reference)]
        assert cli.main([*words, *given]) == 0
        assert ("the same set, item for item" in capsys.readouterr().out) == same
    saved = ["--reference", str(tmp_path / "x.npz"), "--save", str(tmp_path / "kept.npz")]
    assert cli.main([*words, *saved]) == 0 and "statistics of 60 items" in capsys.readouterr().out


def test_pictures_of_another_size_are_resized_only_when_told(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "small.npz", train=images)
    np.savez(tmp_path / "large.npz", train=images.repeat(2, 2).repeat(2, 3))
    files = ["--samples", str(tmp_path / "large.npz"), "--data", str(tmp_path / "small.npz")]
    words = ["x", "--mode", "evaluate", *files, "--features", "pixels", "--measures", "kid"]
    assert cli.main(words) == 2
    assert "say --resize stretch" in capsys.readouterr().err
    assert cli.main([*words, "--resize", "stretch", "--out", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / "out" / "report_pixels_train.json").read_text())
    assert said["protocol"]["resized"] == "stretch"
    vectors = ["--data", "ring8", "--samples", str(tmp_path / "large.npz"), "--resize", "pad"]
    assert cli.main(["x", "--mode", "evaluate", *vectors]) == 2
    assert "--resize is for pictures" in capsys.readouterr().err


def test_a_sweep_says_what_cannot_be_told_apart(run, capsys):
    evaluate_to_files(run, num_samples=100, measures="energy", device="cpu", sweep="nfe",
                      values="3,5,41", method="heun")  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert any("best: nfe" in line and "energy" in line for line in said)
    saved = json.loads((run / "evaluation" / "sweep_nfe" / "sweep.json").read_text())
    assert [point["protocol"]["nfe"] for point in saved["points"]] == [3, 5, 41]
    for words, said in (
        (["--sweep", "nfe", "--values", "10,many"], "are not all numbers"),
        (["--sweep", "checkpoints"], "at least two points (got 5)"),
    ):
        assert cli.main(["x", "--mode", "evaluate", "--workdir", str(run), *words]) == 2
        assert said in capsys.readouterr().err


def test_the_best_of_a_sweep_is_named_with_what_is_as_good():
    def at(value, stderr):
        measure = Measure("energy", "energy", value, stderr, value, None, {"n": 9})
        return Report({"energy": measure}, {})

    said = summary("nfe", [("10", at(3.0, 0.1)), ("20", at(1.1, 0.1)), ("40", at(1.0, 0.1))])
    assert "best: nfe 40" in said and "not distinguishable from 20 by 9 samples" in said
    said = summary("nfe", [("10", at(3.0, 0.1)), ("20", at(1.0, 0.1))])
    assert "better than all others" in said
