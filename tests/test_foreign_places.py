"""Folders of others where commands write, lock and read: nothing of theirs goes or is moved."""

import json
import os
import socket

import numpy as np
import pytest
import torch
from launching import command
from PIL import Image

from score_sde import train
from score_sde.checks import UserError
from score_sde.runs import measuring
from score_sde.runs.directory import RunDirectory
from score_sde.runs.distill import distill
from score_sde.runs.lock import Lock, LockedError
from score_sde.runs.outputs import check_place
from score_sde.runs.suggest import suggest_to_file
from score_sde.runs.verify import verify_to_files

TOY = {
    "data": {"name": "ring8", "scaling": "standard"},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 8, "depth": 1},
    "training": {"steps": 2, "batch_size": 16, "sample_every": 0, "tensorboard": False},
    "sampling": {"method": "euler", "steps": 1, "batch_size": 4},
}


def everything(folder):
    """Every file and link below, with its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.fixture
def thesis(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    return folder


def test_a_lock_that_is_none_is_left_where_it_is(tmp_path, thesis):
    lock = Lock(tmp_path / "train.lock")
    thesis.rename(lock.path)
    with pytest.raises(LockedError, match="holds a folder train.lock"), lock.held():
        pass
    assert (lock.path / "thesis.tex").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]


@pytest.mark.parametrize("pid", [0, -1, 2**70])
def test_a_lock_of_no_process_is_stale(tmp_path, pid):
    lock = Lock(tmp_path / "train.lock")
    lock.path.write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
    with lock.held():
        assert lock.is_mine


def test_a_lock_that_links_to_a_file_leaves_the_file(tmp_path, thesis):
    lock = Lock(tmp_path / "train.lock")
    lock.path.symlink_to(thesis / "thesis.tex")
    with lock.held():
        assert lock.is_mine
    assert (thesis / "thesis.tex").read_text() == "mine"


def test_a_link_that_leads_nowhere_is_said_before_the_work(tmp_path, toy_run, capsys):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(UserError, match="cannot be made"):
        check_place(link)
    for mode in ("sample", "likelihood", "encode", "interpolate", "evaluate", "diagnose"):
        words = ["--measures=energy"] if mode == "evaluate" else []
        assert command("--mode", mode, "--workdir", str(toy_run), "--out", str(link), *words) == 2
        assert "cannot be made" in capsys.readouterr().err, mode
    with pytest.raises(UserError, match="cannot be made"):
        verify_to_files(out=link)


def test_what_is_set_aside_goes_only_if_it_is_a_run(tmp_path):
    train(TOY, tmp_path / "run", device="cpu")
    mine = tmp_path / "run" / ".replaced"
    mine.mkdir()
    (mine / "config.json").write_text("mine")
    (mine / "thesis.tex").write_text("mine")
    train(TOY, tmp_path / "run", overwrite=True, device="cpu")
    assert {p.name: p.read_text() for p in mine.iterdir()} == {
        "config.json": "mine", "thesis.tex": "mine"}  # fmt: skip
    assert [p.name for p in (tmp_path / "run").glob(".replaced*")] == [".replaced"]
    RunDirectory(tmp_path / "run").check(True, False)


def test_a_new_run_does_not_replace_what_it_is_made_of(tmp_path):
    teacher = tmp_path / "teacher"
    train(TOY, teacher, device="cpu")
    before, link = everything(teacher), tmp_path / "link"
    link.symlink_to(teacher)
    for place in (teacher, link, teacher / ".." / "teacher"):
        for how in ({"overwrite": True}, {}):
            with pytest.raises(UserError, match=r"teacher\.path is .* replace|holds a run"):
                distill(teacher, place, device="cpu", **how)
    for section, name in (("codec", "path"), ("conditioning", "embedding")):
        config = TOY | {section: {name: str(teacher)}}
        with pytest.raises(UserError, match=rf"{section}\.{name} is .* replace"):
            train(config, teacher, overwrite=True, device="cpu")
    assert everything(teacher) == before


def test_a_suggested_config_says_names_and_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'a""" + __import__("os").mkdir("touched") + """\\'
    (tmp_path / name).mkdir()
    points = np.random.default_rng(0).normal(size=(40, 2))
    np.save(tmp_path / name / "x.npy", points)
    suggest_to_file(str(tmp_path / name / "x.npy"), out="proposed.py")
    space: dict = {}
    exec((tmp_path / "proposed.py").read_text(), space)
    assert space["get_config"]()["data"]["name"] == str(tmp_path / name / "x.npy")
    assert not (tmp_path / "touched").exists()
    with pytest.raises(UserError, match="there already"):
        suggest_to_file("moons", out="proposed.py")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("score_sde.runs.suggest.suggest", None)  # said before the work
    for place in ("file/x.py", "proposed.py", "link.py"):
        (tmp_path / "link.py").unlink(missing_ok=True)
        (tmp_path / "link.py").symlink_to("nowhere")
        with pytest.raises(UserError, match="there already|cannot be made"):
            suggest_to_file("moons", out=place)


def test_masks_and_measurements_are_read_as_pictures_are(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    (tmp_path / "x.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    )
    Image.new("RGB", (20_000, 10_000)).save(tmp_path / "bomb.png")
    Image.new("L", (8, 8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    for name in ("x.eps", "bomb.png", "cut.png", "none.png"):
        with pytest.raises(UserError, match=f"{name} is no picture that can be read"):
            measuring.read_mask(tmp_path / name, 8, 8)
    assert not started
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    assert measuring.read_mask(tmp_path / "mask.png", 8, 8).equal(torch.eye(8, dtype=torch.bool))
