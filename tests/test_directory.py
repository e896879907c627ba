"""Run directories: nobody else's files are touched, two never train in one, others are noticed."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import score_sde
from score_sde import cli, load
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.lock import Lock, LockedError
from score_sde.training import checkpoints
from score_sde.training.checkpoints import CheckpointError, load_tensors, save_tensors, steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {
    "net.width": 8, "training.batch_size": 16, "training.steps": 4, "training.sample_every": 0,
    "training.tensorboard": False, "training.log_every": 1, "sampling.batch_size": 2,
    "sampling.steps": 2, "training.save_every": 2,
}  # fmt: skip


def train(path, **changes):
    options = {k: changes.pop(k) for k in ("resume", "overwrite", "resume_changed") if k in changes}
    changes = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return score_sde.train("toy2d", path, device="cpu", **options, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(path)
    return path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FOREIGN = {
    "thesis.tex": "years", "samples/mine/picture.png": "me", "samples/settings.json": "{}",
    "checkpoints/step_00000060_backup/meta.json": "{}", "checkpoints/notes.txt": "n",
    "checkpoints/step_00000002/notes.txt": "n", "progress/best.png": "b", "export/model.bin": "m",
    "snapshots/old.safetensors": "s", ".replaced/mine": "r", "tensorboard/notes": "t",
}  # fmt: skip


CLASHING = ["config.json", "log.jsonl", "checkpoints/step_00000005/meta.json"]


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}, {"resume": "auto"}])
def test_foreign_files_in_a_run_are_left_alone_and_the_run_is_whole(run, how, capsys):
    for name, text in FOREIGN.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    again = train(run, training__steps=6, **how)
    assert again.step == 6
    for name, text in FOREIGN.items():
        assert (run / name).read_text() == text, name
    assert "step_00000060_backup" in capsys.readouterr().out
    assert not (run / ".replaced_2").exists() and not (run / "train.lock").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "log.jsonl", "checkpoints/step_00000005/meta.json"]
)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": "auto"}])
def test_a_folder_that_is_no_run_keeps_what_a_run_would_replace(tmp_path, name, how):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"model_type": "bert"}')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="is no run|Nothing to resume|no checkpoint|cannot be"):
        train(tmp_path, **how)
    assert tree(tmp_path) == before


def test_an_overwritten_run_is_there_until_the_new_one_is_saved(run, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    old = tree(run)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(CheckpointError, match="No space"):
            train(run, overwrite=True)
    kept = tree(run / ".replaced")
    assert kept.items() >= {k: v for k, v in old.items() if k.startswith("checkpoints")}.items()
    assert train(run, resume="auto", training__steps=2).step == 2
    assert not list(run.glob(".replaced*"))


def test_wrong_settings_change_nothing_on_the_disk(run, tmp_path):
    before = tree(run)
    for name, value in (
        ("training.grad_clip", -1.0), ("training.lr", float("nan")), ("loss.t_min", 5.0),
        ("loss.log_sigma_std", -1.0), ("training.muon_lr", -1.0), ("training.keep", 1.5),
        ("seed", -1), ("sampling.steps", 0), ("sampling.nfe", 1), ("sampling.grid", "gone.json"),
        ("sampling.method", "nonsense"), ("loss.weighting", "simpel"), ("loss.times", 3),
    ):  # fmt: skip
        more = {"sampling.steps": None} if name == "sampling.nfe" else {}
        more |= {"sampling.method": "heun"} if name == "sampling.nfe" else {}
        for path, how in ((tmp_path / "new", {}), (run, {"overwrite": True})):
            with pytest.raises((ValueError, OSError)):
                changes = TINY | more | {name: value}
                score_sde.train("toy2d", path, device="cpu", **how, **changes)
    assert not (tmp_path / "new").exists() and tree(run) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__name": "moons"}, r"data.name \(ring8 there, moons here\)"),
        ({"data__scaling": "none"}, "data.scaling"),
        ({"loss__weighting": "min_snr"}, "loss.weighting"),
    ],
)
def test_other_data_scaling_or_loss_stop_a_resumption_unless_told(run, changes, said, capsys):
    before = tree(run)
    with pytest.raises(RunError, match=f"trained on something else: {said}.*--resume_changed"):
        train(run, resume=True, **changes)
    assert tree(run) == before
    train(run, resume=True, resume_changed=True, training__steps=5, **changes)
    assert "resumed with a change: " in capsys.readouterr().out and load(run).step == 5


def test_resume_needs_nothing_but_the_workdir(run):
    assert cli.main(["score-sde", f"--workdir={run}", "--resume", "--device=cpu"]) == 0
    assert score_sde.train(None, run, resume=True, device="cpu", **{"training.steps": 5}).step == 5
    with pytest.raises(RunError, match="needs --config"):
        score_sde.train(None, run.parent / "none", resume="auto", device="cpu")


def test_edited_and_damaged_files_are_noticed(run, capsys):
    meta = run / "checkpoints" / "step_00000004" / "meta.json"
    meta.write_text(meta.read_text().replace('"step": 4', '"step": 3'))
    (run / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes() + b"\xff\xfegarbage\n{}\n")
    assert load(run).step == 2
    train(run, resume=True)
    assert "checkpoint 4 is damaged (meta.json says step 3)" in capsys.readouterr().out
    state = {"a": torch.arange(5.0)}
    save_tensors(run / "x.safetensors", state)
    assert load_tensors(run / "x.safetensors")["a"].tolist() == [0, 1, 2, 3, 4]
    content = bytearray((run / "x.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum differs"):
        load_tensors(run / "x.safetensors")


# Locks --------------------------------------------------------------------------------------------


def test_a_second_training_says_who_trains(run):
    with RunDirectory(run).training():
        with pytest.raises(RunError, match=f"is being trained by process {os.getpid()} on"):
            train(run, overwrite=True)
    assert train(run, resume=True, training__steps=5).step == 5


def test_a_stale_lock_is_recognised(tmp_path, capsys):
    lock = Lock(tmp_path / "train.lock")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with lock.held():
        me = json.loads(lock.path.read_text())
    for holder in (
        {**me, "pid": gone.pid}, {**me, "process_started": "1"},  # its number is another's now
    ):  # fmt: skip
        lock.path.write_text(json.dumps(holder))
        with lock.held():
            assert lock.is_mine
        assert "is gone; going on" in capsys.readouterr().out
    lock.path.write_text("")
    with lock.held():
        assert lock.is_mine
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_lives_while_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr("score_sde.runs.lock.WATCH", 1.2)
    lock = Lock(tmp_path / "train.lock")
    lock.path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    beat = multiprocessing.get_context("fork").Process(target=_touch, args=(lock.path,))
    beat.start()
    with pytest.raises(LockedError, match="by process 1 on elsewhere"), lock.held():
        pass
    beat.kill()
    beat.join()
    with lock.held():
        assert lock.is_mine


def _touch(path):
    for _ in range(200):
        time.sleep(0.05)
        os.utime(path)


def test_a_workdir_deleted_while_training_stops_with_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "run"
    save = checkpoints.save_checkpoint

    def then_delete(*arguments):
        save(*arguments)
        shutil.rmtree(path)

    monkeypatch.setattr("score_sde.training.session.save_checkpoint", then_delete)
    with pytest.raises(CheckpointError, match="was deleted, renamed or taken over"):
        train(path, training__steps=400)
    assert not path.exists()


# Signals ------------------------------------------------------------------------------------------


class Points(torch.utils.data.Dataset):
    """A user's data set, read by workers."""

    def __len__(self):
        return 50

    def __getitem__(self, i):
        return torch.tensor([i / 25 - 1, 1 - i / 50])


STREAM = """
import sys, torch
from score_sde import cli
torch.set_num_threads(1)
sys.exit(cli.main(["score-sde", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_group_with_loader_workers_save_and_exit(tmp_path, number):
    words = [
        "--config=toy2d", "--data=test_directory.Points", "--config.data.workers=2",
        f"--workdir={tmp_path / 'run'}", "--device=cpu",
        "--config.training.batch_size=4", "--config.training.steps=100000",
        "--config.training.log_every=1", "--config.training.tensorboard=False",
    ]  # fmt: skip
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here.parent}:{here}"}
    child = subprocess.Popen(
        [sys.executable, "-c", STREAM, *words], start_new_session=True, env=environment,
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") > 3):
        assert child.poll() is None and time.monotonic() < until, child.stderr.read()
        time.sleep(0.02)
    os.killpg(child.pid, number)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said and steps_of(tmp_path / "run" / "checkpoints")
