"""Figures that move: films written to a file, and a slider for t over a score field."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from score_sde.checks import checked, real_tensor
from score_sde.plotting.fields import (
    Extent,
    LogDensity,
    Side,
    arrow_scale,
    density_on,
    evaluate,
    figure_of,
    lattice,
    own_density,
    plot_score_field,
)
from score_sde.plotting.style import Inches, PlottingError, import_pyplot, limits, subplots
from score_sde.sampling import ScoreFn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FRAMES = 10_000
FramesASecond = Annotated[int, Field(ge=1, le=100)]
Dots = Annotated[int, Field(ge=10, le=1000)]


@checked
def animate(
    draw: Callable[..., Any],
    frames: Iterable[Any],
    path: str | Path,
    *,
    fps: FramesASecond = 10,
    width: Inches = 3.6,
    height: Inches | None = None,
    dpi: Dots = 90,
) -> Path:
    """Write a film: `draw(ax, frame)` on empty Axes for each of ``frames``; returns its path.

    path: .gif (written with Pillow) or .mp4 (with the program ffmpeg).
    fps: frames a second. width, height: inches; dpi: pixels an inch.

        animate(lambda ax, t: plot_score_field(score, t, ax=ax), [1.0, 0.5, 0.1], "field.gif")
    """
    path, frames = Path(path), list(itertools.islice(frames, MOST_FRAMES + 1))
    if not 1 <= len(frames) <= MOST_FRAMES:
        found = f"more than {MOST_FRAMES}" if frames else "none"
        raise PlottingError(f"a film has 1 to {MOST_FRAMES} frames (got {found}).")
    plt = import_pyplot()
    from matplotlib.animation import FFMpegWriter, PillowWriter

    if path.suffix == ".gif":
        writer: Any = PillowWriter(fps=fps)
    elif path.suffix == ".mp4":
        if not FFMpegWriter.isAvailable():
            raise PlottingError(
                f"{path} needs the program ffmpeg, which is not there: install it "
                "(apt-get install ffmpeg), or write a .gif."
            )
        even = "scale=trunc(iw/2)*2:trunc(ih/2)*2"  # H.264 wants even numbers of pixels
        writer = FFMpegWriter(fps=fps, codec="libx264", extra_args=["-vf", even])
    else:
        raise PlottingError(f"a film is a .gif or an .mp4; got {path.name!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, ax = subplots(width=width, height=height)
    figure.set_facecolor("white")  # neither format fades into the page
    try:
        draw(ax, frames[0])  # what is wrong with it is said before anything is written
        with writer.saving(figure, str(path), dpi):
            for frame in frames:
                ax.clear()
                draw(ax, frame)
                writer.grab_frame(facecolor="white")
    finally:
        plt.close(figure)
    return path


@checked
def explore_score_field(
    score: ScoreFn,
    times: Sequence[float] | Tensor,
    *,
    density: LogDensity | None = None,
    extent: Extent = 3.0,
    arrows: Side = 17,
) -> Any:
    """A slider over ``times`` above the score field, for notebooks.

    Needs ipywidgets (the extra `notebooks`); without it, a Figure of the field at up to four of
    the times. ``.update(i)`` of the result draws the i-th time, as the slider does.
    """
    times = real_tensor(times, "times").reshape(-1).tolist()
    if not times:
        raise PlottingError("explore_score_field needs at least one time.")
    try:
        import ipywidgets
    except ImportError:
        return _still(score, times, density, extent, arrows)
    view = FieldView(score, times, density=density, extent=extent, arrows=arrows)
    image = ipywidgets.Image(value=view.png(0), format="png")
    labels = [(f"{t:.3g}", i) for i, t in enumerate(times)]
    slider = ipywidgets.SelectionSlider(options=labels, value=0, description="t")

    def update(i: int) -> None:
        image.value = view.png(i)

    slider.observe(lambda change: update(change["new"]), names="value")
    box = ipywidgets.VBox([slider, image])
    box.update = update
    return box


def _still(
    score: ScoreFn,
    times: Sequence[float],
    density: LogDensity | None,
    extent: Extent,
    arrows: int,
) -> Figure:
    count = min(4, len(times))
    chosen = [times[round(i)] for i in np.linspace(0, len(times) - 1, count)]
    figure, panels = subplots(1, count, 2.6)
    for ax, t in zip(np.atleast_1d(panels), chosen, strict=True):
        plot_score_field(score, t, density=density, extent=extent, arrows=arrows, ax=ax)
        ax.label_outer()
    return figure


class FieldView:
    """A score field that is drawn once and then changed: `png(i)` is the picture at times[i]."""

    def __init__(
        self,
        score: ScoreFn,
        times: Sequence[float],
        *,
        density: LogDensity | None = None,
        extent: Extent = 3.0,
        arrows: int = 17,
    ):
        plt = import_pyplot()
        self.score, self.times = score, list(times)
        self.density = density or own_density(score)
        self.bounds, self.arrows = limits(extent), arrows
        self.points, self.pixels = lattice(extent, arrows), lattice(extent, 128)
        self.ax = plot_score_field(
            score, self.times[0], density=density, extent=extent, arrows=arrows
        )
        self.figure = figure_of(self.ax)
        self.figure.canvas.draw()
        self.figure.set_layout_engine("none")  # frames keep their place
        plt.close(self.figure)  # shown by us alone

    def png(self, i: int) -> bytes:
        """The field at times[i] as a PNG file."""
        t = self.times[i]
        value = evaluate(self.score, self.points, t)
        arrows: Any = self.ax.collections[0]
        arrows.scale = 1 / arrow_scale(value, self.bounds, self.arrows)
        arrows.set_UVC(*value.numpy().T)
        if self.density is not None:
            shade = density_on(self.density, self.pixels, t)
            self.ax.images[0].set_data(shade.reshape(128, 128))
        self.ax.set_title(f"t = {t:.3g}")
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=90)
        return file.getvalue()
