"""Networks divided over two processes (FSDP) are trained, saved and sampled as one process does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Processes, command, losses
from PIL import Image
from safetensors.torch import load_file
from small_training import small_data

from score_sde import VPSDE, ScoreModel, distributed
from score_sde.build import in_fast_layout
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP, UNet
from score_sde.training import Trainer, TrainingError, TrainingSettings
from score_sde.training.checkpoints import load_checkpoint
from score_sde.training.posthoc import snapshot_path
from score_sde.training.sharding import _groups, is_sharded, local, rows_of, whole
from score_sde.training.writer import copy_to_host

SHARDED = "--config.training.sharding=full"
KEPT = {"ema_halflives": (3.0,), "ema_snapshot_every": 4, "ema_decay": 0.9}
RUN = [
    "--config=vp_fashion",
    "--config.model.precision=fp32",
    "--config.net.width=16",
    "--config.net.multipliers=(1,)",
    "--config.net.attention=(14,)",
    "--config.net.blocks=1",
    "--config.net.decoder_blocks=1",
    "--config.sampling.nfe=3",
    "--config.training.minutes=0",
    "--config.training.batch_size=8",
    "--config.training.steps=6",
    "--config.training.save_every=3",
    "--config.training.keep=9",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.training.sample_images=2",
    "--config.training.sample_nfe=2",
    "--config.training.ema_halflives=(3.0,)",
    "--config.training.ema_snapshot_every=3",
    "--config.training.tensorboard=False",
    "--device=cpu",
]


def small_trainer(**settings) -> Trainer:
    """Without dropout, whose masks depend on how a batch is divided."""
    torch.manual_seed(0)
    options = {"attention": (8,), "embedding": "fourier"}  # with a tensor that is not trained
    options |= {"blocks": 1, "decoder_blocks": 1, "middle": ("block",)}
    net = UNet(1, (8, 8), width=16, multipliers=(1,), **options)
    chosen = TrainingSettings(**{"batch_size": 8, "steps": 60, "warmup_steps": 5, **settings})
    model = ScoreModel(net, VPSDE(), time_input="log_sigma")
    return Trainer(in_fast_layout(model), ScoreMatching(), chosen)


@pytest.fixture
def processes(tmp_path):
    return Processes(tmp_path)


def test_settings_that_cannot_be_are_explained():
    with pytest.raises(ValueError, match="training.sharding must be 'none' or 'full'"):
        TrainingSettings(sharding="half")
    with pytest.raises(ValueError, match="sharding=full and training.compile=True exclude each"):
        TrainingSettings(sharding="full", compile=True)


def test_one_process_has_nothing_to_divide():
    trainer = small_trainer(sharding="full")
    assert not trainer.sharded and not any(map(is_sharded, trainer.model.net.parameters()))


def test_groups_are_what_is_called_by_itself_and_not_too_large():
    net = MLP(2, width=8, depth=2)
    groups = [net.embedding[1], net.first, *net.hidden, *net.modulation, net.last]
    assert list(_groups(net, 50)) == groups
    assert list(_groups(net, 80)) == groups  # a row of modules may be called in pieces
    unet = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,))
    blocks = {module for _, module in unet.modulated()} | {unet.embed0, unet.embed1, unet.conv_in}
    found = list(_groups(unet, 10**9))
    assert set(found) == blocks | {unet.modulation, unet.decoder[0].output}
    assert len(found) == len(set(found))


# What an update does ------------------------------------------------------------------------------


def updates(trainer, steps: int, bad: int = -1) -> list[dict[str, float]]:
    """Of the whole batch's losses; ``bad``: the step at which the last process sees a NaN."""
    batches, log = small_data().batches(8, 0, trainer.step, rows=trainer.rows), []
    for _ in range(steps):
        x = next(batches)[0].clone()
        if trainer.step == bad and distributed.rank() == distributed.size() - 1:
            x[0] = float("nan")
        values = trainer.update(x)
        values = {name: float(value) for name, value in values.items()} | trainer.read()
        log.append(values | {"lag": trainer.ema.distance(trainer.model.net)})
    return log


def states(trainer) -> dict:
    """Everything a checkpoint holds, whole, on all processes."""
    return copy_to_host(vars(trainer.checkpoint()))


def local_bytes(trainer) -> dict[str, int]:
    """Of weights, gradients, moments and averages that this process holds."""
    moments = [v for o in trainer.optimizers for s in o.state.values() for v in s.values()]
    averages = [trainer.ema, *trainer.averages.values(), *trainer.powers.values()]
    weights = list(trainer.model.net.parameters())
    return {
        "weights": sum(local(p).nbytes for p in weights),
        "gradients": sum(local(p.grad).nbytes for p in weights if p.grad is not None),
        "moments": sum(local(v).nbytes for v in moments),
        "averages": sum(local(p).nbytes for ema in averages for p in ema.net.parameters()),
    }


CASES = {  # and the number of updates
    "adam": ({"grad_clip": 0.05, **KEPT}, 6),
    "passes": ({"batch_per_device": 2}, 5),
    "muon": ({"optimizer": "muon"}, 5),
    "scaled": ({"grad_clip": 0.05}, 5),
}


