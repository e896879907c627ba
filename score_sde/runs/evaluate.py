"""How good samples are, as files: `--mode evaluate`.

<workdir>/evaluation/
    report_<features>_<split>.json, .txt    every number with its error and protocol
    neighbours.png                          samples beside the training items nearest to them
    samples_<key>/                          what was drawn for it, see `drawn`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import Data, DataError
from score_sde.data.pictures import enlarged, grid_array, save_png
from score_sde.evaluation.features import find_features
from score_sde.evaluation.measures import MOST, Featured, Statistics, featured
from score_sde.evaluation.memorisation import FEWEST, Memorisation, memorisation
from score_sde.evaluation.report import Report, as_items, check_comparable, report
from score_sde.evaluation.statistics import load_statistics, save_statistics
from score_sde.runs.autoencoders import reconstruction_distance
from score_sde.runs.drawn import draw
from score_sde.runs.features import reference_features, stored_items
from score_sde.runs.items import items_of
from score_sde.runs.run import Run, RunError, load, pick_device
from score_sde.runs.sampler import given_settings
from score_sde.runs.sweep import as_plain, points, summary


def evaluate_to_files(
    workdir: str | Path | None = None,
    samples: str | None = None,
    data: str | None = None,
    split: str = "train",
    num_samples: int | None = None,
    first_seed: int = 0,
    features: str | None = None,
    reference: str | Path | None = None,
    save: str | Path | None = None,
    few: bool = False,
    measures: str | None = None,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    guidance: float | None = None,
    sweep: str | None = None,
    values: str | None = None,
    step: int | str | None = None,
    method: str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Report | None:
    """Evaluate a run's samples, or those of a folder or file, against a split of data.

    workdir: a run; what is missing of its num_samples (2000) samples is drawn.
    samples: instead of a run, a folder of images, a .zip, .npy or .npz file, or a set's name.
    data: the reference, in place of the run's own; of split train or test.
    reference: an .npz file of statistics in place of data, for the Frechet distance alone.
    save: write the statistics of the reference to this file; without workdir and samples, only so.
    features: see `evaluation.features`; measures: names with commas. few: see `evaluate`.
    sweep, values: the same for several points of an axis, see `sweep`; the last report is returned.
    step: of the checkpoint whose weights are taken, the newest when None.
    Sampler settings, class_labels and guidance are those of `sample_to_files`. Returns the report.
    """
    if sweep is not None:
        given = {k: v for k, v in locals().items() if k not in ("sweep", "values")}
        return _sweep(sweep, values, given)
    changes = given_settings(sampling, method, steps, nfe, grid, batch_size, options)
    _check_sources(workdir, samples, data, reference, save)
    with distributed.processes(pick_device(device)) as chosen:
        run = None if workdir is None else load(workdir, weights, str(chosen), step=step)
        real = None if reference is not None else _reference_data(run, data, split)
        target: Featured | Statistics | None = None
        if workdir is None and samples is None:
            if real is not None and save is not None:
                target = reference_features(real, find_features(features, stored_items(real, 1)))
                _save(Path(save), target, real)
            return None
        if run is not None:
            n = 2000 if num_samples is None else num_samples
            found = draw(run, n, first_seed, weights, changes, class_labels, guidance)
            items, facts = found.items, found.facts
        else:
            items, facts = _read_samples(str(samples), num_samples)
        if real is not None:
            check_comparable(as_items(items, "samples"), as_items(stored_items(real, 1), "items"))
        extractor = find_features(features, items)
        if reference is not None:
            target = load_statistics(Path(reference))
        else:
            assert real is not None
            target = reference_features(real, extractor)
            facts |= {"reference": f"{real.spec.name} ({real.split})"}
            if save is not None:
                _save(Path(save), target, real)
        copies, train = _memorisation(run, real, split, items)
        wanted = measures.split(",") if measures else None
        result = report(featured(extractor, as_items(items, "samples")), target, wanted,
                        few=few, protocol=facts, copies=copies)  # fmt: skip
        if run is not None and run.codec is not None and isinstance(target, Featured):
            assert real is not None
            bound = reconstruction_distance(run.codec, real, extractor, len(items), target.features)
            result = replace(result, notes=(*result.notes, bound))
        distributed.say(str(result))
        folder = Path(out) if out else (run.home / "evaluation" if run else None)
        if folder is not None and distributed.is_writer():
            _write(folder, result, split, copies, items, train)
    return result


def _sweep(axis: str, values: str | None, given: dict[str, Any]) -> Report | None:
    """`evaluate_to_files` at each point of an axis: the curve, and a sentence on the best."""
    if given["workdir"] is None:
        raise RunError("--sweep needs --workdir: it is over the ways to sample a run.")
    workdir = Path(given["workdir"])
    folder = Path(given["out"]) if given["out"] else workdir / "evaluation" / f"sweep_{axis}"
    found: list[tuple[str, Report]] = []
    for name, changed in points(workdir, axis, values):
        print(f"{axis} {name}")
        result = evaluate_to_files(**given | changed | {"out": folder / name})
        assert result is not None
        found.append((name, result))
    print(summary(axis, found))
    text = json.dumps(as_plain(axis, found), indent=1)
    (folder / "sweep.json").write_text(text + "\n")
    print(f"wrote {folder / 'sweep.json'}")
    return found[-1][1]


def _check_sources(workdir: Any, samples: Any, data: Any, reference: Any, save: Any) -> None:
    """Raises RunError for flags that contradict each other or say too little."""
    if workdir is not None and samples is not None:
        raise RunError("--workdir and --samples are both samples: give one of them.")
    if data is not None and reference is not None:
        raise RunError("--data and --reference are both references: give one of them.")
    if workdir is None and data is None and reference is None:
        raise RunError(
            "--mode evaluate needs --workdir RUN, or --samples PATH with --data DATA or "
            "--reference STATISTICS.npz, or --data DATA with --save STATISTICS.npz."
        )
    if workdir is None and samples is None and save is None:
        raise RunError("give --samples to evaluate, or --save to keep the reference's statistics.")


def _reference_data(run: Run | None, name: str | None, split: str) -> Data:
    if run is not None:
        return items_of(run, split, None, name)[0]
    return build.build_data({"data": {"name": name}}, split)


def _read_samples(name: str, limit: int | None) -> tuple[Tensor, dict[str, Any]]:
    data = build.build_data({"data": {"name": name}})
    n = len(data) if limit is None else limit
    if n > len(data):
        raise DataError(f"{name} holds {len(data)} samples, num_samples asks for {n}.")
    return stored_items(data, n), {"samples": name}


def _save(path: Path, target: Featured, data: Data) -> None:
    if distributed.is_writer():
        save_statistics(path, target, {"data": f"{data.spec.name} ({data.split})"})
        print(f"statistics of {len(target)} items are in {path}")


def _memorisation(
    run: Run | None, real: Data | None, split: str, items: Tensor
) -> tuple[Memorisation | None, Tensor | None]:
    """Against the training items, beside the held-out ones if the run's data have any."""
    train = real if split == "train" else (_split_of(run, "train") if run else None)
    if train is None or min(len(train), len(items)) < FEWEST:
        return None, None
    held_out = real if split == "test" else (_split_of(run, "test") if run else None)
    if held_out is not None and held_out.fingerprint() == train.fingerprint():
        held_out = None  # data without splits
    known = stored_items(train)
    other = None if held_out is None else stored_items(held_out)
    return memorisation(items[:MOST], known, other), known


def _split_of(run: Run, split: str) -> Data | None:
    try:
        return items_of(run, split, None, None)[0]
    except (DataError, RunError):
        return None  # this run's data are not there, or have no such split


def _write(
    folder: Path,
    result: Report,
    split: str,
    copies: Memorisation | None,
    items: Tensor,
    train: Tensor | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"report_{str(result.protocol['extractor']).split()[0]}_{split}"
    (folder / f"{name}.json").write_text(result.to_json() + "\n")
    (folder / f"{name}.txt").write_text(f"{result}\n")
    if copies is not None and train is not None and items.ndim == 4 and items.dtype == torch.uint8:
        save_png(neighbour_grid(items, train, copies), folder / "neighbours.png")
    print(f"wrote {folder / name}.json")


def neighbour_grid(items: Tensor, train: Tensor, copies: Memorisation, pairs: int = 32) -> Any:
    """Samples with the smallest ratios, each with the training item nearest to it at its right."""
    shown: Sequence[Tensor] = [
        image
        for place, source in zip(copies.suspects[:pairs], copies.sources, strict=False)
        for image in (items[place], train[source])
    ]
    return enlarged(grid_array(torch.stack(list(shown)), columns=8))
