"""What `evaluate` and `diagnose` measured, as curves: over a sweep, and over the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from score_sde.checks import check_count, check_names, checked
from score_sde.plotting.style import CYCLE, MARKERS, PlottingError, axes_or_new, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEEP = 3.0  # largest ratio of errors that is drawn on a plain scale


@checked
def plot_sweep(
    points: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float],
    *,
    real: float | None = None,
    xlabel: str = "",
    ylabel: str = "",
    best: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A number with its standard errors at each point of a sweep.

    points: names, which are places on the axis where all are numbers. real: the same number of real
    items, a dotted line. best: the place in ``points`` of the one that is named so.
    """
    for what, given in (("values", values), ("errors", errors)):
        check_count(len(given), max(1, len(points)), what, PlottingError, "points")
    ax = axes_or_new(ax, 4.6, 3.4)
    try:
        places = np.array([float(name) for name in points])
    except ValueError:
        places = np.arange(len(points), dtype=float)
        ax.set_xticks(places, points)
    order = np.argsort(places)
    y, bars = (np.asarray(v, dtype=float)[order] for v in (values, errors))
    ax.errorbar(places[order], y, bars, color=CYCLE[0], marker="o", markersize=4, capsize=3)
    if best is not None:
        ax.plot(places[best], values[best], "o", markersize=10, markerfacecolor="none",
                color=CYCLE[1], label="best")  # fmt: skip
    if real is not None:
        ax.axhline(real, color=CYCLE[2], linestyle=":", label="real items")
    if best is not None or real is not None:
        legend(ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(True)
    return ax


@checked
def plot_errors_over_noise(
    noise: Sequence[float],
    errors: Mapping[str, Sequence[float | None]],
    *,
    relative_to: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Errors of several denoisers over the noise level sigma/alpha.

    errors: one for each level, None where there is none, by the names in the legend. relative_to:
    one of them, by which the others are divided; ratios above 3 make the scale a logarithm.
    """
    if relative_to is not None:
        check_names([relative_to], errors, "relative_to", PlottingError)
    curves = {name: np.array(values, dtype=float) for name, values in errors.items()}
    for name, values in curves.items():
        check_count(values.size, len(noise), f"errors of {name}", PlottingError, "noise levels")
    unit = np.ones(len(noise)) if relative_to is None else curves.pop(relative_to)
    ax = axes_or_new(ax, 5.2, 3.6)
    largest = 0.0
    for i, (name, values) in enumerate(curves.items()):
        ratio = values / np.maximum(unit, 1e-300)
        there = np.isfinite(ratio)
        ax.plot(np.asarray(noise)[there], ratio[there], label=name, markersize=4, linewidth=1.3,
                color=CYCLE[i % len(CYCLE)], marker=MARKERS[i % len(MARKERS)])  # fmt: skip
        largest = max(largest, float(ratio[there].max(initial=0.0)))
    ax.set_xscale("log")
    if largest > STEEP:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    said = "error" if relative_to is None else f"error over that of {relative_to}"
    ax.set(xlabel=r"noise level $\sigma/\alpha$", ylabel=said)
    ax.grid(True)
    legend(ax)
    return ax
