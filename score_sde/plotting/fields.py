"""Pictures of functions of the plane: score fields, densities, errors, and points on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import Positive, checked
from score_sde.plotting.style import (
    CARD,
    INK,
    Colour,
    PlottingError,
    axes_or_new,
    density_map,
    limits,
    square,
)
from score_sde.sampling import ScoreFn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Extent = float | Sequence[float]
LogDensity = Callable[[Tensor, Tensor], Tensor]
Side = Annotated[int, Field(ge=2, le=4096)]
"""Points along a side of a picture."""
"""log_density(x, t): log p_t at x (B, ...), (B,)."""


def lattice(extent: Extent, n: int) -> Tensor:
    """(n * n, 2) float32 points, row by row from the bottom left."""
    left, right, bottom, top = limits(extent)
    x = torch.linspace(left, right, n)
    y = torch.linspace(bottom, top, n)
    return torch.stack([x.repeat(n), y.repeat_interleave(n)], 1)


@torch.no_grad()
def evaluate(score: ScoreFn, x: Tensor, t: float | Tensor) -> Tensor:
    """score(x, t) as float64 on the CPU; PlottingError unless it is a field on states like x."""
    parameter = next(score.parameters(), None) if isinstance(score, torch.nn.Module) else None
    device = x.device if parameter is None else parameter.device
    time = torch.as_tensor(t, dtype=torch.float64)
    advice = (
        f"this figure needs a score of states (B, {x.shape[1]})"
        + {1: " on a line", 2: " in the plane"}.get(x.shape[1], "")
        + ". For states (B, 1) there is plot_marginals, for images image_grid; for others pass a "
        "function that puts the plane into your space and takes two coordinates of the score."
    )
    try:
        value = score(x.to(device), time)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PlottingError(
            f"The score does not take states (B, 2) ({reason}): {advice}"
        ) from error
    if value.shape != x.shape:
        raise PlottingError(
            f"The score gave {tuple(value.shape)} for states {tuple(x.shape)}: {advice}"
        )
    return value.detach().double().cpu()


def own_density(score: ScoreFn) -> LogDensity | None:
    """The log-density that an exact score brings along, if it does."""
    return getattr(score, "log_prob", None)


@torch.no_grad()
def density_on(density: LogDensity, x: Tensor, t: float | Tensor) -> np.ndarray:
    """sqrt(p / max p) at x, (B,): the root lets the tails show."""
    log_p = density(x.double(), torch.as_tensor(t, dtype=torch.float64)).double().cpu().numpy()
    return np.exp(0.5 * (log_p - log_p.max()))


def draw_density(ax: Axes, density: LogDensity | None, t: float | Tensor, extent: Extent) -> None:
    """The card, and on it the density in shades of blue where one is known."""
    ax.set_facecolor(CARD)
    if density is not None:
        shade = density_on(density, lattice(extent, 128), t).reshape(128, 128)
        ax.imshow(
            shade,
            extent=limits(extent),
            origin="lower",
            cmap=density_map(),
            vmin=0,
            vmax=1,
            interpolation="bilinear",
            zorder=0,
        )
    square(ax, limits(extent))


@checked
def plot_score_field(
    score: ScoreFn,
    t: float | Tensor,
    *,
    kind: Literal["quiver", "stream"] = "quiver",
    density: LogDensity | None = None,
    extent: Extent = 3.0,
    arrows: Side = 19,
    scale: Positive | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The field score(x, t) at one time over the plane, on the density if one is known.

    score: any callable (x, t) on states (B, 2) -> like x; for denoising arrows, for instance,
        `lambda x, t: sde.denoise(x, t, score) - x` with ``scale=1``.
    kind: "quiver" for arrows whose length is the score's, "stream" for stream lines.
    density: log p_t as a callable (x, t), drawn in shades of sqrt(p_t); an exact score brings it.
    extent: half-width of the picture, or (left, right, bottom, top).
    arrows: along each side.
    scale: length of an arrow, in units of x, per unit of score; so that nine in ten are
        shorter than 1.2 cells unless given.

    Raises PlottingError for a score of other states and for an unknown kind.
    """
    bounds = limits(extent)
    x = lattice(bounds, arrows)
    value = evaluate(score, x, t)
    ax = axes_or_new(ax)
    draw_density(ax, density or own_density(score), t, bounds)
    xs, ys = x.double().numpy().T
    u, v = value.numpy().T
    if kind == "quiver":
        per_unit = arrow_scale(value, bounds, arrows) if scale is None else scale
        ax.quiver(
            xs, ys, u, v, angles="xy", scale_units="xy", scale=1 / per_unit,
            color=INK, width=0.004, headwidth=4, pivot="tail" if scale else "mid", zorder=3,
        )  # fmt: skip
    else:
        grid = (arrows, arrows)
        ax.streamplot(
            xs.reshape(grid), ys.reshape(grid), u.reshape(grid), v.reshape(grid),
            color=INK, linewidth=0.8, arrowsize=0.8, density=1.1, zorder=3,
        )  # fmt: skip
        square(ax, bounds)
    ax.set_title(f"t = {float(t):.3g}")
    return ax


def arrow_scale(value: Tensor, bounds: Sequence[float], arrows: int) -> float:
    """Units of x per unit of score at which nine in ten arrows are shorter than 1.2 cells."""
    lengths = value.norm(dim=1)
    if not bool(torch.isfinite(lengths).all()):
        raise PlottingError("The score is not finite on the whole picture: check the model and t.")
    cell, long = (bounds[1] - bounds[0]) / (arrows - 1), float(lengths.quantile(0.9))
    return 1.2 * cell / long if long > 0 else 1.0


@checked
def plot_points(
    x: Tensor, *, extent: Extent | None = None, colour: Colour = INK, ax: Axes | None = None
) -> Axes:
    """Points (N, 2) on the card (or on what ``ax`` shows already), at equal aspect."""
    if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
        raise PlottingError(f"points in the plane have shape (N, 2); got {tuple(x.shape)}.")
    ax = axes_or_new(ax)
    if not ax.images:
        ax.set_facecolor(CARD)
    points = x.detach().double().cpu().numpy()
    size = float(np.clip(3000 / max(len(points), 1), 1.0, 12.0))
    ax.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.6, linewidths=0, zorder=4)
    if extent is None:
        extent = 1.05 * float(np.abs(points).max())
    square(ax, limits(extent))
    return ax


@checked
def plot_map(
    values: Callable[[Tensor], Tensor],
    *,
    extent: Extent = 3.0,
    label: str = "",
    n: Side = 96,
    vmin: float | None = None,
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A scalar function of the plane, points (B, 2) -> (B,), as a map with its colour bar."""
    x = lattice(extent, n)
    with torch.no_grad():
        z = values(x)
    if z.shape != x.shape[:1]:
        raise PlottingError(f"a map needs one value a point, ({len(x)},); got {tuple(z.shape)}.")
    ax = axes_or_new(ax)
    image = ax.imshow(
        z.double().cpu().numpy().reshape(n, n),
        extent=limits(extent),
        origin="lower",
        cmap="cividis",
        vmin=vmin,
        vmax=vmax,
    )
    square(ax, limits(extent))
    figure: Any = ax.figure
    colour = ax.xaxis.label.get_color()
    bar = figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label(label, color=colour, fontsize=9)
    bar.ax.tick_params(colors=colour, labelsize=8)
    bar.outline.set_edgecolor(colour)
    return ax


def figure_of(ax: Axes) -> Figure:
    """The Figure that an Axes is in."""
    figure: Any = ax.figure
    return figure
