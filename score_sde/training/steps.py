"""Which checkpoints a folder of them holds, what they say, and which of them is asked for."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Required, TypedDict

from score_sde.checks import LOOSE, Index, UserError, read_json


class CheckpointError(UserError):
    """A checkpoint that cannot be written, found or read; the message says which and why."""


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step that a folder of a checkpoint is named by; None for any other folder."""
    named = re.fullmatch(r"step_(\d{8,})", folder.name)
    return int(named[1]) if named and folder.is_dir() else None


def folders_of(checkpoints: Path) -> dict[int, Path]:
    """The folders named as checkpoints, whatever is in them, by ascending step."""
    there = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = ((step_of(folder), folder) for folder in there)
    return dict(sorted((step, folder) for step, folder in steps if step is not None))


def steps_of(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    found = folders_of(checkpoints).items()
    return [step for step, folder in found if (folder / "meta.json").is_file()]


def strays(checkpoints: Path) -> list[str]:
    """Names among the checkpoints that are not those of one: other people's files and folders."""
    there = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return sorted(p.name for p in there if step_of(p) is None and not is_partial(p))


def is_partial(folder: Path) -> bool:
    return re.fullmatch(r"\.partial_\d{8,}", folder.name) is not None


def meta_sum(meta: Mapping[str, Any]) -> str:
    """A checksum of everything in meta.json but itself."""
    rest = {key: value for key, value in meta.items() if key != "checksum"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


class Meta(TypedDict, total=False):
    """What meta.json holds, beside the trainer's counters."""

    __pydantic_config__ = LOOSE  # type: ignore[misc]
    step: Required[Index]
    checksums: dict[str, str]
    checksum: str
    held_out_loss: float | None


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json says; CheckpointError if it is not there, or was edited."""
    meta = dict(read_json(folder / "meta.json", Meta, "that of a checkpoint", CheckpointError))
    if meta["step"] != step_of(folder):
        raise CheckpointError(f"meta.json says step {meta['step']}")
    if meta.get("checksum", (found := meta_sum(meta))) != found:
        raise CheckpointError("meta.json was changed after it was written")
    return meta


def held_out_losses(checkpoints: Path) -> dict[int, float]:
    """The held-out loss of each checkpoint that was evaluated when it was made, by its step."""
    found = {}
    for step in steps_of(checkpoints):
        try:
            value = read_meta(folder_of(checkpoints, step)).get("held_out_loss")
        except CheckpointError:
            continue
        if value is not None and math.isfinite(value):
            found[step] = float(value)
    return found


def best_step(checkpoints: Path) -> int | None:
    """The checkpoint with the smallest held-out loss; None where none was evaluated."""
    losses = held_out_losses(checkpoints)
    return min(losses, key=lambda step: losses[step]) if losses else None


def chosen_steps(checkpoints: Path, step: int | str | None) -> list[int]:
    """The checkpoints that may be loaded for a step, the best choice last.

    step: a number, "best" for the smallest held-out loss, None for the newest and, where that is
    damaged, those before. Raises CheckpointError for one that the run does not keep.
    """
    there = steps_of(checkpoints)
    if step is None:
        return there
    if step == "best":
        best = best_step(checkpoints)
        if best is None:
            raise CheckpointError(
                f"{checkpoints} holds no checkpoint whose held-out loss is known: train with "
                "training.evaluate_every and training.keep_best=True on data with a test split."
            )
        return [best]
    if not str(step).isdecimal() or int(step) not in there:
        kept = ", ".join(map(str, there)) or "none"
        raise CheckpointError(
            f"{checkpoints} keeps no checkpoint {step!r}; it has {kept}, and best."
        )
    return [int(step)]
