"""Samples of a run for its evaluation: drawn in parts, kept, and not drawn again.

evaluation/<what they depend on>/
    settings.json           the sampler, NFE, seeds, weights and their checksum
    samples_000000000.npz   PART samples from this seed on, as files would hold them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.runs.outputs import write_npz
from score_sde.runs.run import Run

PART = 250


class Drawn(NamedTuple):
    """items (n, ...): uint8 images, or values in the data's own range; and how they were drawn."""

    items: Tensor
    facts: dict[str, Any]
    folder: Path


def as_stored(x: Tensor, spec: DataSpec) -> Tensor:
    """Samples in the model's range as files hold them: pixels, or values in the data's range."""
    x = x.float().cpu()
    return spec.to_uint8(x) if spec.is_image else spec.to_raw(x)


def weights_checksum(run: Run) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(run.score.net.state_dict().items()):
        digest.update(name.encode())
        plain = value.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def draw(
    run: Run,
    n: int,
    first_seed: int,
    weights: str,
    changes: Mapping[str, Any],
    class_labels: ClassLabels = None,
    guidance: float | None = None,
) -> Drawn:
    """n samples with seeds from first_seed on; what an earlier call has drawn of them is read.

    All processes of a torchrun call it, divide the work and receive all n.
    """
    settings = build.change_sampling(run.config.get("sampling"), changes)
    facts: dict[str, Any] = {"weights": weights, "step": run.step, "first_seed": first_seed}
    facts |= {"weights_checksum": weights_checksum(run), "sampling": settings}
    if class_labels is not None:
        facts["class_labels"] = str(class_labels)
    more: dict[str, Any] = dict(changes)
    if guidance is not None:
        facts["guidance"] = more["guidance"] = guidance
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = run.home / "evaluation" / f"samples_{key}"
    labels = run.class_labels(class_labels, range(first_seed, first_seed + n))
    parts = []
    for start in range(0, n, PART):
        count = min(PART, n - start)
        path = folder / f"samples_{first_seed + start:09d}.npz"
        part, said = _read(path, count), None
        if part is None:
            own = None if labels is None else labels[start : start + count]
            distributed.say(f"drawing samples {start} to {start + count} of {n}")
            result = run.sample_shared(count, first_seed + start, False, own, **more)
            part = as_stored(result.x, run.item_spec)
            said = {"nfe": result.nfe, **result.settings}
            if distributed.is_writer():
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps(facts | said, indent=1, default=str)
                (folder / "settings.json").write_text(text + "\n")
                write_npz(path, {"samples": part.numpy()})
        parts.append(part)
    distributed.wait()
    return Drawn(torch.cat(parts), json.loads((folder / "settings.json").read_text()), folder)


def _read(path: Path, count: int) -> Tensor | None:
    """At least ``count`` samples that are there, or None."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = torch.from_numpy(file["samples"])
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    return found[:count] if len(found) >= count else None
