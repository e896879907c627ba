"""Checkpoints: folders that are complete or not there at all.

checkpoints/step_00001000/
    model.safetensors   weights as trained          ema.safetensors   their average
    training.pt         optimisers' state           meta.json         step, seconds, counters
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
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
    """What is needed to go on: weights, their average, optimisers, and counters."""

    model: State
    ema: State
    training: dict[str, Any]
    meta: dict[str, Any]


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def steps_of(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    found = (run / "checkpoints").glob("step_*") if (run / "checkpoints").is_dir() else []
    return sorted(int(p.name.removeprefix("step_")) for p in found if (p / "meta.json").is_file())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(run: Path, step: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint atomically and delete all but the newest ``keep``.

    Everything goes to a temporary folder, to the disk, and is then renamed: a crash leaves the
    previous checkpoints as they were. Raises CheckpointError when the disk is full.
    """
    target, partial = _folder(run, step), run / "checkpoints" / f".partial_{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, state in (("model", checkpoint.model), ("ema", checkpoint.ema)):
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(tensors, partial / f"{name}.safetensors")
        torch.save(checkpoint.training, partial / "training.pt")
        (partial / "meta.json").write_text(json.dumps({"step": step, **checkpoint.meta}, indent=1))
        for path in partial.iterdir():
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"Save failed ({error}). Previous checkpoints are kept.") from error
    for old in steps_of(run)[:-keep] if keep > 0 else []:
        shutil.rmtree(_folder(run, old), ignore_errors=True)
    return target


def load_weights(run: Path, step: int, which: str) -> State:
    """Weights of a checkpoint on the CPU; which is "ema" or "model"."""
    return load_file(_folder(run, step) / f"{which}.safetensors")


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The newest readable checkpoint, or None; a damaged one is named and the one before used."""
    for step in reversed(steps_of(run)):
        folder = _folder(run, step)
        try:
            training = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
            meta = json.loads((folder / "meta.json").read_text())
            model, ema = (load_weights(run, step, which) for which in ("model", "ema"))
            return Checkpoint(model, ema, training, meta)
        except Exception as error:  # whatever a damaged file provokes in its reader
            print(f"checkpoint {step} is damaged ({type(error).__name__}); trying the one before")
    return None
