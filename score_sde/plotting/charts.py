"""Curves and grids: schedules, errors over evaluations, images side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Strict
from torch import Tensor

from score_sde.checks import Depth, Positive, checked, real_tensor
from score_sde.data import DataSpec
from score_sde.plotting.pictures import grid_array
from score_sde.plotting.style import (
    CYCLE,
    MARKERS,
    PlottingError,
    axes_or_new,
    legend,
    sampler_style,
    subplots,
)
from score_sde.sampling import SAMPLERS, SDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2  # pixels between images
Curve = Annotated[tuple[Any, Any], Strict(False)]
"""Numbers of evaluations, and the errors at each."""


@checked
def plot_schedule(processes: SDE | Mapping[str, SDE]) -> Figure:
    """alpha and sigma (left) and the log signal-to-noise ratio (right) over t / t_max.

    processes: one, or several by the names that they have in the legend.
    """
    named: Mapping[str, SDE] = (
        processes if isinstance(processes, Mapping) else {type(processes).__name__: processes}
    )
    if not named:
        raise PlottingError("give at least one process to plot_schedule.")
    figure, (left, right) = subplots(1, 2, 4.0, 3.2)
    largest = 0.0
    for i, (name, sde) in enumerate(named.items()):
        t = torch.linspace(sde.t_min, sde.t_max, 400, dtype=torch.float64)
        colour, unit = CYCLE[i % len(CYCLE)], t / sde.t_max
        left.plot(unit, sde.alpha(t), color=colour, label=rf"{name}: $\alpha$")
        left.plot(unit, sde.sigma(t), color=colour, linestyle="--", label=rf"{name}: $\sigma$")
        right.plot(unit, sde.log_snr(t), color=colour, label=name)
        largest = max(largest, float(sde.sigma(t).max()))
    if largest > 3:
        left.set_yscale("log")
    span = "t" if all(sde.t_max == 1 for sde in named.values()) else r"$t / t_{\max}$"
    left.set(xlabel=span, ylabel=r"$\alpha$ (solid), $\sigma$ (dashed)")
    right.set(xlabel=span, ylabel=r"$\log(\alpha^2 / \sigma^2)$")
    for ax in (left, right):
        ax.grid(True)
    legend(right)
    return figure


@checked
def plot_convergence(
    curves: Mapping[str, Curve],
    *,
    order: Positive | None = None,
    ylabel: str = "error",
    ax: Axes | None = None,
) -> Axes:
    """Errors over evaluations of the score, both on log scales, one curve a sampler.

    curves: {sampler: (evaluations, errors)}, as `VerifyReport.curve` gives them. A sampler has its
        own colour and marker; dashed ones draw noise. Names that start with a sampler's name,
        like "heun, karras", have its style.
    order: draw a guide of this slope.
    """
    if not curves:
        raise PlottingError("give at least one curve to plot_convergence.")
    ax = axes_or_new(ax, 4.6, 3.6)
    first: tuple[float, float] | None = None
    furthest = 0.0
    for i, (name, (evaluations, errors)) in enumerate(curves.items()):
        n, e = (
            real_tensor(values, f"the numbers of {name}").double().numpy()
            for values in (evaluations, errors)
        )
        if n.shape != e.shape or n.ndim != 1:
            raise PlottingError(
                f"{name} has {n.size} numbers of evaluations and {e.size} errors; they must match."
            )
        kept = np.isfinite(e) & (e > 0)
        ax.plot(n[kept], e[kept], label=name, markersize=4, linewidth=1.3, **_style_of(name, i))
        furthest = max(furthest, n.max())
        if kept.any():
            start = (float(n[kept][0]), float(e[kept][0]))
            first = start if first is None or start[1] > first[1] else first
    if order is not None and first is not None:
        ends = np.array([first[0], furthest])
        guide = 1.5 * first[1] * (ends / first[0]) ** -order
        colour = ax.xaxis.label.get_color()
        ax.plot(ends, guide, color=colour, linewidth=0.9, linestyle=":", label=f"slope -{order:g}")
    ax.set(xscale="log", yscale="log", xlabel="evaluations of the score", ylabel=ylabel)
    ax.grid(True)
    legend(ax)
    return ax


def _style_of(name: str, place: int) -> dict[str, Any]:
    """The style of the sampler whose name the label starts with; else one by its place."""
    head = name.replace(",", " ").split()[0] if name.strip() else ""
    if head in SAMPLERS:
        return sampler_style(head)
    return {"color": CYCLE[place % len(CYCLE)], "marker": MARKERS[place % len(MARKERS)]}


@checked
def image_grid(
    images: Tensor,
    spec: DataSpec | None = None,
    *,
    columns: Depth | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Images (B, C, H, W) side by side, row by row.

    spec: the `DataSpec` of the run, which knows the model's range; without one, uint8 images are
        pixels and others have the range [-1, 1].
    columns: as square as can be unless given. row_labels: written at the left of the rows.
    column_labels: above the columns, or, if they are fewer, above as many equal parts of them.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or len(images) == 0:
        raise PlottingError(
            f"image_grid draws images (B, C, H, W) of 1, 3 or 4 channels; got "
            f"{tuple(images.shape)}. Points in the plane are drawn by plot_points."
        )
    if images.dtype == torch.uint8:
        pixels = images
    elif spec is not None:
        pixels = spec.to_uint8(images)
    else:
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = grid_array(pixels, columns, GAP)
    height, width = array.shape[:2]
    if ax is None:
        inches = min(max(width / 45, 2.5), 8.0)
        ax = axes_or_new(None, inches, inches * height / width)
    ax.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    down, across = images.shape[2] + GAP, images.shape[3] + GAP
    rows, columns = -(-height // down), -(-width // across)
    if len(row_labels) > rows:
        raise PlottingError(f"{len(row_labels)} row labels for {rows} rows.")
    if column_labels and columns % len(column_labels):
        raise PlottingError(f"{len(column_labels)} column labels for {columns} columns.")
    part = columns // len(column_labels) * across if column_labels else 0
    ax.set_yticks([i * down + images.shape[2] / 2 for i in range(len(row_labels))], row_labels)
    ax.set_xticks([(i + 0.5) * part - GAP / 2 for i in range(len(column_labels))], column_labels)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title)
    return ax
