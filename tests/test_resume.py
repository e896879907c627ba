"""Runs that are killed, stopped and resumed end where an uninterrupted one does, bit for bit."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launching import command, ended, start

from score_sde import cli, load
from score_sde.training.checkpoints import load_weights, steps_of

TINY = [
    "--config=toy2d",
    "--config.net.width=16",
    "--config.training.batch_size=32",
    "--config.training.ema_halflives=(3.0,)",
    "--config.training.ema_snapshot_every=50",
    "--config.training.log_every=3",
    "--config.training.sample_every=0",
    "--config.training.tensorboard=False",
    "--config.sampling.batch_size=10",
    "--config.sampling.steps=2",
    "--device=cpu",
]

pytestmark = pytest.mark.usefixtures("one_thread")


STOPPED = [*TINY, "--config.training.steps=120", "--config.training.save_every=0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that is never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(start(command, *STOPPED, "--workdir=run", folder=folder)) == 0
    return folder / "run"


def lines_of(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averages, snapshots, everything logged but the time, and the last picture."""
    steps = steps_of(one / "checkpoints")
    assert steps[-1] == steps_of(other / "checkpoints")[-1]
    for name in ("model", "ema", "ema_halflife_3", "ema_power_0.05", "ema_power_0.1"):
        a, b = (load_weights(run / "checkpoints", steps[-1], name) for run in (one, other))
        assert a and all(torch.equal(a[key], b[key]) for key in a), name
    timed = {"seconds", "eta_seconds", "images_per_second", "memory_gb"}
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key not in timed}
            for line in (run / "log.jsonl").read_text().splitlines()
        ]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]
    for path in (*one.glob("progress/*"), *one.glob("snapshots/*")):
        assert (other / path.relative_to(one)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    arguments = [flag for flag in TINY if "log_every" not in flag]
    arguments += ["--config.training.steps=120", "--config.training.save_every=2"]
    arguments.append("--config.training.log_every=1")  # kills are counted by lines
    assert ended(start(command, *arguments, "--workdir=whole", folder=tmp_path)) == 0
    dice, killed, inside_a_write = random.Random(0), 0, 0
    run = tmp_path / "killed"
    while True:
        before = lines_of(run)
        child = start(command, *arguments, "--workdir=killed", "--resume=auto", folder=tmp_path)
        wanted, pause = before + dice.randint(0, 4), dice.uniform(0, 0.03)
        while killed < 20 and child.is_alive() and lines_of(run) <= wanted:
            time.sleep(0.001)
        if killed < 20 and child.is_alive():
            time.sleep(pause)
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            killed += child.exitcode == -signal.SIGKILL
            inside_a_write += any((run / "checkpoints").glob(".partial_*"))
        child.join()
        if child.exitcode != -signal.SIGKILL:
            break
    assert child.exitcode == 0
    assert killed == 20 and inside_a_write >= 1
    assert_same_run(tmp_path / "whole", run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_its_code(tmp_path, whole, number):
    child = start(command, *STOPPED, "--workdir=run", folder=tmp_path)
    while lines_of(tmp_path / "run") < 3:
        time.sleep(0.002)
    os.kill(child.pid, number)
    assert ended(child) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert 9 <= load(tmp_path / "run", device="cpu").step < 120
    assert ended(start(command, *STOPPED, "--workdir=run", "--resume", folder=tmp_path)) == 0
    assert_same_run(whole, tmp_path / "run")


def test_resume_auto_starts_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = [*TINY, "--workdir", "run", "--config.training.steps=4"]
    assert cli.main(["score-sde", *common, "--resume"]) == 2
    assert "Nothing to resume in run (no checkpoint)" in capsys.readouterr().err
    assert cli.main(["score-sde", *common, "--resume", "auto"]) == 0
    assert "resumed" not in capsys.readouterr().out
    assert cli.main(["score-sde", *common, "--resume", "auto"]) == 0
    assert "resumed run at step 4" in capsys.readouterr().out
    (tmp_path / "left").mkdir()  # killed before its first checkpoint
    for name in ("config.json", "run.json"):
        (tmp_path / "left" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    common[common.index("run")] = "left"
    assert cli.main(["score-sde", *common, "--resume=auto"]) == 0
    assert cli.main(["score-sde", *common, "--resume=perhaps"]) == 2


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    common = [*TINY, "--config.training.steps=6", "--config.training.save_every=2"]
    for name in ("whole", "run"):
        assert cli.main(["score-sde", *common, "--workdir", name]) == 0
    weights = tmp_path / "run" / "checkpoints" / "step_00000006" / "ema.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1  # one bit: the file still opens
    weights.write_bytes(content)
    assert load("run", device="cpu").step == 4
    assert "checkpoint 6 is damaged: the checksum of ema.safetensors differs" in (
        capsys.readouterr().out
    )
    assert load("run", weights="model", device="cpu").step == 6  # that file is whole
    assert cli.main(["score-sde", *common, "--workdir", "run", "--resume"]) == 0
    text = capsys.readouterr().out
    assert "checkpoint 6 is damaged" in text and "resumed run at step 4" in text
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_another_optimizer_or_model_is_not_the_same_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = [*TINY, "--config.training.steps=2", "--workdir=run"]
    assert cli.main(["score-sde", *common]) == 0
    other = ["--resume", "--config.training.optimizer=muon", "--config.net.width=8"]
    same = [flag for flag in common if "net.width" not in flag]
    assert cli.main(["score-sde", *same, *other]) == 2
    error = capsys.readouterr().err
    assert "net.width (16 there, 8 here), training.optimizer (adam there, muon here)" in error


def test_a_run_on_a_full_disk_ends_with_a_code_and_goes_on_later(small_disk, capsys):
    """Room for one checkpoint and a half; then somebody clears up."""
    run = small_disk(7) / "run"
    common = [flag for flag in TINY if "width" not in flag and "snapshot" not in flag]
    common += ["--config.net.width=128", f"--workdir={run}", "--config.training.steps=40"]
    first = ["--config.training.save_every=10", "--config.training.ema_snapshot_every=50"]
    assert cli.main(["score-sde", *common, *first]) == 2
    error = capsys.readouterr().err
    assert "Save failed (No space left on device" in error and "Previous checkpoints" in error
    assert steps_of(run / "checkpoints") == [10] and load(run, device="cpu").step == 10
    more = ["--resume", "--config.training.save_every=0", "--config.training.ema_snapshot_every=0"]
    subprocess.run(["mount", "-o", "remount,size=20m", str(run.parent)], check=True)
    assert cli.main(["score-sde", *common, *more]) == 0
    assert load(run, device="cpu").step == 40
