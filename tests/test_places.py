"""Where commands write: asked before the work, and nobody's files are replaced."""

import json
from pathlib import Path

import numpy as np
import pytest

from score_sde.checks import UserError
from score_sde.evaluation.statistics import load_statistics
from score_sde.runs import diagnose, outputs
from score_sde.runs.calibrate import calibrate_run
from score_sde.runs.diagnose import diagnose_to_file
from score_sde.runs.directory import RunError
from score_sde.runs.evaluate import evaluate_to_files
from score_sde.runs.verify import verify_to_files


@pytest.fixture
def taken(tmp_path):
    """A path whose parent is a file: no folder can be made there, whoever asks."""
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file" / "out"


def test_a_place_that_cannot_be_is_said_and_nothing_stays(tmp_path, taken):
    for place in (taken, taken.parent):
        with pytest.raises(RunError, match="cannot be made"):
            outputs.check_place(place)
    outputs.check_place(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_that_permissions_do_not_tell_of():
    with pytest.raises(RunError, match="cannot be made"):
        outputs.check_place("/proc/nothing/here")


def test_commands_ask_before_they_work(taken, toy_run, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("the work was begun")

    for name in ("score_sde.runs.diagnose.diagnose", "score_sde.runs.verify.verify",
                 "score_sde.runs.calibrate.calibrate", "score_sde.runs.evaluate.draw"):  # fmt: skip
        monkeypatch.setattr(name, work)
    for command in (
        lambda: diagnose_to_file(toy_run, out=taken),
        lambda: verify_to_files(out=taken),
        lambda: calibrate_run(toy_run, recipe=taken / "recipe.json"),
        lambda: evaluate_to_files(toy_run, out=taken, measures="energy"),
    ):
        with pytest.raises(RunError, match="cannot be made"):
            command()


def test_nobodys_reports_are_replaced(tmp_path, toy_run, monkeypatch):
    class Found:
        levels = ()

        def to_dict(self):
            return {"causes": [1.0, float("nan")]}

    monkeypatch.setattr(diagnose, "diagnose", lambda *args: Found())
    for name in ("diagnosis.json", "report_none_train.json", "report_none_train.txt"):
        (tmp_path / name).write_text("mine")
    diagnose_to_file(toy_run, out=tmp_path)
    evaluate_to_files(toy_run, split="train", num_samples=60, out=tmp_path, measures="energy")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sum(text == "mine" for text in files.values()) == 3 and len(files) == 6
    ours = next(n for n in files if n.startswith("diagnosis_"))
    assert json.loads(files[ours]) == {"causes": [1.0, None]}


def test_statistics_replace_nothing_but_statistics(tmp_path):
    (tmp_path / "photo.npz").write_text("mine")
    with pytest.raises(UserError, match="photo.npz is there and holds no statistics"):
        evaluate_to_files(data="ring8", save=tmp_path / "photo.npz")
    assert (tmp_path / "photo.npz").read_text() == "mine"


def test_files_of_statistics_that_hold_none_are_named(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros((4, 2)))
    good = {"mu": np.zeros(2), "sigma": np.eye(2)}
    odd = ({"mu": np.full(2, np.nan)}, {"sigma": np.eye(3)}, {"n": np.array("many")},
           {"facts": np.array("[")}, {"facts": np.array("3")},
           {"mu": np.array(["a", "b"])})  # fmt: skip
    for i, wrong in enumerate(odd):
        np.savez(tmp_path / f"{i}.npz", **{**good, **wrong})
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=path.name):
            load_statistics(path)
    np.savez(tmp_path / "good.npz", **good)
    assert load_statistics(tmp_path / "good.npz").moments.covariance.shape == (2, 2)
