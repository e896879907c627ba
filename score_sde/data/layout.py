"""Which axis of an array is what: pictures, signals and volumes with channels first or last.

A layout names the axes of one item: D (a vector); CL, LC, L (signals); HW, CHW, HWC (pictures);
DHW, CDHW, DHWC (volumes). Items are brought to channels first; what has no axis of channels gets
one. ``vector`` makes one long vector of any item; ``signal`` and ``volume`` say of what kind it is,
and the axis of channels, if there is one, is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from score_sde.data.spec import DataError

Layout = Literal[
    "auto", "vector", "signal", "volume",
    "D", "L", "CL", "LC", "HW", "CHW", "HWC", "DHW", "CDHW", "DHWC",
]  # fmt: skip
USUAL_CHANNELS = (1, 3, 4)
MOST_CHANNELS = 16
Shape = Sequence[int]
KINDS = {"signal": "(L,), (C, L) or (L, C)", "volume": "(D, H, W), (C, D, H, W) or (D, H, W, C)"}


def layout_of(shape: Shape, layout: str = "auto") -> tuple[str, bool]:
    """The likeliest layout of items of this shape, and whether there is no doubt about it.

    Of two readings of a picture the one with 1, 3 or 4 channels is taken, else the one that is
    nearer to a square; an axis is that of channels if it has at most 16 and is the shortest.
    layout: that of the user's, which is taken, but for auto, signal and volume.
    """
    if layout == "signal" and len(shape) <= 2:
        return ("L" if len(shape) == 1 else "CL" if shape[0] <= shape[1] else "LC"), True
    if layout == "volume" and len(shape) == 3:
        return "DHW", True
    if layout != "auto" and not (layout == "volume" and len(shape) == 4):
        return layout, True
    if len(shape) == 1:
        return "D", True
    if len(shape) == 2:
        return _layout_of_two(*shape)
    if len(shape) == 3:
        return _layout_of_three(shape)
    if len(shape) == 4:
        return ("CDHW" if shape[0] <= shape[-1] else "DHWC"), shape[0] != shape[-1]
    raise DataError(
        f"items of shape {tuple(shape)} have {len(shape)} axes; vectors (D,), signals (C, L), "
        "pictures (H, W) or (C, H, W) and volumes (D, H, W) or (C, D, H, W) can be read."
    )


def _layout_of_two(first: int, last: int) -> tuple[str, bool]:
    if first == 1 or last == 1:
        return ("CL" if first == 1 else "LC"), True
    if first <= MOST_CHANNELS and last >= 8 * first:
        return "CL", False
    if last <= MOST_CHANNELS and first >= 8 * last:
        return "LC", False
    return "HW", True


def _layout_of_three(shape: Shape) -> tuple[str, bool]:
    first, _, last = shape
    usual = first in USUAL_CHANNELS, last in USUAL_CHANNELS
    if usual[0] != usual[1]:
        return ("CHW" if usual[0] else "HWC"), True
    if min(shape) >= 8 and max(shape) < 2 * min(shape) and not any(usual):
        return "DHW", False
    first_is_shape = _elongation(shape[1:]) <= _elongation(shape[:2])
    return ("CHW" if first_is_shape else "HWC"), any(usual)


def _elongation(sides: Shape) -> float:
    return max(sides) / min(sides)


def check_fits(layout: str, shape: Shape) -> None:
    """Raises DataError if items of this shape cannot have the layout."""
    if layout in KINDS:
        raise DataError(
            f"data.layout={layout} is of items {KINDS[layout]}; these have shape {tuple(shape)}."
        )
    if layout != "vector" and len(layout) != len(shape):
        raise DataError(
            f"data.layout={layout} is of items with {len(layout)} axes; these have shape "
            f"{tuple(shape)}."
        )


def arranged(items: np.ndarray, layout: str) -> np.ndarray:
    """Items (N, ...) of a layout as (N, D), (N, C, L), (N, C, H, W) or (N, C, D, H, W), a view."""
    if layout == "vector":
        return items.reshape(len(items), -1)
    if layout.endswith("C"):
        return np.moveaxis(items, -1, 1)
    return items if layout.startswith("C") or layout == "D" else items[:, None]
