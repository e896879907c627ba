"""Students of a run: `--mode distill`, what they are sampled by, and what they refuse."""

import json

import pytest
import torch
from test_run import command

from score_sde import export_run, load, train
from score_sde.checks import UserError
from score_sde.runs.distill import distill
from score_sde.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"training.steps": 4, "training.warmup_steps": 1, "training.tensorboard": False}
LABELLED = {
    "data": {"name": "ring8", "scaling": "standard"},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 16, "depth": 1},
    "training": {"steps": 2, "batch_size": 16, "sample_every": 0, "tensorboard": False},
    "sampling": {"method": "euler", "steps": 4, "batch_size": 250},
}


@pytest.fixture(scope="module")
def student(toy_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("students") / "s"
    distill(toy_run, folder, device="cpu", changes=QUICK)
    return folder


def state(folder):
    found = load_checkpoint(folder / "checkpoints")
    return {**found.model, **{f"ema.{name}": value for name, value in found.ema.items()}}


def test_a_student_is_a_run_like_any_other(student, toy_run):
    run = load(student, device="cpu")
    assert run.score.steps == 4 and run.sampling.steps == 4
    whole = run.sample(6, steps=2)
    assert whole.nfe == 2 and whole.settings["grid"] == "angle"
    part = run.sample(2, first_seed=3, steps=2, batch_size=1)
    torch.testing.assert_close(part.x, whole.x[3:5], rtol=1e-5, atol=1e-6)
    noised = run.sample(6, steps=2, options={"renoise": True}).x
    assert not torch.equal(noised, whole.x) and torch.isfinite(noised).all()
    assert torch.equal(run.sample(6, steps=2, options={"renoise": "true"}).x, noised)
    facts = json.loads((student / "config.json").read_text())
    assert facts["teacher"]["step"] == 5 and facts["config"]["teacher"]["path"] == str(toy_run)


def test_a_student_begins_with_the_averaged_weights_of_its_teacher(toy_run, tmp_path):
    slow = QUICK | {"training.lr": 1e-12, "training.steps": 1}
    run = distill(toy_run, tmp_path / "s", device="cpu", changes=slow)
    for name, value in load(toy_run, device="cpu").score.net.state_dict().items():
        torch.testing.assert_close(run.score.net.state_dict()[name], value, rtol=1e-5, atol=1e-8)
    assert float(run.score.net.second.weight.abs().max()) < 1e-9


def test_a_resumed_student_is_the_uninterrupted_one(toy_run, tmp_path):
    folder, student = tmp_path / "s", tmp_path / "whole"
    distill(toy_run, student, device="cpu", changes=QUICK)
    distill(toy_run, folder, device="cpu", changes=QUICK | {"training.steps": 2})
    distill(workdir=folder, resume="yes", device="cpu", changes={"training.steps": 4})
    whole, parts = state(student), state(folder)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_batches_in_passes_are_one_batch(toy_run, student, tmp_path):
    distill(
        toy_run, tmp_path / "s", device="cpu", changes=QUICK | {"training.batch_per_device": 20}
    )
    whole, parts = state(student), state(tmp_path / "s")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


def test_a_map_is_trained_from_scratch(tmp_path):
    config = LABELLED | {
        "flow_map": {"steps": None, "same": 0.5},
        "sampling": {"method": "flow_map", "steps": 6},
    }
    run = train(config, tmp_path / "m", device="cpu")
    assert run.score.steps is None and run.sample(3).nfe == 6


def test_bad_wishes_of_students_are_sentences(student, toy_run, tmp_path, capsys):
    run = load(student, device="cpu")
    for given, said in (
        ({"steps": 8}, "trained for 1 to 4 steps"),
        ({"nfe": 9}, "trained for 1 to 4 steps"),
        ({"method": "heun", "steps": 3}, "sampled by flow_map"),
        ({"grid": "karras", "steps": 2}, "its own grid"),
        ({"guidance": 2.0, "class_labels": None}, "guide its teacher"),
        ({"init": "picture.png"}, "starts from noise"),
        ({"tolerance": 0.1, "method": "adams"}, "sampled by flow_map"),
    ):
        with pytest.raises(UserError, match=said):
            run.sample(2, **given)
    with pytest.raises(UserError, match="this run is a score"):
        load(toy_run, device="cpu").sample(2, method="flow_map", steps=1)
    for mode in ("likelihood", "encode", "calibrate", "diagnose"):
        assert command("--mode", mode, "--workdir", str(student)) != 0
        assert "a map of the flow" in capsys.readouterr().err


def test_a_student_is_exported_for_this_toolkit_alone(student, tmp_path):
    export_run(student, tmp_path / "e")
    run, own = load(tmp_path / "e", device="cpu"), load(student, device="cpu")
    assert run.score.steps == 4 and torch.equal(run.sample(2, steps=1).x, own.sample(2, steps=1).x)
    with pytest.raises(UserError, match="no pipeline for maps"):
        export_run(student, tmp_path / "d", "diffusers")


def test_bad_teachers_are_sentences(student, toy_run, tmp_path):
    for teacher, changes, said in (
        (None, {}, "needs --teacher"),
        (student, {}, "a map of the flow itself"),
        (tmp_path / "nowhere", {}, "nowhere"),
        (toy_run, {"sde.name": "subvp"}, "leave sde"),
        (toy_run, {"data.name": "moons"}, "leave data"),
        (toy_run, {"data.scaling": "none"}, "data"),
        (toy_run, {"net.width": 32}, "network"),
        (toy_run, {"teacher.guidance": 2.0}, "trained without its condition"),
        (toy_run, {"flow_map.gap": 2.0}, "gap"),
        (toy_run, {"loss": {"weighting": "simple"}}, "drop one of them"),
        (toy_run, {"sampling.steps": 5}, "trained for 1 to 4"),
    ):
        with pytest.raises(UserError, match=said):
            distill(teacher, tmp_path / "bad", device="cpu", changes=QUICK | changes)
        assert not (tmp_path / "bad").exists()


def test_a_teacher_that_has_changed_is_found(tmp_path):
    train(LABELLED, tmp_path / "t", device="cpu")
    distill(tmp_path / "t", tmp_path / "s", device="cpu", changes=QUICK)
    train(None, tmp_path / "t", resume=True, device="cpu", **{"training.steps": 3})
    with pytest.raises(UserError, match="is not as it was"):
        distill(workdir=tmp_path / "s", resume="yes", device="cpu", changes={"training.steps": 9})
