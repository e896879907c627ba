"""Do many processes train as one does, each with its part of the memory?

    python benchmarks/scale.py                      # 16 processes of gloo on this machine
    python benchmarks/scale.py --processes 4 --width 128 --steps 6

A network is divided over them (training.sharding=full, training.checkpoints=sharded). Printed are

    losses    of every update, beside those of one process, as the largest relative difference
    resume    the same for a run that went on from its checkpoint after half of the updates
    order     whether the rows that the processes see are together the batches of one process
    memory    MB of weights, gradients, moments and averages that a process holds after an update,
              the most of all processes, over the ideal: an equal part of what one process holds

Nothing here says how fast this is: all processes share one machine.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from score_sde import cli, distributed
from score_sde.data import load_data
from score_sde.losses import ScoreMatching
from score_sde.models import ScoreModel
from score_sde.nets import MLP
from score_sde.processes import VPSDE
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.sharding import local

BATCH = 64


def _in_process(
    work: Callable[..., int], rank: int, size: int, port: int, folder: str, arguments: tuple
) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"output_{rank}.txt", "a", buffering=1)  # noqa: SIM115
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.exit(work(*arguments))


def run(work: Callable[..., int], size: int, folder: Path, *arguments: Any) -> None:
    """The function in so many processes, which meet as those of a torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # nothing has started a thread yet
    started = [
        context.Process(target=_in_process, args=(work, k, size, port, str(folder), arguments))
        for k in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit((folder / "output_0.txt").read_text()[-2000:])


def train(*arguments: str) -> int:
    return cli.main(["score-sde", *arguments])


def held(trainer: Trainer) -> int:
    """Bytes of weights, gradients, moments and averages on this process."""
    weights = list(trainer.model.net.parameters())
    moments = [v for o in trainer.optimizers for s in o.state.values() for v in s.values()]
    averages = list(trainer.ema.net.parameters())
    gradients = [p.grad for p in weights if p.grad is not None]
    return sum(local(v).nbytes for v in (*weights, *gradients, *moments, *averages))


def look(width: int, depth: int) -> int:
    """Writes what a process holds after an update, and whether rows make up the batches."""
    with distributed.processes(torch.device("cpu")):
        torch.manual_seed(0)
        data = load_data("ring8", scaling="standard")
        model = ScoreModel(MLP(2, width=width, depth=depth), VPSDE())
        settings = TrainingSettings(batch_size=BATCH, steps=10, warmup_steps=2, sharding="full")
        trainer = Trainer(model, ScoreMatching(), settings)
        mine = data.batches(BATCH, 0, rows=trainer.rows)
        batches = [next(mine).x0 for _ in range(3)]
        trainer.update(batches[0])
        whole = data.batches(BATCH, 0)
        same = all(torch.equal(distributed.gather(x, BATCH), next(whole).x0) for x in batches)
        size = distributed.size()
        every = distributed.gather(torch.tensor([held(trainer)]), size).tolist()
        if distributed.is_writer():
            Path(f"look_{size}.json").write_text(json.dumps({"held": every, "same": same}))
    return 0


def losses(folder: Path) -> np.ndarray:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b) / np.abs(b)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    half = args.steps // 2
    settings = [
        "--config=toy2d", "--device=cpu", f"--config.net.width={args.width}",
        f"--config.net.depth={args.depth}", f"--config.training.batch_size={BATCH}",
        f"--config.training.steps={args.steps}", f"--config.training.save_every={half}",
        "--config.training.keep=9", "--config.training.log_every=1",
        "--config.training.sample_every=0", "--config.training.tensorboard=False",
        "--config.training.sharding=full", "--config.training.checkpoints=sharded",
        "--config.sampling.batch_size=3", "--config.sampling.steps=3",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(look, 1, folder, args.width, args.depth)
        run(look, args.processes, folder, args.width, args.depth)
        one, many = (json.loads((folder / f"look_{n}.json").read_text())
                     for n in (1, args.processes))  # fmt: skip
        ideal = one["held"][0] / args.processes
        print(f"{args.processes} processes, torch {torch.__version__}")
        print(f"order   rows together are the batches of one process: {many['same']}")
        print(f"memory  {max(many['held']) / 1e6:.2f} MB a process, ideal {ideal / 1e6:.2f} MB "
              f"({max(many['held']) / ideal:.3f}), one process {one['held'][0] / 1e6:.2f} MB",
              flush=True)  # fmt: skip
        run(train, 1, folder, *settings, "--workdir=one")
        run(train, args.processes, folder, *settings, "--workdir=many")
        difference = apart(losses(folder / "many"), losses(folder / "one"))
        print(f"losses  of {args.steps} updates: {difference:.1e} apart", flush=True)
        last = folder / "many" / "checkpoints" / f"step_{args.steps:08d}"
        parts = [path.stat().st_size for path in last.glob("*.distcp")]
        print(f"parts   {len(parts)} files, the largest {max(parts) / sum(parts):.3f} of all")
        before = losses(folder / "many")
        shutil.rmtree(last)
        run(train, args.processes, folder, *settings, "--workdir=many", "--resume")
        print(f"resume  at {half} of {args.steps}: "
              f"{apart(losses(folder / 'many'), before):.1e} apart")  # fmt: skip


if __name__ == "__main__":
    main()
