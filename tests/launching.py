"""Commands and functions in processes of their own, started quickly.

They are forked from one process that has imported all and run nothing: an import of torch, and of
what torch imports with the first optimizer, would cost each of them more than most tests.
"""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import numpy as np
import torch

from score_sde import cli

# The process that is forked finds modules by the environment alone, and passes over what it cannot.
_HERE = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH")]))
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "launching",
        "score_sde.cli.command",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "pytest",
    ]
)


def command(*arguments: str) -> int:
    """A line of the command, here; its exit code."""
    return cli.main(["score-sde", *arguments])


def _run(function, folder: str, output: str, variables: dict, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.stdout = sys.stderr = open(output, "a", buffering=1)  # noqa: SIM115
    os.environ.update(variables)
    sys.exit(function(*arguments))


def start(function, *arguments, folder: Path, output: str = "output.txt", **variables: str):
    """A process that calls the function in the folder; its exit code is what is returned."""
    where = (function, str(folder), output, variables, arguments)
    process = _FORKED.Process(target=_run, args=where)
    process.start()
    return process


def ended(process) -> int:
    """The exit code of a process, once it has ended."""
    process.join()
    return process.exitcode


class Processes:
    """Processes like those of a torchrun."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, function, size: int, *arguments, ranks=None) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            start(function, *arguments, folder=self.folder, output=f"output_{rank}.txt",
                  RANK=str(rank), **meeting)
            for rank in (range(size) if ranks is None else ranks)
        ]  # fmt: skip

    def run(self, function, size: int, *arguments, ranks=None, seconds=60) -> list[int]:
        """Exit codes."""
        started = self.start(function, size, *arguments, ranks=ranks)
        for process in started:
            process.join(seconds)
            process.kill()
        return [process.exitcode for process in started]

    def output(self, rank: int) -> str:
        return (self.folder / f"output_{rank}.txt").read_text()


def losses(run: Path) -> np.ndarray:
    """What the log of a run says of the loss."""
    return np.array([json.loads(k)["loss"] for k in (run / "log.jsonl").read_text().splitlines()])
