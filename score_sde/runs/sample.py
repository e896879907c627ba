"""Samples of a run as files, and time grids fitted to it: `--mode sample`, `--mode calibrate`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from score_sde import distributed
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.data.pictures import grid_array, image_array, picture_of, save_png
from score_sde.runs.run import RunError, load, pick_device
from score_sde.sampling import Recipe, calibrate


def sample_to_files(
    workdir: str | Path,
    num_samples: int = 64,
    first_seed: int = 0,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    method: str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    """Sample a run and write num_samples PNG files, grid.png, samples.npz and settings.json.

    class_labels is that of `Run.sample`; text lists classes to take in turn, or says "all" of
    them, and both files hold each sample's. method, steps, nfe, grid, batch_size, options: in
    place of the run's own; sampling: further such changes, by name. Files are named by seed. Data
    that are not images give the .npz and, in the plane, a picture. Returns the folder: ``out``, or
    one named by the method.
    """
    changes: dict[str, Any] = {"method": method, "steps": steps, "nfe": nfe, "grid": grid}
    changes |= {"batch_size": batch_size, "options": options}
    changes = dict(sampling or {}) | {k: v for k, v in changes.items() if v is not None}
    if num_samples < 1:
        raise RunError(f"num_samples must be >= 1 (got {num_samples}).")
    with distributed.processes(pick_device(device)) as chosen:
        run = load(workdir, weights, str(chosen))
        seeds = range(first_seed, first_seed + num_samples)
        labels = run.class_labels(class_labels, seeds)
        result = run.sample_shared(num_samples, first_seed, True, labels, **changes)
        distributed.say(str(result))
        name = f"{result.settings['method']}_{result.nfe}_evaluations"
        folder = Path(out) if out else Path(workdir) / "samples" / name
        if distributed.is_writer():
            _empty_sample_folder(folder)
            _write_samples(folder, result.x, run.data_spec, seeds, labels)
            facts = {"num_samples": num_samples, "first_seed": first_seed, "weights": weights}
            facts |= {"step": run.step, "nfe": result.nfe, "seconds": result.seconds}
            facts |= result.settings
            if labels is not None:
                facts["class_labels"] = labels.tolist()
            (folder / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
        distributed.say(f"{num_samples} samples are in {folder}")
    return folder


def calibrate_run(
    workdir: str | Path,
    nfe: int = 20,
    thorough: bool = False,
    weights: str = "ema",
    recipe: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Fit a time grid of `adams` to a run's model and save it: recipe_<nfe>.json in the run."""
    run = load(workdir, weights, device)
    where = next(run.score.parameters()).device
    shape = (64, *run.data_spec.shape)
    score = run.score_of_classes(run.class_labels(None, range(shape[0])))
    found: Recipe = calibrate(
        run.sde, score, shape, nfe, data_std=run.data_std, thorough=thorough, device=where
    )
    path = Path(recipe) if recipe else Path(workdir) / f"recipe_{nfe}.json"
    found.save(path)
    print(f"{len(found.times) - 1} steps of order {found.order}, data_std {found.data_std:.3g}")
    print(f"saved {path}; use it with --sampler adams --grid {path}")
    return path


def _empty_sample_folder(folder: Path) -> None:
    """Samples of an earlier call go; anybody else's files are an error."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "settings.json").is_file():
            raise RunError(f"{folder} holds other files; give an empty or new folder as --out.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _write_samples(
    folder: Path, x: Tensor, spec: DataSpec, seeds: Sequence[int], labels: Tensor | None
) -> None:
    x = x.float().cpu()
    more: dict[str, Any] = {} if labels is None else {"class_labels": labels.numpy()}
    if not spec.is_image:
        np.savez(folder / "samples.npz", samples=spec.to_raw(x).numpy(), **more)
        if (picture := picture_of(x, spec)) is not None:
            save_png(picture, folder / "grid.png")
        return
    pixels = spec.to_uint8(x)
    images = pixels.permute(0, 2, 3, 1).numpy()
    np.savez_compressed(folder / "samples.npz", samples=images, **more)
    for seed, image in zip(seeds, pixels, strict=True):
        save_png(image_array(image), folder / f"{seed:06d}.png")
    save_png(grid_array(pixels[:256]), folder / "grid.png")
