"""Checkpoints in parts: no process writes or reads the whole, and any number goes on from them."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from launching import Processes, command, losses

from score_sde import VPSDE, ScoreModel, distributed, load
from score_sde.data import load_data
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.checkpoints import (
    CheckpointError,
    averages_of,
    load_checkpoint,
    load_weights,
    steps_of,
)
from score_sde.training.parts import is_sharded_checkpoint, read_tensors
from score_sde.training.sharding import local

RUN = [
    "--config=toy2d",
    "--config.net.width=32",
    "--config.sampling.batch_size=3",
    "--config.sampling.steps=3",
    "--config.training.batch_size=16",
    "--config.training.steps=10",
    "--config.training.save_every=5",
    "--config.training.keep=9",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.training.ema_halflives=(3.0,)",
    "--config.training.tensorboard=False",
    "--config.training.sharding=full",
    "--config.training.checkpoints=sharded",
    "--device=cpu",
]


@pytest.fixture
def processes(tmp_path):
    return Processes(tmp_path)


def cut(run, name):
    """A copy of a run of ten updates that was stopped after five."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000010")
    log = copy / "log.jsonl"
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines()[:5]))
    return copy


def weights(run, step=10, which="model"):
    return load_weights(run / "checkpoints", step, which)


def test_parts_are_written_and_read_by_any_number_of_processes(tmp_path, processes):
    assert processes.run(command, 2, *RUN, "--workdir=two", seconds=200) == [0, 0], (
        processes.output(0)
    )
    two = tmp_path / "two"
    folder = two / "checkpoints" / "step_00000010"
    assert steps_of(two / "checkpoints") == [5, 10] and is_sharded_checkpoint(folder)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "training.pt", "meta.json"} == set(files)
    sizes = files["__0_0.distcp"], files["__1_0.distcp"]
    assert max(sizes) < 0.65 * sum(sizes)  # no process has written the whole
    assert averages_of(two / "checkpoints", 10) == ["ema", "ema_halflife_3", "model"]

    whole = [a for a in RUN if "checkpoints=" not in a]
    assert processes.run(command, 1, *whole, "--workdir=one") == [0]
    one = tmp_path / "one"
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-6)
    for which in ("model", "ema", "ema_halflife_3"):
        a, b = weights(one, which=which), weights(two, which=which)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=1e-6)
    x = load(two, device="cpu").sample(4).x
    torch.testing.assert_close(x, load(one, device="cpu").sample(4).x)

    again, by_three, by_one = (cut(two, name) for name in ("again", "by_three", "by_one"))
    more = [*RUN, "--resume"]
    assert processes.run(command, 2, *more, "--workdir=again", seconds=200) == [0, 0]
    assert processes.run(command, 3, *more, "--workdir=by_three", seconds=200) == [0] * 3
    assert processes.run(command, 1, *more, "--workdir=by_one") == [0]
    for run, exact in ((again, True), (by_three, False), (by_one, False)):
        np.testing.assert_allclose(losses(run), losses(two), rtol=0.0 if exact else 1e-6)
        for key, value in weights(two).items():
            tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-6}
            torch.testing.assert_close(weights(run)[key], value, **tolerance)
    first, second = (
        load_checkpoint(run / "checkpoints").training["optimizers"][0] for run in (two, again)
    )
    assert first["state"].keys() == second["state"].keys()
    for place, values in first["state"].items():
        assert values.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(v, second["state"][place][name]) for name, v in values.items())
    check_damage(two)


def check_damage(run):
    """A part that is cut is named, and the checkpoint before is used; a pickle calls nothing."""
    part = run / "checkpoints" / "step_00000010" / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="10 is damaged: the checksum of __1_0.distcp diff"):
        weights(run)
    assert load(run, device="cpu").step == 5
    assert load_checkpoint(run / "checkpoints").meta["step"] == 5

    class Bad:
        def __reduce__(self):
            return print, ("called",)

    (part.parent / ".metadata").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(CheckpointError, match="names builtins.print, which no checkpoint needs"):
        read_tensors(part.parent, {})


def hold_and_see() -> None:
    """Writes the bytes that a process holds after an update, and whether it sees its rows."""
    with distributed.processes(torch.device("cpu")):
        torch.manual_seed(0)
        data, size = load_data("ring8"), distributed.size()
        model = ScoreModel(MLP(2, width=128, depth=4), VPSDE())
        settings = TrainingSettings(batch_size=16, steps=10, sharding="full")
        trainer = Trainer(model, ScoreMatching(), settings)
        mine, whole = data.batches(16, 0, rows=trainer.rows), data.batches(16, 0)
        for _ in range(3):
            x = next(mine).x0
            assert torch.equal(distributed.gather(x, 16), next(whole).x0)
        trainer.update(x)
        nets = (trainer.model.net, trainer.ema.net)
        moments = [v for o in trainer.optimizers for s in o.state.values() for v in s.values()]
        weights = [p for net in nets for p in net.parameters()]
        gradients = [p.grad for p in nets[0].parameters()]
        held = sum(local(v).nbytes for v in (*weights, *gradients, *moments))
        torch.save(held, f"held_{size}_{distributed.rank()}.pt")


@pytest.mark.slow
def test_four_processes_hold_a_quarter_each_and_train_as_one(tmp_path, processes):
    assert processes.run(hold_and_see, 1) == [0], processes.output(0)
    assert processes.run(hold_and_see, 4, seconds=200) == [0] * 4, processes.output(0)
    whole = torch.load(tmp_path / "held_1_0.pt")
    held = [torch.load(tmp_path / f"held_4_{rank}.pt") for rank in range(4)]
    assert whole / 4 <= max(held) < 1.3 * whole / 4 and sum(held) < 1.05 * whole
    assert processes.run(command, 4, *RUN, "--workdir=four", seconds=200) == [0] * 4
    assert processes.run(command, 1, *RUN, "--workdir=one") == [0]
    four, one = tmp_path / "four", tmp_path / "one"
    np.testing.assert_allclose(losses(four), losses(one), rtol=1e-6)
    again = cut(four, "again")
    resumed = processes.run(command, 4, *RUN, "--resume", "--workdir=again", seconds=200)
    assert resumed == [0] * 4
    np.testing.assert_array_equal(losses(again), losses(four))


def test_settings_that_cannot_be_are_explained():
    with pytest.raises(ValueError, match="checkpoints=sharded needs training.sharding=full"):
        TrainingSettings(checkpoints="sharded")
