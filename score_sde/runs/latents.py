"""Latents of data, and ways between images through them: `--mode encode`, `--mode interpolate`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from score_sde.conditioning.classes import ClassLabels
from score_sde.data.pictures import grid_array, save_png
from score_sde.likelihood import decode, encode, interpolate
from score_sde.runs.items import items_of, labels_of, to_model, write_npz
from score_sde.runs.run import RunError, load
from score_sde.scores import ScoreFn


def encode_to_files(
    workdir: str | Path,
    split: str = "test",
    num_samples: int = 64,
    nfe: int = 64,
    temperature: float = 1.0,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    data: str | None = None,
) -> Path:
    """Latents of a split's first items, and the items decoded from them, into a folder.

    latents.npz holds x_T, the items and what comes back, in the model's range; grid.png shows items
    above what comes back. temperature multiplies the latents before decoding. The round trip's
    error is printed, and in settings.json. class_labels, data: as of `likelihood_to_files`.
    """
    if not temperature > 0:
        raise RunError(f"temperature must be positive (got {temperature}).")
    run = load(workdir, weights, device)
    items, n = items_of(run, split, num_samples, data)
    labels = labels_of(run, items, n, class_labels)
    score = run.score_of_classes(labels)
    x = to_model(run, items.raw_items(range(n)))
    setting = {"nfe": nfe, "data_std": run.data_std, "batch_size": 64}
    latents = encode(run.sde, score, x, progress=True, **setting)  # type: ignore[arg-type]
    back = decode(run.sde, score, temperature * latents, progress=True, **setting)  # type: ignore[arg-type]
    rms = float((back - x).square().mean().sqrt())
    folder = Path(out) if out else Path(workdir) / "latents" / split
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"latents": latents, "items": x, "decoded": back}
    known = {} if labels is None else {"class_labels": labels.numpy()}
    write_npz(
        folder / "latents.npz", {k: v.float().cpu().numpy() for k, v in arrays.items()} | known
    )
    facts = {"items": n, "split": split, "nfe": 2 * nfe, "temperature": temperature}
    facts |= {"round_trip_rms": rms, "data_std": run.data_std, "weights": weights}
    (folder / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
    if run.data_spec.is_image:
        pairs = torch.stack([x[:16], back[:16]]).flatten(0, 1)
        pixels = run.data_spec.to_uint8(pairs).cpu()
        save_png(grid_array(pixels, columns=min(n, 16)), folder / "grid.png")
    size = float(latents.double().square().mean().sqrt()) / run.sde.prior_std()
    print(f"{n} latents in {folder}; their size is {size:.3f} of the prior's; x -> x_T -> x is off "
          f"by rms {rms:.2e} (data std {run.data_std:.3f}), NFE {nfe} + {nfe}")  # fmt: skip
    return folder


def interpolate_to_files(
    workdir: str | Path,
    split: str = "test",
    pairs: int = 6,
    points: int = 9,
    nfe: int = 64,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    data: str | None = None,
) -> Path:
    """Ways between items 0 and 1, 2 and 3, ... of a split through their latents, into a folder.

    interpolation.npz holds (pairs, points, *shape) in the model's range; grid.png has a row a pair.
    class_labels: one for all or one a pair, for both ends and the way between them. data: the name
    of other data than the run's.
    """
    if pairs < 1 or points < 2:
        raise RunError(f"pairs must be >= 1 and points >= 2 (got {pairs}, {points}).")
    run = load(workdir, weights, device)
    labels = labels_of(run, None, pairs, class_labels)
    items, n = items_of(run, split, 2 * pairs, data)
    if n < 2 * pairs:
        raise RunError(f"{pairs} pairs need {2 * pairs} items; the {split} split has {n}.")
    x = to_model(run, items.raw_items(range(n)))

    def score(each: int) -> ScoreFn:
        """Of as many states for each pair."""
        return run.score_of_classes(None if labels is None else labels.repeat_interleave(each))

    setting = {"nfe": nfe, "data_std": run.data_std, "batch_size": 64}
    ends = encode(run.sde, score(2), x, **setting)  # type: ignore[arg-type]
    ways = torch.cat([interpolate(ends[2 * i], ends[2 * i + 1], points) for i in range(pairs)])
    images = decode(run.sde, score(points), ways, progress=True, **setting)  # type: ignore[arg-type]
    folder = Path(out) if out else Path(workdir) / "interpolation" / split
    folder.mkdir(parents=True, exist_ok=True)
    shaped = images.reshape(pairs, points, *images.shape[1:]).float().cpu().numpy()
    known = {} if labels is None else {"class_labels": labels.numpy()}
    write_npz(folder / "interpolation.npz", {"images": shaped} | known)
    if run.data_spec.is_image:
        pixels = run.data_spec.to_uint8(images).cpu()
        save_png(grid_array(pixels, columns=points), folder / "grid.png")
    print(f"{pairs} ways of {points} points in {folder}")
    return folder
