"""Samples of a run for its evaluation: drawn in parts, kept, and not drawn again.

evaluation/samples_<sampler>_<checksum of the request>/
    settings.json    the mark, the request, and how they were drawn (see `outputs`)
    parts/           samples from this place to that, as files would hold them

How many are wanted is no part of the request: more of them are added to those that are there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde import distributed
from score_sde.checks import check_size
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.runs.outputs import Output, open_output
from score_sde.runs.run import Run

PART = 250


class Drawn(NamedTuple):
    """items (n, ...): uint8 images, or values in the data's own range; how they were drawn; and
    their classes (n,), None for samples without."""

    items: Tensor
    facts: dict[str, Any]
    labels: Tensor | None


def as_stored(x: Tensor, spec: DataSpec) -> Tensor:
    """Samples in the model's range as files hold them: pixels, or values in the data's range."""
    x = x.float().cpu()
    return spec.to_uint8(x) if spec.is_image else spec.to_raw(x)


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
    section, settings = run.sampling_with(changes)
    request: dict[str, Any] = {"weights": weights, "first_seed": first_seed, "sampling": section}
    more: dict[str, Any] = dict(changes)
    if class_labels is not None:
        request["class_labels"] = str(class_labels)
    if guidance is not None:
        request["guidance"] = more["guidance"] = guidance
    check_size(4 * n * math.prod(run.item_spec.shape), "so many samples")
    name = f"samples_{settings.method.rpartition('.')[2]}"
    output = open_output(run, "evaluation", name, request)
    labels = run.class_labels(class_labels, range(first_seed, first_seed + n))
    parts = []
    for start in range(0, n, PART):
        rows = range(start, min(start + PART, n))
        part = _kept(output, rows)
        if part is None:
            own = None if labels is None else labels[rows.start : rows.stop]
            distributed.say(f"drawing samples {rows.start} to {rows.stop} of {n}")
            result = run.sample_shared(len(rows), first_seed + start, False, own, **more)
            part = as_stored(result.x, run.item_spec)
            if distributed.is_writer():
                output.note({"nfe": result.nfe, **result.settings})
                output.write_part(rows, {"samples": part.numpy()})
        parts.append(part)
    distributed.wait()
    said = {
        k: v for k, v in (output.facts or {}).items() if k not in ("request", "files", "format")
    }
    facts = {"weights": weights, "step": run.step, "first_seed": first_seed}
    facts |= {"model_checksum": output.request["model"], "sampling": section} | said
    facts |= {k: request[k] for k in ("class_labels", "guidance") if k in request}
    return Drawn(torch.cat(parts), facts, labels)


def _kept(output: Output, rows: range) -> Tensor | None:
    """These samples if a part that begins with them, and is as long or longer, can be read."""
    for path in sorted((output.folder / "parts").glob(f"{rows.start:08d}_*.npz")):
        named = re.fullmatch(r"\d+_(\d+)\.npz", path.name)
        if named and int(named[1]) >= rows.stop:
            values = output.read_part(range(rows.start, int(named[1])))
            samples: np.ndarray | None = None if values is None else values.get("samples")
            if samples is not None and len(samples) >= len(rows):
                return torch.from_numpy(samples[: len(rows)])
    return None
