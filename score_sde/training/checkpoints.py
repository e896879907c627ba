"""Checkpoints: folders that are complete or not there at all.

checkpoints/step_00001000/
    model.safetensors   weights as trained          ema.safetensors   their average
    ema_*.safetensors   further averages            training.pt       optimisers' state
    meta.json           step, seconds, counters, and a checksum of every other file
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or read; the message says which and why."""


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


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def steps_of(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    found = (run / "checkpoints").glob("step_*") if (run / "checkpoints").is_dir() else []
    return sorted(int(p.name.removeprefix("step_")) for p in found if (p / "meta.json").is_file())


def _sync(path: Path) -> None:
    """To the disk, with what the path holds; Windows does so by itself and has no call for it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> str:
    """CRC-32 of a file, in hexadecimal."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return f"{total:08x}"


def save_tensors(path: Path, state: State) -> None:
    """Write tensors to a .safetensors file that is complete or not there."""
    partial = path.with_name(f".partial_{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, partial)
        _sync(partial)
        partial.rename(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written ({error}).") from error


def _bytes_of(value: Any) -> int:
    """Of all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value
    return sum(map(_bytes_of, items)) if isinstance(value, dict | list | tuple) else 0


def save_checkpoint(
    run: Path, step: int, checkpoint: Checkpoint, keep: int = 2, keep_every: int = 0
) -> Path:
    """Write a checkpoint atomically; delete all but the newest ``keep`` and every keep_every-th.

    Everything goes to a temporary folder, to the disk, and is then renamed: a crash leaves the
    previous checkpoints as they were. keep 0 deletes none; keep_every counts steps of training, 0
    for none. Raises CheckpointError when the disk is full.
    """
    target, partial = _folder(run, step), run / "checkpoints" / f".partial_{step:08d}"
    for leftover in (run / "checkpoints").glob(".partial_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        states = {"model": checkpoint.model, "ema": checkpoint.ema, **checkpoint.averages}
        for name, state in states.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(tensors, partial / f"{name}.safetensors")
        torch.save(checkpoint.training, partial / "training.pt")
        sums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        meta = {"step": step, **checkpoint.meta, "checksums": sums}
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed, free = _bytes_of(vars(checkpoint)), shutil.disk_usage(run).free
        room = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        why = f"No space left on device: {room}" if free < needed else str(error)
        raise CheckpointError(f"Save failed ({why}). Previous checkpoints are kept.") from error
    for old in steps_of(run)[:-keep] if keep > 0 else []:
        if not (keep_every and old % keep_every == 0):
            shutil.rmtree(_folder(run, old), ignore_errors=True)
    return target


def _read_meta(folder: Path) -> dict[str, Any]:
    if not (folder / "meta.json").is_file():
        raise CheckpointError("no meta.json")
    return json.loads((folder / "meta.json").read_text())


def _check(path: Path, meta: dict[str, Any]) -> Path:
    """The path, if the file is there and has the checksum that was written down."""
    expected = meta.get("checksums", {}).get(path.name)
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    if expected is not None and _checksum(path) != expected:
        raise CheckpointError(f"the checksum of {path.name} differs")
    return path


def averages_of(run: Path, step: int) -> list[str]:
    """Names of the weights in a checkpoint: model, ema, and further averages."""
    return sorted(path.stem for path in _folder(run, step).glob("*.safetensors"))


def load_weights(run: Path, step: int, which: str) -> State:
    """Weights of a checkpoint on the CPU; which is "ema", "model" or another average's name.

    Raises CheckpointError if they are damaged.
    """
    folder = _folder(run, step)
    try:
        return load_file(_check(folder / f"{which}.safetensors", _read_meta(folder)))
    except (CheckpointError, SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {step} is damaged: {error}.") from error


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The newest readable checkpoint, or None; a damaged one is named and the one before used."""
    for folder in sorted((run / "checkpoints").glob("step_*"), reverse=True):
        try:
            meta = _read_meta(folder)
            names = [path.stem for path in folder.glob("*.safetensors")]
            states = {name: load_file(_check(folder / f"{name}.safetensors", meta))
                      for name in {"model", "ema", *names}}  # fmt: skip
            training_file = _check(folder / "training.pt", meta)
            training = torch.load(training_file, map_location="cpu", weights_only=True)
            return Checkpoint(states.pop("model"), states.pop("ema"), training, meta, states)
        except Exception as error:  # whatever a damaged file provokes in its reader
            step = int(folder.name.removeprefix("step_"))
            print(f"checkpoint {step} is damaged ({error}); trying the one before")
    return None
