"""Many processes do together what one does: the same batches, noise, weights, samples and files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Processes, command, losses

from score_sde import distributed, load
from score_sde.distributed import DistributedError
from score_sde.training.checkpoints import load_weights, steps_of

ROOT = Path(__file__).parent.parent
COMMON = [
    "--config.training.batch_size=16",
    "--config.training.steps=30",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.training.tensorboard=False",
    "--device=cpu",
]
POINTS = ["--config=toy2d", "--config.sampling.batch_size=3", "--config.sampling.steps=3", *COMMON]
ENDLESS = [a.replace("training.steps=30", "training.steps=100000") for a in POINTS]
IMAGES = [
    "--config=vp_fashion",
    "--config.model.precision=fp32",
    "--config.training.minutes=0",
    "--config.net.width=16",
    "--config.net.blocks=1",
    "--config.sampling.nfe=5",
    "--config.training.sample_images=5",
    *[a.replace("training.steps=30", "training.steps=10") for a in COMMON],
]
PASSES = "--config.training.batch_per_device=3"


@pytest.fixture
def processes(tmp_path):
    return Processes(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of one process that is never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert Processes(folder).run(command, 1, *POINTS, "--workdir=run") == [0]
    return folder / "run"


# Sharing and gathering ----------------------------------------------------------------------------


def test_one_process_has_everything(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with distributed.processes(torch.device("cpu")) as device:
        assert device.type == "cpu" and not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.size(), distributed.is_writer()) == (0, 1, True)
        assert distributed.share(7) == range(7)
        values = torch.arange(7.0)
        assert torch.equal(distributed.gather(values, 7), values)
        assert distributed.total([1.5, 2.0]) == [1.5, 2.0]


def share_and_gather() -> None:
    with distributed.processes(torch.device("cpu")):
        rank, size = distributed.rank(), distributed.size()
        for n in (7, 2, 1, 0, 6):
            mine = distributed.share(n)
            values = torch.tensor([[i, 10 * i] for i in mine], dtype=torch.float64).reshape(-1, 2)
            together = distributed.gather(values, n)
            assert together.tolist() == [[i, 10 * i] for i in range(n)]
            counts = torch.tensor([[len(mine)]])
            each = distributed.gather(counts, size).flatten()
            assert int(each.sum()) == n and int(each.max() - each.min()) <= 1
        assert distributed.total([1.0, rank]) == [size, sum(range(size))]
        assert distributed.gather(torch.tensor([rank % 2 == 0]), size).tolist() == [
            True,
            False,
            True,
        ]
        try:
            distributed.gather(torch.zeros(9), 2)
        except ValueError as error:
            assert "got 9" in str(error)
        else:
            raise AssertionError


def test_three_processes_share_and_gather(processes):
    assert processes.run(share_and_gather, 3) == [0, 0, 0]


def train_a_little() -> None:
    with distributed.processes(torch.device("cpu")):
        net = distributed.wrap(torch.nn.Linear(8, 2))
        for _ in range(5):
            net(torch.randn(4, 8)).square().mean().backward()
            distributed.total([1.0])


@pytest.mark.slow
def test_processes_end_however_their_threads_are_scheduled(tmp_path):
    """Stopped and let go at random, for which one of ten such trainings used to wait for ever."""
    chance = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        started = Processes(folder).start(train_a_little, 3)
        until = time.monotonic() + 30
        while any(p.exitcode is None for p in started) and time.monotonic() < until:
            process = started[chance.integers(3)]
            if process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGSTOP)
                    time.sleep(chance.choice([0.0005, 0.002, 0.01, 0.03]))
                    os.kill(process.pid, signal.SIGCONT)
            time.sleep(chance.choice([0.0005, 0.002, 0.01]))
        codes = [p.exitcode for p in started]
        for process in started:
            process.kill()
        assert codes == [0, 0, 0]


# Training and sampling ----------------------------------------------------------------------------


def test_torchrun_trains_and_samples_as_one_process_does(tmp_path, processes):
    """The real launcher, two processes: the loss curve, the weights, the pictures, the samples."""

    def torchrun(*arguments: str) -> str:
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*line, "main.py", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    one, two = f"--workdir={tmp_path / '1'}", f"--workdir={tmp_path / '2'}"
    printed = torchrun(*IMAGES, two)
    assert printed.count("done: step 10") == 1 and "and 1 more processes" in printed
    assert command(*IMAGES, one) == 0
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-6)
    sample = ["--mode=sample", "--num_samples=7", "--device=cpu"]
    assert processes.run(command, 2, *sample, two) == [0, 0]
    assert processes.output(0).count("7 samples are in") == 1
    assert command(*sample, one) == 0
    folders = [next((tmp_path / which / "samples").iterdir()) for which in "12"]
    for folder in folders:
        assert sorted(p.name for p in folder.glob("0*.png")) == [f"{i:06d}.png" for i in range(7)]
    one, two = (np.load(folder / "samples.npz")["samples"].astype(int) for folder in folders)
    assert np.abs(one - two).max() <= 1 and (one == two).mean() > 0.999


@pytest.mark.parametrize(
    ("size", "more"),
    [(1, [PASSES]), (3, []), (2, [PASSES])],
    ids=["accumulated", "three_processes", "both"],
)  # fmt: skip
def test_a_divided_batch_is_the_same_batch(tmp_path, processes, whole, size, more):
    """Also where it does not divide evenly: 16 = 5 + 5 + 6, and passes of at most three."""
    parts = tmp_path / "parts"
    assert processes.run(command, size, *POINTS, *more, "--workdir=parts") == [0] * size
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-6)
    for name in ("model", "ema"):
        a, b = (load_weights(run / "checkpoints", 30, name) for run in (whole, parts))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    bins = [
        {k: v for k, v in json.loads(line).items() if k.startswith("eps_error")}
        for run in (whole, parts)
        for line in (run / "log.jsonl").read_text().splitlines()[-1:]
    ]
    assert bins[0] == pytest.approx(bins[1], rel=1e-4) and len(bins[0]) >= 4


def test_as_many_processes_as_you_like_go_on_with_a_run(tmp_path, processes, whole):
    every = ["--config.training.save_every=10", "--config.training.keep=9"]
    assert processes.run(command, 2, *POINTS, *every, "--workdir=parts") == [0, 0]
    for step in (20, 30):
        folder = tmp_path / "parts" / "checkpoints" / f"step_{step:08d}"
        folder.rename(tmp_path / f"step_{step}")
    assert processes.run(command, 3, *POINTS, *every, "--workdir=parts", "--resume") == [0] * 3
    assert "resumed parts at step 10" in processes.output(0)
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(whole), rtol=1e-6)


def sample_points(run: str) -> None:
    with distributed.processes(torch.device("cpu")):
        for n in (1, 7):
            x = load(run, device="cpu").sample_shared(n, method="heun", steps=3).x
            torch.save(x, f"samples_{n}_{distributed.size()}_{distributed.rank()}.pt")


def test_exactly_n_samples_on_any_number_of_processes(tmp_path, processes, whole):
    for size in (1, 2, 3):
        assert processes.run(sample_points, size, str(whole)) == [0] * size
    for n in (1, 7):
        one = torch.load(tmp_path / f"samples_{n}_1_0.pt")
        assert one.shape == (n, 2)
        for size, rank in ((2, 0), (2, 1), (3, 2)):
            torch.testing.assert_close(torch.load(tmp_path / f"samples_{n}_{size}_{rank}.pt"), one)


# When it goes wrong -------------------------------------------------------------------------------


def test_a_process_that_dies_ends_the_job_with_a_message(tmp_path, processes):
    long = ["--config.training.save_every=5", "--workdir=run"]
    started = processes.start(command, 2, *ENDLESS, *long)
    while len(steps_of(tmp_path / "run" / "checkpoints")) < 2:
        assert started[0].is_alive(), processes.output(0)
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGKILL)
    started[0].join(30)
    assert started[0].exitcode == 2
    text = processes.output(0)
    assert "error: process 0 of 2 lost the others" in text and "--resume" in text
    assert "Traceback" not in text
    assert load(tmp_path / "run", device="cpu").step >= 5


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, processes):
    long = ["--config.training.save_every=0", "--workdir=run"]
    started = processes.start(command, 2, *ENDLESS, *long)
    while not (tmp_path / "run" / "log.jsonl").is_file() or not losses(tmp_path / "run").size:
        assert started[0].is_alive(), processes.output(0)
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGTERM)
    for process in started:
        process.join(30)
    assert [process.exitcode for process in started] == [143, 143]
    assert f"step {load(tmp_path / 'run', device='cpu').step} is saved" in processes.output(0)


def join_alone() -> int:
    distributed.JOIN_SECONDS = 1.0
    return command(*POINTS, "--workdir=run")


def test_processes_that_do_not_come_are_named(processes):
    assert processes.run(join_alone, 2, ranks=[0]) == [2]
    text = processes.output(0)
    assert "did not join in 1 s" in text and "Traceback" not in text


def test_a_first_process_that_is_nowhere_is_named_by_its_address(processes):
    assert processes.run(join_alone, 2, ranks=[1]) == [2]
    text = processes.output(1)
    assert "process 1 cannot meet the others at 127.0.0.1:" in text and "Traceback" not in text
    assert "in 1 s" in text


def test_half_set_variables_are_explained(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(DistributedError, match="MASTER_ADDR, MASTER_PORT are not.*torchrun"),
        distributed.processes(torch.device("cpu")),
    ):
        pass
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("WORLD_SIZE", "1")  # what some schedulers set for one task
    with distributed.processes(torch.device("cpu")):
        assert distributed.size() == 1


def test_more_processes_than_gpus_and_a_taken_port_are_explained(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in zip(distributed.VARIABLES, ("0", "2", "127.0.0.1", port), strict=True):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("LOCAL_RANK", "1")
        for device, message in (
            ("cuda", "process 1 has no GPU: this machine has 1. Use torchrun --nproc_per_node=1"),
            ("mps", "one process can use mps"),
            ("cpu", f"cannot meet the others at 127.0.0.1:{port}; the port is in use"),
        ):
            context = distributed.processes(torch.device(device))
            with pytest.raises(DistributedError, match=message), context:
                pass


def test_a_batch_smaller_than_the_processes_is_explained(processes):
    small = [a.replace("batch_size=16", "batch_size=2") for a in POINTS]
    small.append("--workdir=run")
    assert 2 in processes.run(command, 3, *small)
    assert "batch_size=2 leaves nothing to some of the 3 processes" in processes.output(0)


def train_with_a_bad_item() -> int:
    """The second process alone sees a NaN in its rows of one batch."""
    from score_sde.data.sources import ArrayData

    good = ArrayData.batches

    def batches(*arguments, **named):
        for k, (x, labels) in enumerate(good(*arguments, **named)):
            if k == 3 and distributed.rank() == 1:
                x[1] = float("nan")
            yield x, labels

    ArrayData.batches = batches
    return command(*POINTS, "--workdir=run")


def test_a_bad_item_on_one_process_is_skipped_by_all(tmp_path, processes):
    assert processes.run(train_with_a_bad_item, 2) == [0, 0]
    assert "step 3: the loss of 1 of 8 items is not finite (noise level" in processes.output(1)
    assert "step 3" in processes.output(0)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["skipped_steps"] == 1 and last["step"] == 30 and last["loss"] < 1.2
