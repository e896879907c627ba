"""Checkpoints of a network that is divided over processes, each of which writes and reads its part.

<checkpoints>/step_00001000/
    __0_0.distcp, __1_0.distcp, ...   the parts, of each process (torch.distributed.checkpoint)
    .metadata                         which rows of which tensor lie where
    training.pt                       what is no tensor of the optimisers' state
    meta.json                         as of any checkpoint, with the names of the weights

No process holds a whole tensor, neither to write nor to read, and any number of processes goes on
from it. All of them write into one folder: machines must share it. The copy is made at once, the
files in the background (`async_save`), and the folder gets its name when all of them are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from score_sde import distributed
from score_sde.training.checkpoints import (
    Checkpoint,
    CheckpointError,
    State,
    checksum,
    complete,
    make_partial,
    partial_of,
    remove,
    thin_out,
)
from score_sde.training.steps import folder_of


def tensors_of(checkpoint: Checkpoint) -> tuple[State, dict[str, Any]]:
    """All tensors of a checkpoint under names of their own, and the rest of ``training``."""
    states = {"model": checkpoint.model, "ema": checkpoint.ema, **checkpoint.averages}
    tensors = {f"{which}/{key}": v for which, state in states.items() for key, v in state.items()}
    rest: dict[str, Any] = {"scaler": checkpoint.training.get("scaler", {}), "optimizers": []}
    for i, optimizer in enumerate(checkpoint.training["optimizers"]):
        others: dict[int, dict[str, Any]] = {}
        for j, values in optimizer["state"].items():
            moments = {name: v for name, v in values.items() if isinstance(v, Tensor)}
            tensors |= {f"optimizer_{i}/{j}/{name}": v for name, v in moments.items()}
            others[j] = {name: v for name, v in values.items() if name not in moments}
        rest["optimizers"].append({"state": others, "param_groups": optimizer["param_groups"]})
    return tensors, rest


def layout_of(checkpoint: Checkpoint, optimizers: Sequence[torch.optim.Optimizer]) -> State:
    """Tensors as which those of a checkpoint are to be read: weights, and parameters for moments.

    By the names of `tensors_of`; moments by the beginning of theirs, ``optimizer_0/7``.
    """
    weights = Checkpoint(checkpoint.model, checkpoint.ema, {"optimizers": []}, {})
    weights.averages = checkpoint.averages
    found, _ = tensors_of(weights)
    for i, optimizer in enumerate(optimizers):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        found |= {f"optimizer_{i}/{j}": p for j, p in enumerate(params)}
    return found


# Written ------------------------------------------------------------------------------------------


def start_saving(
    checkpoints: Path,
    step: int,
    checkpoint: Checkpoint,
    group: Any,
    keep: int = 2,
    keep_every: int = 0,
    keep_best: bool = False,
) -> Callable[[], None]:
    """Copy this process's parts; what is returned writes them and ends when all parts are whole.

    All processes call it, and then the function, in a thread as they like. group: of gloo, of all
    processes, used for nothing else. Raises CheckpointError, as the function does, on all of them.
    """
    import torch.distributed.checkpoint as dcp

    folder, problem = partial_of(checkpoints, step), ""
    if distributed.is_writer():
        try:
            make_partial(folder)
        except OSError as error:
            problem = str(error)
    if any(distributed.total([float(bool(problem))])):
        raise CheckpointError(f"Save failed ({problem or 'see the first process'}).")
    tensors, rest = tensors_of(checkpoint)
    writer = dcp.FileSystemWriter(folder, overwrite=True)
    saving: Any = dcp.async_save(tensors, storage_writer=writer, process_group=group)
    if hasattr(saving, "staging_completion"):  # a PyTorch that copies in the background too
        saving.staging_completion.result()
    future = getattr(saving, "upload_completion", saving)
    names = ["model", "ema", *checkpoint.averages]
    meta = {"step": step, **checkpoint.meta, "weights": sorted(names)}
    kept = keep, keep_every, keep_best
    return partial(_finish, future, group, checkpoints, step, rest, meta, kept)


def _finish(
    future: Any,
    group: Any,
    checkpoints: Path,
    step: int,
    rest: dict[str, Any],
    meta: dict[str, Any],
    kept: tuple[int, int, bool],
) -> None:
    """Wait until the parts are on the disk, and give the checkpoint its name."""
    folder, here, problem = partial_of(checkpoints, step), distributed.rank(), ""
    sums: dict[str, str] = {}
    try:
        future.result()
        for path in sorted(folder.glob(f"__{here}_*.distcp")):
            sums[path.name] = checksum(path)
    except Exception as error:  # whatever a disk or another process does
        problem = _first_reason(error)
    everyone: list[Any] = [None] * distributed.size()
    dist.all_gather_object(everyone, (sums, problem), group=group)
    problems = [reason for _, reason in everyone if reason]
    if not problems and distributed.is_writer():
        try:
            torch.save(rest, folder / "training.pt")
            known = {name: value for part, _ in everyone for name, value in part.items()}
            complete(folder, folder_of(checkpoints, step), meta, known)
            thin_out(checkpoints, *kept)
        except (OSError, RuntimeError) as error:
            problems = [str(error)]
    said: list[Any] = [problems]
    dist.broadcast_object_list(said, src=0, group=group)
    if said[0]:
        if distributed.is_writer():
            remove(folder)
        raise CheckpointError(f"Save failed ({said[0][0]}). Previous checkpoints are kept.")


def _first_reason(error: Exception) -> str:
    """What has gone wrong on the first process where something has."""
    failures = getattr(error, "failures", None) or {}
    inner = next(iter(failures.values()), (error,))[0]
    return (str(inner).strip() or type(inner).__name__).splitlines()[0][:200]
