"""Checkpoints: folders that are complete or not there at all, in one that is given.

<checkpoints>/step_00001000/
    model.safetensors   weights as trained          ema.safetensors   their average
    ema_*.safetensors   further averages            training.pt       optimisers' state
    meta.json           step, seconds, counters, and a checksum of every other file and of itself

Those of a network that is divided over processes may be in parts (`sharded`). Files of tensors
elsewhere (snapshots, averages, exports) carry a checksum of what they hold in their header.
Whatever else lies among checkpoints is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from score_sde import distributed
from score_sde.checks import load_pickled
from score_sde.training.parts import is_part, is_sharded_checkpoint, read_parts, read_weights
from score_sde.training.steps import CheckpointError as CheckpointError
from score_sde.training.steps import (
    best_step,
    folder_of,
    folders_of,
    is_partial,
    meta_sum,
    read_meta,
)
from score_sde.training.steps import chosen_steps as chosen_steps
from score_sde.training.steps import steps_of as steps_of
from score_sde.training.steps import strays as strays
from score_sde.writing import whole_file

State = dict[str, Tensor]


@dataclass
class Checkpoint:
    """What is needed to go on: weights, their averages, optimisers, and counters.

    averages: further ones beside ``ema``, by name.
    """

    model: State
    ema: State
    training: dict[str, Any]
    meta: dict[str, Any]
    averages: dict[str, State] = field(default_factory=dict)


def remove(folder: Path) -> None:
    """A checkpoint, or what a crash has left of one; files that are not of one stay."""
    if folder.is_symlink():
        return
    for file in folder.glob("*"):
        if (
            file.name in ("meta.json", "training.pt")
            or file.suffix == ".safetensors"
            or (is_part(file.name))
        ):
            file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _sync(path: Path) -> None:
    """To the disk, with what the path holds; Windows does so by itself and has no call for it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """CRC-32 of a file, in hexadecimal."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return f"{total:08x}"


class TensorSum:
    """A checksum of named tensors, fed one after the other in the order of their names."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, name: str, value: Tensor) -> None:
        """The next one."""
        said = f"{name} {value.dtype} {tuple(value.shape)}".encode()
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        self._total = zlib.crc32(content.data, zlib.crc32(said, self._total))

    @property
    def text(self) -> str:
        """CRC-32, in hexadecimal."""
        return f"{self._total:08x}"


def tensor_sum(state: State) -> str:
    """The checksum of named tensors."""
    total = TensorSum()
    for name in sorted(state):
        total.add(name, state[name])
    return total.text


def load_tensors(path: Path) -> State:
    """What `save_tensors` has written; CheckpointError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("checksum")
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    if expected is not None and tensor_sum(state) != expected:
        raise CheckpointError(f"{path} is damaged (its checksum differs).")
    return state


def save_tensors(path: Path, state: State) -> None:
    """Write tensors to a .safetensors file that is complete or not there, with a checksum."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, {"checksum": tensor_sum(tensors)})
            _sync(partial)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}).") from error


def _bytes_of(value: Any) -> int:
    """Of all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value
    return sum(map(_bytes_of, items)) if isinstance(value, dict | list | tuple) else 0


def save_checkpoint(
    checkpoints: Path,
    step: int,
    checkpoint: Checkpoint,
    keep: int = 2,
    keep_every: int = 0,
    keep_best: bool = False,
) -> Path:
    """Write a checkpoint atomically; delete all but the newest ``keep`` and every keep_every-th.

    Everything goes to a temporary folder, to the disk, and is then renamed: a crash leaves the
    previous checkpoints as they were. keep 0 deletes none; keep_every counts steps of training, 0
    for none. keep_best: keep the one of the smallest held-out loss too (`best_step`). Raises
    CheckpointError when the disk is full.
    """
    target, partial = folder_of(checkpoints, step), partial_of(checkpoints, step)
    try:
        make_partial(partial)
        states = {"model": checkpoint.model, "ema": checkpoint.ema, **checkpoint.averages}
        for name, state in states.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(tensors, partial / f"{name}.safetensors")
        torch.save(checkpoint.training, partial / "training.pt")
        complete(partial, target, {"step": step, **checkpoint.meta})
    except (OSError, SafetensorError, RuntimeError) as error:
        remove(partial)
        needed, free = _bytes_of(vars(checkpoint)), shutil.disk_usage(_existing(checkpoints)).free
        room = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        why = f"No space left on device: {room}" if free < needed else str(error)
        raise CheckpointError(f"Save failed ({why}). Previous checkpoints are kept.") from error
    thin_out(checkpoints, keep, keep_every, keep_best)
    return target


def partial_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is until it is whole."""
    return checkpoints / f".partial_{step:08d}"


def make_partial(partial: Path) -> None:
    """Make that folder; what crashes have left of others goes."""
    for leftover in partial.parent.glob(".partial_*"):
        if is_partial(leftover):
            remove(leftover)
    partial.mkdir(parents=True, exist_ok=True)


