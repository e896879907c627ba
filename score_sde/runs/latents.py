"""Latents of data, and ways between images through them: `--mode encode`, `--mode interpolate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import Count, Positive, check_size, checked
from score_sde.conditioning.classes import ClassLabels
from score_sde.likelihood import decode, encode, interpolate
from score_sde.plotting.pictures import enlarged, grid_array
from score_sde.runs.directory import RunError
from score_sde.runs.items import items_of, labels_of, to_model
from score_sde.runs.load import load_score
from score_sde.runs.outputs import Output, open_output, write_npz, write_png
from score_sde.runs.run import Run
from score_sde.sampling import ScoreFn

BATCH = 64
Points = Annotated[int, Field(ge=2, le=2**53)]


@checked("")
def encode_to_files(
    workdir: str | Path,
    split: str = "test",
    num_samples: Count = 64,
    nfe: Count = 64,
    temperature: Positive = 1.0,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    data: str | None = None,
    step: int | str | None = None,
) -> Path:
    """Latents of a split's first items, and the items decoded from them, into a folder.

    latents.npz holds x_T, the items and what comes back, in the model's range; grid.png shows items
    above what comes back. temperature multiplies the latents before decoding. The round trip's
    error is printed, and in settings.json. Of a run of latents all arrays are its states, the
    autoencoder's latents, and the grid shows them decoded. class_labels, data: as of
    `likelihood_to_files`. A command that was stopped goes on when it is given again. Returns the
    folder.
    """
    run = load_score(workdir, weights, device, step=step)
    items, n = items_of(run, split, num_samples, data)
    split = items.split  # "all" of data without parts, whatever was asked for
    labels = labels_of(run, items, n, class_labels)
    request = {"split": split, "items": n, "nfe": nfe, "temperature": temperature}
    request |= _request(items, labels, weights)
    output = open_output(run, f"latents/{split}", f"{n}_items", request, out)
    if output.facts is None:
        values = _round_trips(run, items, n, labels, nfe, temperature, output)
        known = {} if labels is None else {"class_labels": labels.numpy()}
        write_npz(output.folder / "latents.npz", values | known)
        pairs = torch.from_numpy(np.concatenate([values["items"][:16], values["decoded"][:16]]))
        files = ["latents.npz", *_draw(run, pairs, output.folder / "grid.png", min(n, 16))]
        off = values["decoded"].astype(np.float64) - values["items"]
        size = float(np.sqrt(np.square(values["latents"], dtype=np.float64).mean()))
        facts: dict[str, Any] = {"items": n, "split": split, "nfe": 2 * nfe, "weights": weights}
        facts |= {"round_trip_rms": float(np.sqrt(np.square(off).mean()))}
        facts |= {"relative_size": size / run.sde.prior_std(), "data_std": run.data_std}
        output.finish(facts | {"temperature": temperature}, files)
    said = output.facts or {}
    print(
        f"{n} latents in {output.folder}; their size is {said['relative_size']:.3f} of the "
        f"prior's; x -> x_T -> x is off by rms {said['round_trip_rms']:.2e} (data std "
        f"{run.data_std:.3f}), NFE {nfe} + {nfe}"
    )
    return output.folder


def _round_trips(
    run: Run,
    items: Any,
    n: int,
    labels: Tensor | None,
    nfe: int,
    temperature: float,
    output: Output,
) -> dict[str, np.ndarray]:
    """Latents of the first n items, the items, and what the flow makes of the latents."""
    batches = [range(first, min(first + BATCH, n)) for first in range(0, n, BATCH)]
    for rows in batches:
        if output.read_part(rows) is not None:
            continue
        own = None if labels is None else labels[rows.start : rows.stop]
        score, x = run.score.bind(class_labels=own), to_model(run, items.raw_items(rows))
        setting: dict[str, Any] = {"nfe": nfe, "data_std": run.data_std, "progress": True}
        latents = encode(run.sde, score, x, **setting)
        back = decode(run.sde, score, temperature * latents, **setting)
        arrays = {"latents": latents, "items": x, "decoded": back}
        output.write_part(rows, {name: v.float().cpu().numpy() for name, v in arrays.items()})
    parts = output.parts(batches)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@checked("")
def interpolate_to_files(
    workdir: str | Path,
    split: str = "test",
    pairs: Count = 6,
    points: Points = 9,
    nfe: Count = 64,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    data: str | None = None,
    step: int | str | None = None,
) -> Path:
    """Ways between items 0 and 1, 2 and 3, ... of a split through their latents, into a folder.

    interpolation.npz holds (pairs, points, *shape) in the model's range; grid.png has a row a pair.
    class_labels: one for all or one a pair, for both ends and the way between them. data: the name
    of other data than the run's.
    """
    run = load_score(workdir, weights, device, step=step)
    labels = labels_of(run, None, pairs, class_labels)
    items, n = items_of(run, split, 2 * pairs, data)
    split = items.split
    if n < 2 * pairs:
        raise RunError(f"{pairs} pairs need {2 * pairs} items; the {split} split has {n}.")
    check_size(4 * pairs * points * math.prod(run.data_spec.shape), "so many points")
    request = {"split": split, "pairs": pairs, "points": points, "nfe": nfe}
    request |= _request(items, labels, weights)
    output = open_output(run, f"interpolation/{split}", f"{pairs}_pairs", request, out)
    if output.facts is None:
        ways = _ways(run, to_model(run, items.raw_items(range(n))), labels, points, nfe)
        known = {} if labels is None else {"class_labels": labels.numpy()}
        shaped = ways.reshape(pairs, points, *ways.shape[1:]).numpy()
        output.claim()
        write_npz(output.folder / "interpolation.npz", {"images": shaped} | known)
        drawn = _draw(run, ways, output.folder / "grid.png", points)
        output.finish({"pairs": pairs, "points": points}, ["interpolation.npz", *drawn])
    print(f"{pairs} ways of {points} points in {output.folder}")
    return output.folder


def _ways(run: Run, x: Tensor, labels: Tensor | None, points: int, nfe: int) -> Tensor:
    """(pairs * points, *shape) from pairs of items that follow one another."""

    def score(each: int) -> ScoreFn:
        """Of as many states for each pair."""
        told = None if labels is None else labels.repeat_interleave(each)
        return run.score.bind(class_labels=told)

    setting: dict[str, Any] = {"nfe": nfe, "data_std": run.data_std, "batch_size": BATCH}
    ends = encode(run.sde, score(2), x, **setting)
    ways = [interpolate(ends[i], ends[i + 1], points) for i in range(0, len(ends), 2)]
    return decode(run.sde, score(points), torch.cat(ways), progress=True, **setting).float().cpu()


def _request(items: Any, labels: Tensor | None, weights: str) -> dict[str, Any]:
    """What a result depends on beside the run and the settings."""
    known = {"weights": weights, "data": items.spec.name, "fingerprint": items.fingerprint()}
    return known | ({} if labels is None else {"class_labels": labels.tolist()})


def _draw(run: Run, x: Tensor, path: Path, columns: int) -> list[str]:
    """A grid of images as a file; [] for what is none."""
    if not run.item_spec.is_image:
        return []
    pixels = run.item_spec.to_uint8(run.to_items(x)).cpu()
    write_png(path, enlarged(grid_array(pixels, columns=columns)))
    return [path.name]
