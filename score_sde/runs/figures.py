"""Figures beside reports, where matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_sde import plotting
from score_sde.runs.outputs import write_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_beside(path: Path, draw: Callable[[], Axes]) -> None:
    """Draw into a .png of this name, or of one beside it, as `write_beside`; or say why not."""
    try:
        figure: Any = draw().figure
    except plotting.PlottingError as error:
        print(f"no figure: {error}")
        return
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")  # type: ignore[union-attr]
    figure.clear()
    print(f"wrote {write_beside(path, content.getvalue())}")
