"""Logs: what is in them, that they show a broken run, and the list of runs."""

import dataclasses
import json
import sys
import types

import pytest
import torch

from score_sde import VPSDE, GaussianMixture, ScoreModel, cli
from score_sde.data import ArrayData, DataSpec
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP
from score_sde.runs import listing as runs
from score_sde.runs.directory import RunDirectory
from score_sde.training import EMA, Logger, Session, Trainer, TrainingSettings
from score_sde.training.logs import BIN_NAMES

TINY = [
    "--config=toy2d",
    "--config.training.batch_size=32",
    "--config.training.steps=12",
    "--config.training.log_every=4",
    "--config.training.sample_every=6",
    "--config.sampling.batch_size=3",
    "--config.sampling.steps=3",
    "--device=cpu",
]


pytestmark = pytest.mark.usefixtures("one_thread")


# Runs that are broken on purpose ------------------------------------------------------------------


class Blind(MLP):
    """A network that ignores t."""

    def forward(self, x, label):
        return super().forward(x, torch.zeros_like(label))


def last_line(folder, net=MLP, scale=1.0, **changes) -> dict[str, float]:
    """The last line of the log of a short run on eight points of a ring."""
    torch.manual_seed(0)
    model = ScoreModel(net(2, width=64, depth=2), VPSDE(), target="eps")
    settings = TrainingSettings(
        batch_size=256, steps=400, lr=3e-3, warmup_steps=20, log_every=100, save_every=0,
        sample_every=0, ema_decay=0.98,
    )  # fmt: skip
    settings = dataclasses.replace(settings, **changes)
    angle = torch.arange(8) * (2 * torch.pi / 8)
    means = torch.stack([angle.cos(), angle.sin()], 1) * 2**0.5
    points = GaussianMixture([1 / 8] * 8, means.tolist(), 0.01).sample(4000).float() * scale
    trainer = Trainer(model, ScoreMatching(), settings)
    logger = Logger(folder / "log.jsonl")
    directory, data = RunDirectory(folder), ArrayData(points, {}, DataSpec((2,)))
    with directory.training():
        Session(directory, trainer, data, logger=logger).run()
    logger.close()
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> dict[str, float]:
    torch.set_num_threads(1)
    return last_line(tmp_path_factory.mktemp("healthy"))


def errors(line: dict[str, float]) -> dict[str, float]:
    """Error of eps relative to the trivial predictor's, by bin."""
    return {b: line[f"eps_error/{b}"] / line[f"trivial/{b}"] for b in BIN_NAMES[1:-1]}


def test_a_healthy_run_is_below_the_trivial_predictor_everywhere_it_can_be(healthy):
    ratios = errors(healthy)
    assert max(ratios.values()) < 1.1 and ratios["0.1_to_0.3"] < 0.7
    assert 0 < healthy["ema_distance"] < 0.1
    assert healthy["data/std"] == pytest.approx(1, abs=0.1) and healthy["skipped_steps"] == 0


def test_an_average_that_is_never_updated_shows(tmp_path, healthy, monkeypatch):
    monkeypatch.setattr(EMA, "update", lambda self, net: None)
    assert last_line(tmp_path)["ema_distance"] > 5 * healthy["ema_distance"]


def test_data_in_0_to_255_show(tmp_path, healthy):
    line = last_line(tmp_path, scale=127.5)
    assert line["data/std"] > 100 and line["data/max"] > 150 > 4 > healthy["data/max"]
    # The process does not reach noise, and what is asked at low noise is out of proportion.
    assert line["loss_smooth"] > 3 * healthy["loss_smooth"]
    assert errors(line)["3_to_10"] > 5 * errors(healthy)["3_to_10"]


def test_a_learning_rate_100_times_too_high_shows(tmp_path, healthy):
    line = last_line(tmp_path, lr=0.3)
    assert max(errors(line).values()) > 2 * max(errors(healthy).values())
    assert line["loss_smooth"] > 1.5 * healthy["loss_smooth"]
    assert not line["grad_norm"] < 3 * healthy["grad_norm"]


def test_a_network_that_ignores_t_shows(tmp_path, healthy):
    ratios, good = errors(last_line(tmp_path, net=Blind)), errors(healthy)
    assert ratios["0.03_to_0.1"] > 1 > 0.97 * good["0.03_to_0.1"]
    assert ratios["3_to_10"] > 2 * good["3_to_10"]


