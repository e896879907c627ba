"""Paths of samplers: recorded, drawn in the plane, and drawn over time (2011.13456, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import Count, Size, checked
from score_sde.plotting.fields import Extent, LogDensity, density_on, draw_density, own_density
from score_sde.plotting.style import (
    CARD,
    INK,
    Colour,
    PlottingError,
    axes_or_new,
    density_map,
    legend,
    limits,
    sampler_style,
)
from score_sde.sampling import SDE, Predictor, ScoreFn, record_trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked
def plot_trajectories(
    sde: SDE,
    score: ScoreFn,
    shape: tuple[int, ...] = (24, 2),
    *,
    x_T: Tensor | None = None,
    method: str | Predictor[Any] = "heun",
    density: LogDensity | None = None,
    extent: Extent | None = None,
    colour: Colour | None = None,
    ax: Axes | None = None,
    **settings: Any,
) -> Axes:
    """The paths of one sampler in the plane, from noise (rings) to samples (dots).

    x_T, or shape (B, 2), and settings are those of `sample`. density: log p_t as a callable
    (x, t), drawn at t_min; an exact score brings it. The colour is the sampler's own.
    """
    given = shape if x_T is None else tuple(x_T.shape)
    if len(given) != 2 or given[1] != 2:
        raise PlottingError(f"trajectories in the plane need states (B, 2); got {given}.")
    times, states = record_trajectory(
        sde, score, None if x_T is not None else shape, x_T=x_T, method=method, **settings
    )
    path = states.double().numpy()
    if extent is None:
        extent = 1.08 * float(np.abs(path).max())
    ax = axes_or_new(ax)
    draw_density(ax, density or own_density(score), float(times[-1]), extent)
    style = sampler_style(method if isinstance(method, str) else type(method).__name__)
    colour = colour or style["color"]
    ax.plot(path[..., 0], path[..., 1], color=colour, linewidth=0.9, alpha=0.85, zorder=3)
    ax.scatter(
        path[0, :, 0],
        path[0, :, 1],
        s=14,
        facecolors="none",
        edgecolors=colour,
        linewidths=0.8,
        zorder=4,
    )
    ax.scatter(path[-1, :, 0], path[-1, :, 1], s=12, color=INK, linewidths=0, zorder=5)
    ax.set_title(f"{method if isinstance(method, str) else type(method).__name__}, "
                 f"{len(times) - 1} steps")  # fmt: skip
    return ax


@checked
def plot_marginals(
    sde: SDE,
    score: ScoreFn,
    *,
    paths: Count = 6,
    stochastic: str | None = "euler_maruyama",
    deterministic: str | None = "heun",
    steps: Size = 400,
    density: LogDensity | None = None,
    extent: float | Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """x over t for 1-D states: p_t in shades, paths of the reverse SDE, and of the flow over them.

    Both kinds of paths start from the same noise at t_max (2011.13456, figure 2). Data are at the
    left, where t = 0.

    score: a callable (x, t) on states (B, 1). paths: how many of each kind.
    stochastic, deterministic: names of samplers, None to leave one out. density: log p_t as a
    callable (x, t); an exact score brings it. Each t is shaded relative to its own maximum.
    extent: half-height of the picture, or (bottom, top).
    """
    try:
        score(torch.zeros(2, 1), torch.tensor(sde.t_max))
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise PlottingError(
            f"plot_marginals draws states (B, 1); this score does not take them ({error}). "
            "For states (B, 2) there are plot_score_field and plot_trajectories."
        ) from error
    drawn = {}
    for name in (stochastic, deterministic):
        if name is not None:
            drawn[name] = record_trajectory(sde, score, (paths, 1), method=name, steps=steps)
    if extent is None:
        highest = max([float(s.abs().max()) for _, s in drawn.values()], default=0.0)
        extent = max(highest, 2.5 * sde.prior_std()) * 1.05
    bottom, top = (-extent, extent) if isinstance(extent, int | float) else extent
    ax = axes_or_new(ax, 5.5, 3.2)
    ax.set_facecolor(CARD)
    density = density or own_density(score)
    if density is not None:
        x = torch.linspace(bottom, top, 200)[:, None]
        times = torch.linspace(sde.t_min, sde.t_max, 160, dtype=torch.float64)
        shades = np.stack([density_on(density, x, t) for t in times], 1)
        ax.pcolormesh(
            times.numpy(), x[:, 0].numpy(), shades, cmap=density_map(), vmin=0, vmax=1,
            shading="gouraud", zorder=0, rasterized=True,
        )  # fmt: skip
    for name, (times, states) in drawn.items():
        style, noisy = sampler_style(name), name == stochastic
        lines = ax.plot(
            times, states[..., 0].double(), color=style["color"],
            linewidth=0.7 if noisy else 1.8, alpha=0.8 if noisy else 1.0, zorder=3 + (not noisy),
        )  # fmt: skip
        if lines:
            lines[0].set_label(f"{name} ({'SDE' if noisy else 'ODE'})")
    ax.set(xlim=(0, sde.t_max), ylim=limits((0, 1, bottom, top))[2:], xlabel="t", ylabel="x")
    if drawn:
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=2)
    return ax
