"""How good samples are, as files: `--mode evaluate`.

<workdir>/evaluation/
    report_<features>_<split>.json, .txt    every number with its error and protocol
    neighbours.png                          samples beside the training items nearest to them
    samples_<sampler>_<checksum>/           what was drawn for it, see `drawn`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.checks import Count, NonNegative, Seed, check_alone, checked, named
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import Data, DataError
from score_sde.data.decoding import Resize
from score_sde.devices import pick_device
from score_sde.evaluation.by_class import agreement, by_class
from score_sde.evaluation.features import Features, facts_of, find_features
from score_sde.evaluation.measures import OF_IMAGES, OF_VECTORS, Featured
from score_sde.evaluation.report import (
    Report,
    as_items,
    check_comparable,
    of_the_reference,
    report,
)
from score_sde.evaluation.statistics import holds_statistics, load_statistics, save_statistics
from score_sde.runs.autoencoders import reconstruction_distance
from score_sde.runs.copies import Copies, copies_of, neighbour_grid
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.drawn import Drawn, draw
from score_sde.runs.features import featured, reference_features, stored_items
from score_sde.runs.figures import draw_beside
from score_sde.runs.items import items_of
from score_sde.runs.load import load
from score_sde.runs.outputs import check_place, json_text, png_bytes, write_beside
from score_sde.runs.run import Run
from score_sde.runs.sampler import given_settings
from score_sde.runs.sweep import as_plain, curve, points, summary


@checked("")
def evaluate_to_files(
    workdir: str | Path | None = None,
    samples: str | None = None,
    data: str | None = None,
    split: str = "train",
    num_samples: Count | None = None,
    first_seed: Seed = 0,
    features: str | None = None,
    reference: str | Path | None = None,
    save: str | Path | None = None,
    few: bool = False,
    per_class: bool = False,
    measures: str | None = None,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    guidance: NonNegative | None = None,
    sweep: str | None = None,
    values: str | None = None,
    resize: Resize | None = None,
    step: int | str | None = None,
    method: str | None = None,
    steps: Count | None = None,
    nfe: Count | None = None,
    grid: str | None = None,
    batch_size: Count | None = None,
    options: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Report | None:
    """Evaluate a run's samples, or those of a folder or file, against a split of data.

    workdir: a run; what is missing of its num_samples (2000) samples is drawn.
    samples: instead of a run, a folder of images, a .zip, .npy or .npz file, or a set's name.
    resize: how pictures among samples are brought to the size of the data's, if they have another.
    data: the reference, in place of the run's own; of split train or test.
    reference: a file of statistics in place of data, for the Frechet distance alone; what holds
        none is data.
    save: write the statistics of the reference to this file; without workdir and samples, only so.
    features: see `evaluation.features`; measures: names with commas. few: see `evaluate`.
    sweep, values: the same for several points of an axis, see `sweep`; the last report is returned.
    per_class: the measures of every class by itself too. step: of the checkpoint, as of `load`.
    Sampler settings, class_labels and guidance are those of `sample_to_files`. Returns the report.
    """
    if sweep is not None:
        given = {k: v for k, v in locals().items() if k not in ("sweep", "values")}
        return _sweep(sweep, values, given)
    if values is not None:
        raise RunError("--values are the points of a --sweep, which is not asked for.")
    changes = given_settings(sampling, method, steps, nfe, grid, batch_size, options)
    # What cannot be is said before samples are drawn.
    _check_sources(workdir, samples, data, reference, save)
    if resize is not None and samples is None:
        raise RunError("--resize is for --samples: a run's are of the data's size.")
    if out is not None:
        check_place(out)
    if reference is not None and not holds_statistics(Path(reference)):
        data, reference = str(reference), None
    by = _criteria(features, reference, save, measures, few, per_class)
    with distributed.processes(pick_device(device)) as chosen:
        run = None if workdir is None else load(workdir, weights, str(chosen), step=step)
        real = None if reference is not None else _reference_data(run, data, split)
        if workdir is None and samples is None:
            assert real is not None
            by.keep(reference_features(real, by.extractor(stored_items(real, 1))), real)
            return None
        if run is not None:
            n = 2000 if num_samples is None else num_samples
            mine = draw(run, n, first_seed, weights, changes, class_labels, guidance)
        else:
            mine = _read_samples(str(samples), num_samples, real, resize)
        if real is not None:
            check_comparable(
                as_items(mine.items, "samples"), as_items(stored_items(real, 1), "items")
            )
        copies = copies_of(run, real, split, mine.items)
        result = _judged(run, real, mine, copies, by)
        distributed.say(str(result))
        folder = Path(out) if out else (RunDirectory(run.home).evaluation if run else None)
        if folder is not None and distributed.is_writer():
            _write(folder, result, split, copies, mine.items)
    return result


@dataclass(frozen=True)
class _Criteria:
    """What samples are judged by.

    features: None for those that suit the items. reference: a file of statistics in place of real
    items; save: where those of the items go. measures: None for all that apply.
    """

    features: Features | None
    reference: Path | None
    save: Path | None
    measures: Sequence[str] | None
    few: bool
    per_class: bool

    def extractor(self, items: Tensor) -> Features:
        """The features of these items."""
        return find_features(self.features, items)

    def keep(self, target: Featured, data: Data) -> None:
        """Write the statistics of the reference, if they are wanted."""
        if self.save is not None and distributed.is_writer():
            said = {"data": f"{data.spec.name} ({data.split})"}
            save_statistics(self.save, target, said)
            print(f"statistics of {len(target)} items are in {self.save}")


def _criteria(
    features: str | None,
    reference: str | Path | None,
    save: str | Path | None,
    measures: str | None,
    few: bool,
    per_class: bool,
) -> _Criteria:
    """UserError for features, measures and statistics that do not exist."""
    if per_class and reference is not None:
        raise RunError("--per_class needs real items (--data); --reference has only their moments.")
    every = dict.fromkeys((*OF_IMAGES, *OF_VECTORS, "cmmd"))
    for name in (wanted := measures.split(",") if measures else []):
        named(every, name, "the measure")
    if reference is not None and Path(reference).suffix != ".pkl":
        load_statistics(Path(reference), "")
    return _Criteria(
        None if features is None else find_features(features, torch.empty(0)),
        None if reference is None else Path(reference),
        None if save is None else Path(save),
        wanted or None,
        few,
        per_class,
    )


def _judged(
    run: Run | None,
    real: Data | None,
    mine: Drawn,
    copies: Copies | None,
    by: _Criteria,
) -> Report:
    """The report of samples, against real data or, where these are None, statistics of them."""
    facts = dict(mine.facts)
    items = as_items(mine.items, "samples")
    extractor = by.extractor(mine.items)
    found = featured(extractor, items)
    if real is None:
        assert by.reference is not None
        statistics = load_statistics(by.reference, str(facts_of(extractor)["extractor"]))
        return report(found, statistics, by.measures, few=by.few, protocol=facts,
                      copies=None if copies is None else copies.found)  # fmt: skip
    target = reference_features(real, extractor)
    facts |= {"reference": f"{real.spec.name} ({real.split})"}
    by.keep(target, real)
    result = report(found, target, by.measures, few=by.few, protocol=facts,
                    copies=None if copies is None else copies.found)  # fmt: skip
    if run is None and not result.notes:
        said = of_the_reference(items, as_items(stored_items(real), "items"))
        result = replace(result, notes=tuple(filter(None, [said])))
    theirs = real.condition_items(range(len(real))).get("class_labels")
    if mine.labels is not None and getattr(extractor, "classes", None) == real.spec.classes:
        agrees = agreement(found, mine.labels, target, theirs)
        result = replace(result, measures={**result.measures, agrees.name: agrees})
    if by.per_class:
        classes = by_class(found, target, mine.labels, theirs, real.spec.classes)
        result = replace(result, classes=classes)
    if run is not None and run.codec is not None:
        bound = reconstruction_distance(run.codec, real, extractor, len(items), target.features)
        result = replace(result, notes=(*result.notes, bound))
    return result


def _sweep(axis: str, values: str | None, given: dict[str, Any]) -> Report | None:
    """`evaluate_to_files` at each point of an axis: the curve, and a sentence on the best."""
    if given["workdir"] is None:
        raise RunError("--sweep needs --workdir: it is over the ways to sample a run.")
    workdir = Path(given["workdir"])
    folder = (
        Path(given["out"]) if given["out"] else RunDirectory(workdir).evaluation / f"sweep_{axis}"
    )
    found: list[tuple[str, Report]] = []
    for name, changed in points(workdir, axis, values):
        print(f"{axis} {name}")
        result = evaluate_to_files(**given | changed | {"out": folder / name})
        assert result is not None
        found.append((name, result))
    print(summary(axis, found))
    wanted = folder / "sweep.json"
    path = write_beside(wanted, json_text(as_plain(axis, found)))
    print(f"wrote {path}")
    draw_beside(path.with_suffix(".png"), lambda: curve(axis, found))
    return found[-1][1]


def _check_sources(workdir: Any, samples: Any, data: Any, reference: Any, save: Any) -> None:
    """Raises RunError for flags that contradict each other or say too little."""
    check_alone({"--workdir": workdir, "--samples": samples}, RunError)
    check_alone({"--data": data, "--reference": reference}, RunError)
    if workdir is None and data is None and reference is None:
        raise RunError(
            "--mode evaluate needs --workdir RUN, or --samples PATH with --data DATA or "
            "--reference STATISTICS.npz, or --data DATA with --save STATISTICS.npz."
        )
    if workdir is None and samples is None and save is None:
        raise RunError("give --samples to evaluate, or --save to keep the reference's statistics.")
    if save is not None:
        if Path(save).exists() and not holds_statistics(Path(save)):
            raise RunError(f"{save} is there and holds no statistics: give another file as --save.")
        check_place(Path(save).parent)


def _reference_data(run: Run | None, name: str | None, split: str) -> Data:
    if run is not None:
        return items_of(run, split, None, name)[0]
    return build.build_data({"data": {"name": name}}, split)


def _read_samples(name: str, limit: int | None, real: Data | None, resize: Resize | None) -> Drawn:
    said: dict[str, Any] = {"name": name}
    if resize is not None:
        if real is None or not real.spec.is_image:
            raise RunError("--resize is for pictures that are compared with pictures (--data).")
        said |= {"size": tuple(real.spec.shape[1:]), "resize": resize}
    data = build.build_data({"data": said})
    n = len(data) if limit is None else limit
    if n > len(data):
        raise DataError(f"{name} holds {len(data)} samples, num_samples asks for {n}.")
    labels = data.condition_items(range(n)).get("class_labels")
    facts = {"samples": name} | ({} if resize is None else {"resized": resize})
    return Drawn(stored_items(data, n), facts, labels)


def _write(folder: Path, result: Report, split: str, copies: Copies | None, items: Tensor) -> None:
    name = f"report_{str(result.protocol['extractor']).split()[0]}_{split}"
    path = write_beside(folder / f"{name}.json", json_text(result.to_dict()))
    write_beside(path.with_suffix(".txt"), f"{result}\n")
    if copies is not None and items.ndim == 4 and items.dtype == torch.uint8:
        write_beside(folder / "neighbours.png", png_bytes(neighbour_grid(items, copies)))
    print(f"wrote {path}")