# What is written ----------------------------------------------------------------------------------


def test_jsonl_tensorboard_and_both_grids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["score-sde", *TINY, "--workdir=run"]) == 0
    lines = [json.loads(line) for line in open("run/log.jsonl")]
    assert [line["step"] for line in lines] == [4, 8, 12]
    wanted = {"loss", "loss_smooth", "grad_norm", "lr", "images_per_second", "eta_seconds",
              "seconds", "memory_gb", "skipped_steps", "ema_distance", "data/min", "data/max",
              "data/std"}  # fmt: skip
    for line in lines:
        assert wanted <= line.keys()
        assert line["memory_gb"] > 0.05 and line["images_per_second"] > 1
    assert lines[-1]["eta_seconds"] == 0 and lines[0]["eta_seconds"] > 0
    pictures = sorted(p.name for p in (tmp_path / "run" / "progress").iterdir())
    assert pictures == [f"step_{s:08d}{e}.png" for s in (6, 12) for e in ("", "_raw")]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("loss")] == [4, 8, 12]
    assert [e.value for e in board.Scalars("grad_norm")] == pytest.approx(
        [line["grad_norm"] for line in lines]
    )
    assert {"samples", "samples_raw"} <= set(board.Tags()["images"])


def test_a_resumed_log_has_every_step_once(tmp_path):
    logger = Logger(tmp_path / "log.jsonl")
    for step in (2, 4, 6):
        logger.scalars(step, {"loss": step / 2})
    logger.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # the power went
    logger = Logger(tmp_path / "log.jsonl", resumed_at=4)
    logger.scalars(6, {"loss": float("nan")})
    logger.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 6, "loss": None}]


def test_wandb_by_flag(tmp_path, monkeypatch, capsys):
    """A stand-in for the service: what it is told, and that a resumed run is the same one there."""
    told = []

    class Session:
        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    def init(**settings):
        told.append(settings)
        return Session()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["score-sde", *TINY, "--workdir=other", "--wandb"]) == 2
    assert "pip install 'score-sde[wandb]'" in capsys.readouterr().err
    fake = types.SimpleNamespace(init=init, Image=lambda pixels: pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = [*TINY, "--workdir=run", "--wandb", "--config.training.save_every=4"]
    assert cli.main(["score-sde", *run]) == 0
    first = told[0]
    assert first["name"] == "run" and first["config"]["training"]["batch_size"] == 32
    scalars = [(step, v["loss"]) for step, v in told[1:-1] if "loss" in v]
    assert [step for step, _ in scalars] == [4, 8, 12] and told[-1] == "finished"
    images = [set(v) for _, v in told[1:-1] if "loss" not in v]
    assert {"samples"} in images and {"samples_raw"} in images
    told.clear()
    assert cli.main(["score-sde", *run, "--resume"]) == 0
    assert told[0]["id"] == first["id"] and told[0]["resume"] == "allow"


def test_runs_are_listed_with_step_loss_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = "--config.training.tensorboard=False"
    assert cli.main(["score-sde", *TINY, quiet, "--workdir=runs/a"]) == 0
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "config.json").write_text("{}")  # has just begun
    capsys.readouterr()
    assert runs.main([]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:4] == ["run", "step", "saved", "loss"]
    rows = {row[0]: row for row in rows}
    line = json.loads(open("runs/a/log.jsonl").readlines()[-1])
    assert rows["runs/a"][1:4] == ["12", "12", f"{line['loss_smooth']:.4f}"]
    assert rows["runs/a"][-1] == "runs/a/progress/step_00000012.png"
    assert rows["runs/b"][1:5] == ["-"] * 4
    assert runs.main(["gone"]) == 2 and "gone does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert runs.main(["empty"]) == 2 and "holds no run" in capsys.readouterr().err
    assert runs.main(["--help"]) == 2 and "usage" in capsys.readouterr().err


def test_a_full_disk_under_the_log_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def full(self, step, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Logger, "scalars", full)
    assert cli.main(["score-sde", *TINY, "--workdir=run"]) == 2
    error = capsys.readouterr().err
    assert "run cannot be written" in error and "No space left" in error and "--resume" in error
