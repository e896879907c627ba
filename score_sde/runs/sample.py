"""Samples of a run as files, and time grids fitted to it: `--mode sample`, `--mode calibrate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from score_sde import build, distributed
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.data.pictures import captioned_grid, grid_array, image_array, picture_of
from score_sde.runs.cascade import check_upscaler, enlarge
from score_sde.runs.directory import RunError
from score_sde.runs.editing import check_strength
from score_sde.runs.outputs import (
    Output,
    file_checksum,
    identity,
    open_output,
    write_beside,
    write_npz,
    write_png,
)
from score_sde.runs.run import Run, load, pick_device, said_of_classes
from score_sde.runs.steering import Wish, check_wish, read_prompts
from score_sde.sampling import Recipe, SampleResult, calibrate, load_recipe


def sample_to_files(
    workdir: str | Path,
    num_samples: int | None = None,
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
    prompt: str | None = None,
    prompts: str | Path | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rule: str | None = None,
    against: str | Path | None = None,
    init: str | Path | None = None,
    strength: float | None = None,
    upscale: str | Path | None = None,
) -> Path:
    """Sample a run and write num_samples (64) PNG files, grid.png, samples.npz and settings.json.

    prompt, or a file of prompts with a line each: captions, of all samples or taken in turn; they
    are written beside the pictures (metadata.jsonl) and into the grid. guidance and what belongs
    to it, init and strength: as of `Run.sample`, ``against`` being the directory of another run.
    upscale: the directory of a run that enlarges what this one draws (`cascade`).
    class_labels is that of `Run.sample`; text lists classes to take in turn, or says "all" of
    them, and both files hold each sample's. method, steps, nfe, grid, batch_size, options: in
    place of the run's own; sampling: further such changes, by name. Files are named by seed. Data
    that are not images give the .npz and, in the plane, a picture. Returns the folder: ``out``, or
    one named by the request. A command that was stopped goes on when it is given again.
    """
    changes: dict[str, Any] = {"method": method, "steps": steps, "nfe": nfe, "grid": grid}
    changes |= {"batch_size": batch_size, "options": options}
    changes = dict(sampling or {}) | {k: v for k, v in changes.items() if v is not None}
    if num_samples is not None and num_samples < 1:
        raise RunError(f"num_samples must be >= 1 (got {num_samples}).")
    if prompt is not None and prompts is not None:
        raise RunError("give prompt or prompts, not both.")
    captions = None if prompts is None else read_prompts(prompts, num_samples)
    num_samples = num_samples or (len(captions) if captions else 64)
    if prompt is not None:
        captions = [prompt] * num_samples
    with distributed.processes(pick_device(device)) as chosen:
        run = load(workdir, weights, str(chosen))
        seeds = range(first_seed, first_seed + num_samples)
        labels = run.class_labels(class_labels, seeds)
        wish = Wish(labels, captions, guidance, negative_prompt,
                    None if against is None else load(against, weights, str(chosen)),
                    guidance_interval, guidance_rule or "cfg")  # fmt: skip
        check_wish(run, wish, num_samples)
        large = None if upscale is None else load(upscale, weights, str(chosen))
        if large is not None:
            check_upscaler(large, run.data_spec)
        if init is not None:
            check_strength(0.6 if strength is None else strength)
            wish_start = {"init": str(init), "strength": 0.6 if strength is None else strength}
        else:
            wish_start = {}
        settings = build.build_sampling(
            {"sampling": build.change_sampling(run.config.get("sampling"), changes)}
        )
        request = {"weights": weights, "first_seed": first_seed, "num_samples": num_samples}
        request |= _request(settings)
        if labels is not None:
            request["class_labels"] = labels.tolist()
        request |= wish.to_dict() | wish_start
        if wish.against is not None:
            request["against"] = identity(wish.against)
        if init is not None:
            request["init_checksum"] = file_checksum(Path(init))
        if large is not None:
            request["upscale"] = identity(large)
        output = open_output(run, "samples", _name(settings, seeds), request, out)
        if output.facts is None:
            _draw(run, output, seeds, wish, wish_start | changes, settings.batch_size, large)
        distributed.wait()
        if distributed.is_writer() and output.facts is None:
            _write(large or run, output, seeds, labels, captions)
        distributed.wait()
        distributed.say(str((output.facts or {}).get("line")))
        distributed.say(f"{num_samples} samples are in {output.folder}")
    return output.folder


def _request(settings: build.SamplingSettings) -> dict[str, Any]:
    """All settings of the sampler; of a recipe, what it holds."""
    asked: dict[str, Any] = {"sampler": asdict(settings)}
    if settings.grid is not None and settings.grid.endswith(".json"):
        asked["recipe"] = asdict(load_recipe(settings.grid))
    return asked


def _name(settings: build.SamplingSettings, seeds: range) -> str:
    """How a folder of samples begins: heun_nfe39_seeds0-63."""
    cost = "" if settings.nfe is None else f"_nfe{settings.nfe}"
    cost += "" if settings.steps is None else f"_{settings.steps}steps"
    method = settings.method.rpartition(".")[2]
    return f"{method}{cost}_seeds{seeds[0]}-{seeds[-1]}"


def _batches(output: Output, size: int) -> list[range]:
    """Places in the seeds that are drawn together: no more than size, and a share for everyone."""
    n = output.request["num_samples"]
    size = min(size, -(-n // distributed.size()))
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def _draw(
    run: Run,
    output: Output,
    seeds: range,
    wish: Wish,
    changes: Mapping[str, Any],
    size: int,
    large: Run | None = None,
) -> None:
    """This process's share of the batches, but for those that are done."""
    batches = _batches(output, size)
    mine = [batches[i] for i in distributed.share(len(batches))]
    shown = distributed.is_writer()
    for rows in tqdm(mine, disable=not shown or len(mine) == 1, unit="batch"):
        if output.read_part(rows) is not None:
            continue
        alone = shown and len(mine) == 1
        own = wish.part(rows).to_arguments()
        result = run.sample(len(rows), seeds[rows.start], alone, **own, **changes)
        if large is not None:
            above = enlarge(large, result.x, run.data_spec, seeds[rows.start], progress=alone)
            result = replace(result, x=above.x, seconds=result.seconds + above.seconds)
        facts = {"nfe": result.nfe, "seconds": result.seconds, "settings": result.settings}
        values = {"x": result.x.float().cpu().numpy(), "facts": np.array(json.dumps(facts))}
        output.write_part(rows, values)