def update_in_all_ways() -> None:
    """Saves what comes of each case, and what may be checked here and now."""
    results = {}
    with distributed.processes(torch.device("cpu")):
        for name, (changes, steps) in CASES.items():
            trainer = small_trainer(sharding="full", **changes)
            if name == "scaled":  # as fp16 is, on CUDA
                trainer.scaler = torch.amp.GradScaler("cpu", 2.0**10, growth_interval=2)
            if trainer.sharded:
                for net in (trainer.model.net, trainer.ema.net):
                    assert all(map(is_sharded, net.parameters()))
            log = updates(trainer, steps, bad=3)
            assert trainer.outcomes.skipped_steps == 1 and trainer.outcomes.bad_steps == 0
            results[name] = log, states(trainer), local_bytes(trainer)
            x, t = torch.ones(2, 1, 8, 8), torch.tensor(0.5)
            with torch.no_grad():
                drawn = [trainer.model.with_net(net)(x, t)
                         for net in (trainer.ema.net.eval(), trainer.model.net.eval())]  # fmt: skip
            results[name] += (drawn,)
        if trainer.sharded:
            check_parts(trainer)
        torch.save(results, f"results_{distributed.size()}_{distributed.rank()}.pt")


def check_parts(trainer) -> None:
    """Rows of a tensor are those of the process; an average that does not follow is found."""
    for p in trainer.model.net.parameters():
        assert torch.equal(rows_of(whole(p), p), local(p))
    before = [local(p).clone() for p in trainer.ema.net.parameters()]
    live = [b + 1 for b in before]
    try:
        trainer.ema._check_followed(before, before, live)
    except RuntimeError as error:
        moved = sum(b.numel() > 0 for b in before)
        assert f"matched 0 of the {moved} tensors" in str(error)
    else:
        raise AssertionError
    try:
        small_trainer(sharding="full", batch_size=7, batch_per_device=1)
    except TrainingError as error:
        assert "batch_size=7" in str(error)
    else:
        raise AssertionError


def assert_close(a, b, rtol: float, atol: float, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m: f"{where}: {m}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], rtol, atol, f"{where}/{key}")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, rtol, atol, f"{where}/{i}")
    elif isinstance(a, float):  # the lag is a difference, as exact as float32 weights are
        assert a == pytest.approx(b, rel=rtol, abs=1e-7, nan_ok=True), where
    else:
        assert a == b, where


def test_updates_are_those_of_one_process_in_half_the_memory(tmp_path, processes):
    assert processes.run(update_in_all_ways, 1) == [0]
    assert processes.run(update_in_all_ways, 2, seconds=200) == [0, 0], processes.output(1)
    one, first, second = (
        torch.load(tmp_path / f"results_{end}.pt", weights_only=False)
        for end in ("1_0", "2_0", "2_1")
    )
    for name in CASES:
        log, kept, size, drawn = one[name]
        for parts in (first, second):
            their_log, their_kept, their_size, their_drawn = parts[name]
            assert_close(their_log, log, 1e-6, 0.0, name)
            for part in ("model", "ema", "averages", "training"):
                assert_close(their_kept[part], kept[part], 1e-4, 1e-6, name)
            assert_close(their_drawn, drawn, 1e-4, 1e-5, name)
        for what, total in size.items():
            halves = [parts[name][2][what] / total for parts in (first, second)]
            assert sum(halves) == pytest.approx(1, rel=0.02) and max(halves) < 0.53, (name, what)


# A run --------------------------------------------------------------------------------------------


def cut_copy(run: Path, name: str) -> Path:
    """A copy of a run of six updates that was stopped after three."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000006")
    snapshot_path(copy / "snapshots", 6).unlink()
    shutil.rmtree(copy / "progress")
    log = copy / "log.jsonl"
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines()[:3]))
    return copy


def assert_same_end(run: Path, other: Path, rtol: float, atol: float) -> None:
    """Losses, every tensor of the last checkpoint, counters, and the last snapshot."""
    np.testing.assert_allclose(losses(run), losses(other), rtol=min(rtol, 1e-6))
    ends = [vars(load_checkpoint(path / "checkpoints")) for path in (run, other)]
    for end in ends:
        for key in ("seconds", "checksum", "checksums", "bins", "loss_smooth"):
            end["meta"].pop(key)
    assert ends[0]["meta"]["step"] == 6 and len(ends[0]["averages"]) == 3
    assert_close(*ends, rtol, atol)
    snapshots = (snapshot_path(path / "snapshots", 6) for path in (run, other))
    assert_close(*map(load_file, snapshots), rtol, atol)


def test_runs_are_saved_whole_and_go_on_in_any_number_of_processes(tmp_path, processes):
    assert processes.run(command, 1, *RUN, SHARDED, "--workdir=one") == [0]
    assert processes.output(0).count("training.sharding=full: one process has all of it") == 1
    assert processes.run(command, 2, *RUN, SHARDED, "--workdir=two", seconds=200) == [0, 0]
    assert "1 more processes, which share the network" in processes.output(0)
    one, two = tmp_path / "one", tmp_path / "two"
    assert_same_end(two, one, 1e-4, 1e-6)
    files = [
        {str(path.relative_to(run)) for path in run.rglob("*") if path.suffix != ".partial"}
        for run in (one, two)
    ]
    assert files[0] == files[1]
    for name in ("step_00000006.png", "step_00000006_raw.png"):  # drawn by averages and weights
        a, b = (np.asarray(Image.open(run / "progress" / name)).astype(int) for run in (one, two))
        assert a.std() > 5 and np.abs(a - b).max() <= 1

    again, by_one, from_one = (
        cut_copy(run, name) for run, name in ((two, "again"), (two, "by_one"), (one, "from_one"))
    )
    more = [*RUN, SHARDED, "--resume"]
    assert processes.run(command, 2, *more, "--workdir=again", seconds=200) == [0, 0]
    assert_same_end(again, two, 0.0, 0.0)
    assert processes.run(command, 1, *RUN, "--resume", "--workdir=by_one") == [0]
    assert processes.run(command, 2, *more, "--workdir=from_one", seconds=200) == [0, 0]
    assert_same_end(by_one, one, 1e-4, 1e-6)
    assert_same_end(from_one, one, 1e-4, 1e-6)
