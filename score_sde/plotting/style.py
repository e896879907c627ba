"""The look of all figures: tones, colour maps, and one fixed style a sampler.

Every colour of a line or a letter has a luminance between 0.14 and 0.30: a contrast of at least
3 : 1 to white pages and to the dark ones of documentation sites. Fields are drawn on a light card
whose shades get darker with the value, so that they read in grey and dark ink stands out on all
of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from score_sde.checks import UserError, checked, library
from score_sde.sampling import SAMPLERS
from score_sde.sampling.catalogue import TABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

TEXT = "#7d7d7d"  # letters, ticks, frames: on the page
INK = "#20242b"  # arrows and points: on the card
CARD = "#f7f9fc"  # where a density is 0
SHADES = (CARD, "#dbe6f2", "#b7cee6", "#8db1d6")
CYCLE = ("#0395ec", "#fe5322", "#13a461", "#b86afd", "#a78e10", "#d7058c", "#087e83", "#946900")
MARKERS = "os^Dv<>pPX*hd"

SAMPLER_COLOURS = {name: row.colour for name, row in TABLE.items()}

_RC = {
    "axes.facecolor": "none",
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": TEXT,
    "grid.color": TEXT,
    "grid.alpha": 0.25,
}


def _known(colour: str) -> str:
    from matplotlib.colors import is_color_like

    if not is_color_like(colour):
        raise ValueError("a colour of matplotlib, as 'teal' or '#749c09'")
    return colour


Colour = Annotated[str, AfterValidator(_known)]
Inches = Annotated[float, Field(gt=0, le=100)]
Panels = Annotated[int, Field(ge=1, le=64)]
"""Along a side of a figure."""


class PlottingError(UserError):
    """A figure that cannot be drawn; the message says what to change."""


def import_pyplot() -> ModuleType:
    """matplotlib.pyplot; PlottingError if it, or the display that was asked for, is not there."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        if "backend" in str(error) or "display" in str(error):
            raise PlottingError(_no_display(error)) from error
        return library("matplotlib.pyplot", "plot", "figures need", PlottingError)
    return plt


def _no_display(error: Exception) -> str:
    return (
        f"matplotlib cannot open a window here ({error}). Set the environment variable "
        "MPLBACKEND=Agg and save figures with figure.savefig('name.png')."
    )


@checked
def subplots(
    rows: Panels = 1,
    columns: Panels = 1,
    width: Inches = 3.2,
    height: Inches | None = None,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, Any]:
    """A figure in the look of this module: (Figure, Axes), or an array of Axes if there are more.

    width and height, in inches, are those of one panel; height is the width unless given.
    """
    plt = import_pyplot()
    size = (columns * width, rows * (height or width))
    try:
        figure = plt.figure(figsize=size, layout="constrained", facecolor="none")
    except ImportError as error:  # the backend is loaded with the first figure
        raise PlottingError(_no_display(error)) from error
    # Not around the figure: a notebook's backend sets rcParams as it is loaded, which must stay.
    with plt.rc_context(_RC):
        return figure, figure.subplots(rows, columns, sharex=sharex, sharey=sharey)


def axes_or_new(ax: Axes | None, width: float = 4.0, height: float | None = None) -> Axes:
    """``ax``, or the Axes of a new figure."""
    if ax is None:
        return subplots(width=width, height=height)[1]
    if not hasattr(ax, "plot"):
        raise PlottingError(f"ax must be Axes of matplotlib, as `subplots` gives (got {ax!r}).")
    return ax


def density_map() -> Colormap:
    """From the card to a mid blue: monotone in luminance, and light enough for dark ink."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("card_to_blue", SHADES)


def shaded(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as pixels (..., 3) uint8 in the colours of `density_map`.

    By itself, since matplotlib takes a quarter of a second to import.
    """
    places = np.linspace(0, 1, len(SHADES))
    red_green_blue = zip(*(bytes.fromhex(shade[1:]) for shade in SHADES), strict=True)
    pixels = [np.interp(values, places, levels) for levels in red_green_blue]
    return np.stack(pixels, -1).round().astype(np.uint8)


@checked
def sampler_style(name: str) -> dict[str, Any]:
    """color, linestyle and marker of a sampler, by name; dashed when it draws noise.

    Samplers of your own get a colour from their name.
    """
    known = SAMPLERS.get(name)
    number = list(SAMPLERS).index(name) if known else zlib.crc32(name.encode())
    colour = SAMPLER_COLOURS.get(name) or CYCLE[number % len(CYCLE)]
    return {
        "color": colour,
        "linestyle": "--" if known is not None and known.stochastic else "-",
        "marker": MARKERS[number % len(MARKERS)],
    }


def legend(ax: Axes, **where: Any) -> None:
    """A legend without a box, in the colour of the tick labels of its Axes."""
    colour = ax.xaxis.label.get_color()
    ax.legend(frameon=False, fontsize=8, labelcolor=colour, **where)


def square(ax: Axes, extent: Sequence[float]) -> None:
    """Limits (left, right, bottom, top) at equal aspect, labelled as the plane of the states."""
    ax.set(xlim=extent[:2], ylim=extent[2:], xlabel="$x_1$", ylabel="$x_2$")
    ax.set_aspect("equal")


def limits(extent: float | Sequence[float]) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) from one half-width or from all four."""
    values = [-extent, extent] * 2 if isinstance(extent, int | float) else list(extent)
    wide = not all(abs(value) < 1e30 for value in values)
    if len(values) != 4 or wide or not (values[0] < values[1] and values[2] < values[3]):
        raise PlottingError(
            f"extent is a positive half-width or (left, right, bottom, top); got {extent}."
        )
    return values[0], values[1], values[2], values[3]