def _write(
    run: Run,
    output: Output,
    seeds: range,
    labels: Tensor | None,
    captions: Sequence[str] | None,
) -> None:
    """All batches are there: samples, pictures, and how they were made."""
    size = output.request["sampler"]["batch_size"]
    parts = []
    for rows in _batches(output, size):
        part = output.read_part(rows)
        if part is None:
            raise RunError(f"{output.part(rows)} has gone: give the same command again.")
        parts.append(part)
    facts = [json.loads(str(part["facts"])) for part in parts]
    x = torch.from_numpy(np.concatenate([part["x"] for part in parts]))
    settings = facts[0]["settings"] | said_of_classes(labels)
    nfe = sum(fact["nfe"] for fact in facts) // len(facts)
    result = SampleResult(x, nfe, sum(fact["seconds"] for fact in facts), settings)
    files = _write_samples(output.folder, x, run.data_spec, seeds, labels, captions)
    asked = {key: output.request[key] for key in ("num_samples", "first_seed", "weights", "step")}
    about = {**asked, "nfe": nfe, "seconds": result.seconds, **settings, "line": str(result)}
    if labels is not None:
        about["class_labels"] = labels.tolist()
    output.finish(about, files)


def _write_samples(
    folder: Path,
    x: Tensor,
    spec: DataSpec,
    seeds: Sequence[int],
    labels: Tensor | None,
    captions: Sequence[str] | None = None,
) -> list[str]:
    """samples.npz and pictures; returns the names of the files."""
    more: dict[str, Any] = {} if labels is None else {"class_labels": labels.numpy()}
    if not spec.is_image:
        write_npz(folder / "samples.npz", {"samples": spec.to_raw(x).numpy()} | more)
        picture = picture_of(x, spec)
        if picture is None:
            return ["samples.npz"]
        write_png(folder / "grid.png", picture)
        return ["samples.npz", "grid.png"]
    pixels = spec.to_uint8(x)
    images = pixels.permute(0, 2, 3, 1).numpy()
    write_npz(folder / "samples.npz", {"samples": images} | more, compress=True)
    names = [f"{seed:06d}.png" for seed in seeds]
    for name, image in zip(names, pixels, strict=True):
        write_png(folder / name, image_array(image))
    if captions is None:
        write_png(folder / "grid.png", grid_array(pixels[:256]))
        return ["samples.npz", "grid.png", *names]
    write_png(folder / "grid.png", captioned_grid(pixels[:256], captions[:256]))
    lines = [{"file_name": n, "text": c} for n, c in zip(names, captions, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return ["samples.npz", "grid.png", "metadata.jsonl", *names]


def calibrate_run(
    workdir: str | Path,
    nfe: int = 20,
    thorough: bool = False,
    weights: str = "ema",
    recipe: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Fit a time grid of `adams` to a run's model and save it: recipe_<nfe>.json in the run.

    A recipe that is there and differs is not replaced; the path of the new one is returned.
    """
    if recipe is not None and Path(recipe).exists():
        load_recipe(recipe)  # another file is not replaced, nor is the work done for nothing
    run = load(workdir, weights, device)
    where = next(run.score.parameters()).device
    shape = (64, *run.data_spec.shape)
    score = run.score.bind(class_labels=run.class_labels(None, range(shape[0])))
    found: Recipe = calibrate(
        run.sde, score, shape, nfe, data_std=run.data_std, thorough=thorough, device=where
    )
    wanted = Path(recipe) if recipe else Path(workdir) / f"recipe_{nfe}.json"
    path = write_beside(wanted, found.to_json())
    print(f"{len(found.times) - 1} steps of order {found.order}, data_std {found.data_std:.3g}")
    if path != wanted:
        print(f"{wanted} holds another recipe and stays as it is")
    print(f"saved {path}; use it with --sampler adams --grid {path}")
    return path
