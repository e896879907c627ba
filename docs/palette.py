"""Sharp figures are large files: a palette of 256 colours makes them three times smaller.

Its colours are the means of those near them (k-means), so that shades stay smooth and no eye sees a
difference. Transparency is part of a colour.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

COLOURS, ROUNDS = 256, 8


def with_palette(png: bytes) -> bytes:
    """The same picture with a palette of `COLOURS` colours, transparency among them."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    pixels = np.frombuffer(picture.tobytes(), np.uint32)
    seen, places, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    points = seen.view(np.uint8).reshape(-1, 4).astype(np.float64)
    start = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).convert("RGBA")
    palette = np.unique(np.frombuffer(start.tobytes(), np.uint32)).view(np.uint8).reshape(-1, 4)
    often = points[np.argsort(-counts)[: COLOURS - len(palette)]]
    centres = np.concatenate([palette.astype(np.float64), often])
    for _ in range(ROUNDS):
        nearest, apart = assign(points, centres)
        total = np.bincount(nearest, counts, len(centres))
        sums = [np.bincount(nearest, counts * axis, len(centres)) for axis in points.T]
        used = total > 0
        centres[used] = (np.stack(sums, 1) / np.maximum(total, 1)[:, None])[used]
        centres[~used] = points[np.argsort(-apart * counts)[: np.sum(~used)]]
    nearest, _ = assign(points, centres)
    found = Image.frombytes("P", picture.size, nearest[places].astype(np.uint8).tobytes())
    found.putpalette(centres.round().astype(np.uint8).tobytes(), "RGBA")
    file = io.BytesIO()
    found.save(file, "png", optimize=True)
    return file.getvalue()


def assign(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each point, and its squared distance."""
    apart = np.square(points).sum(1)[:, None] - 2 * points @ centres.T + np.square(centres).sum(1)
    return apart.argmin(1), apart.min(1)
