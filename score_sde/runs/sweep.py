"""One number of a run along an axis, `--mode evaluate --sweep AXIS`, and which point is the best.

    nfe           evaluations of the network a sample
    guidance      its scale
    weights       averages of other lengths, and the weights as trained
    checkpoints   steps that the run has kept

The best of many points is also the luckiest: those that are within two standard errors of the
difference are named with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_sde.checks import number
from score_sde.evaluation.measures import Measure
from score_sde.evaluation.report import Report
from score_sde.plotting import plot_sweep
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.training.checkpoints import averages_of, steps_of
from score_sde.training.posthoc import kept_averages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = ("nfe", "guidance", "weights", "checkpoints")
USUAL = {"nfe": "10,20,40,80", "guidance": "1,1.5,2,3,5"}


def points(workdir: Path, axis: str, values: str | None) -> list[tuple[str, dict[str, Any]]]:
    """The name of each point, and the arguments of `evaluate_to_files` that belong to it."""
    run = RunDirectory(workdir)
    steps = steps_of(run.checkpoints)
    kept = averages_of(run.checkpoints, steps[-1]) if steps else []
    kept += kept_averages(run.averages)
    there: dict[str, list[Any]] = {"weights": kept, "checkpoints": list(steps)}
    listed = values or USUAL.get(axis) or ",".join(map(str, there[axis]))
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if len(names) < 2:
        raise RunError(
            f"a sweep over {axis} needs at least two points (got {listed or 'none'}): give "
            "--values, or keep more of them in training (training.keep, training.ema_halflives)."
        )
    kinds: dict[str, tuple[str, Any]] = {
        "nfe": ("nfe", int), "guidance": ("guidance", float), "weights": ("weights", str),
        "checkpoints": ("step", int),
    }  # fmt: skip
    argument, kind = kinds[axis]
    try:
        found = [name if kind is str else number(name, kind) for name in names]
    except ValueError as error:
        raise RunError(f"--values {listed} are not all numbers, as {axis} are.") from error
    return [(name, {argument: value}) for name, value in zip(names, found, strict=True)]


def first_of(report: Report) -> Measure:
    """The number that a sweep compares: the first that was asked for."""
    return next(iter(report.measures.values()))


def summary(axis: str, found: Sequence[tuple[str, Report]]) -> str:
    """The curve as a table, and a sentence on the best point and on what is as good."""
    measures = {name: first_of(report) for name, report in found}
    label = next(iter(measures.values())).label
    rows = [f"{axis:>14s}  {label}"]
    rows += [f"{name:>14s}  {m.value:.5g} +- {m.stderr:.2g}" for name, m in measures.items()]
    best = best_of(measures)
    equal = [name for name in measures if name != best and _alike(measures[name], measures[best])]
    m = measures[best]
    said = f"best: {axis} {best}, {label} {m.value:.4g} +- {m.stderr:.2g}"
    if equal:
        said += f"; not distinguishable from {', '.join(equal)} by {m.protocol['n']} samples"
    else:
        said += "; better than all others by more than two standard errors"
    return "\n".join([*rows, said + "."])


def best_of(measures: Mapping[str, Measure]) -> str:
    """The name of the best point."""
    return min(measures, key=lambda name: _badness(measures[name]))


def curve(axis: str, found: Sequence[tuple[str, Report]]) -> Axes:
    """The number over the points, with its errors and that of real items."""
    measures = {name: first_of(report) for name, report in found}
    names, all_of = list(measures), list(measures.values())
    return plot_sweep(
        names, [m.value for m in all_of], [m.stderr for m in all_of], real=all_of[0].real,
        xlabel=axis, ylabel=all_of[0].label, best=names.index(best_of(measures)),
    )  # fmt: skip


def as_plain(axis: str, found: Sequence[tuple[str, Report]]) -> Mapping[str, Any]:
    """For JSON."""
    return {
        "axis": axis,
        "summary": summary(axis, found),
        "points": [{"at": name, **report.to_dict()} for name, report in found],
    }


def _badness(measure: Measure) -> float:
    """Smaller is better: shares are best when large, an accuracy that tells apart at 1/2."""
    if measure.name in ("precision", "recall", "density", "coverage", "inception_score"):
        return -measure.value
    return abs(measure.value - 0.5) if measure.name == "c2st" else measure.value


def _alike(a: Measure, b: Measure) -> bool:
    apart = abs(_badness(a) - _badness(b))
    return apart <= 2 * math.hypot(a.stderr, b.stderr)