def complete(
    partial: Path, target: Path, meta: dict[str, Any], sums: Mapping[str, str] | None = None
) -> None:
    """Write meta.json with the checksums of all files, those known by name, and put it there."""
    known = sums or {}
    every = {
        path.name: known.get(path.name) or checksum(path) for path in sorted(partial.iterdir())
    }
    meta = {**meta, "checksums": every}
    meta["checksum"] = meta_sum(meta)
    (partial / "meta.json").write_text(json.dumps(meta, indent=1))
    for path in (*partial.iterdir(), partial):
        _sync(path)
    _put(partial, target)


def thin_out(checkpoints: Path, keep: int, keep_every: int, keep_best: bool) -> None:
    """Delete all but the checkpoints that `save_checkpoint` says it keeps."""
    best = best_step(checkpoints) if keep_best else None
    for old in steps_of(checkpoints)[:-keep] if keep > 0 else []:
        if not (keep_every and old % keep_every == 0) and old != best:
            remove(folder_of(checkpoints, old))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _put(partial: Path, target: Path) -> None:
    """Rename a whole checkpoint to its place; what is there goes after that."""
    aside = target.with_name(f".partial_9{target.name.removeprefix('step_')}")
    if target.exists():
        target.rename(aside)
    partial.rename(target)
    _sync(target.parent)
    if aside.exists():
        remove(aside)
    if aside.exists():  # files that are not of a checkpoint stay where they were
        for file in aside.iterdir():
            file.rename(target / file.name)
        aside.rmdir()


def _check(path: Path, meta: dict[str, Any]) -> Path:
    """The path, if the file is there and has the checksum that was written down."""
    expected = meta.get("checksums", {}).get(path.name)
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    if expected is not None and checksum(path) != expected:
        raise CheckpointError(f"the checksum of {path.name} differs")
    return path


def _check_all(folder: Path, meta: dict[str, Any], mine: slice = slice(None)) -> None:
    """All files that meta.json names, or some of them."""
    for name in sorted(meta.get("checksums", {}))[mine]:
        _check(folder / name, meta)


def _load_together(
    folder: Path, meta: dict[str, Any], like: Mapping[str, Tensor] | None
) -> Checkpoint:
    """A checkpoint that was written in parts; CheckpointError on all processes if on one."""
    problem: Exception | None = None
    try:
        here = distributed.share(len(meta["checksums"]))
        _check_all(folder, meta, slice(here.start, here.stop))
        states, training = read_parts(folder, meta["weights"], like or {})
    except Exception as error:  # whatever a damaged file provokes in its reader
        problem = error
    if sum(distributed.total([float(problem is not None)])):
        raise CheckpointError(str(problem or "another process cannot read it"))
    return Checkpoint(states.pop("model"), states.pop("ema"), training, meta, states)


def averages_of(checkpoints: Path, step: int) -> list[str]:
    """Names of the weights in a checkpoint: model, ema, and further averages."""
    if is_sharded_checkpoint(folder := folder_of(checkpoints, step)):
        return sorted(read_meta(folder).get("weights", []))
    return sorted(path.stem for path in folder_of(checkpoints, step).glob("*.safetensors"))


def load_weights(checkpoints: Path, step: int, which: str) -> State:
    """Weights of a checkpoint on the CPU; which is "ema", "model" or another average's name.

    Raises CheckpointError if they are damaged.
    """
    folder = folder_of(checkpoints, step)
    try:
        meta = read_meta(folder)
        if is_sharded_checkpoint(folder):
            _check_all(folder, meta)
            return read_weights(folder, which)
        return load_file(_check(folder / f"{which}.safetensors", meta))
    except (CheckpointError, SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {step} is damaged: {str(error).rstrip('.')}.") from error


def load_checkpoint(
    checkpoints: Path, like: Mapping[str, Tensor] | None = None
) -> Checkpoint | None:
    """The newest readable checkpoint, or None; a damaged one is named and the one before used.

    like: how the tensors of one that was written in parts are to be read (`sharded.layout_of`); all
    processes then call it. None for whole ones.
    """
    for step, folder in reversed(folders_of(checkpoints).items()):
        try:
            meta = read_meta(folder)
            if is_sharded_checkpoint(folder):
                return _load_together(folder, meta, like)
            names = [path.stem for path in folder.glob("*.safetensors")]
            states = {name: load_file(_check(folder / f"{name}.safetensors", meta))
                      for name in {"model", "ema", *names}}  # fmt: skip
            training: Any = load_pickled(_check(folder / "training.pt", meta))
            return Checkpoint(states.pop("model"), states.pop("ema"), training, meta, states)
        except Exception as error:  # whatever a damaged file provokes in its reader
            print(f"checkpoint {step} is damaged ({str(error).rstrip('.')}); trying the one before")
    return None
