"""Samples as pictures: grids of images, maps of points, curves of signals, slices of volumes."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from score_sde.data.spec import DataSpec

CURVES = ("#0395ec", "#fe5322", "#13a461", "#b86afd", "#a78e10", "#d7058c")
MOST_CURVES, MOST_COLUMNS = 36, 4


def image_array(pixels: Tensor) -> np.ndarray:
    """uint8 (C, H, W) as Pillow likes it: (H, W), or (H, W, C)."""
    array = pixels.cpu().numpy().transpose(1, 2, 0)
    return array[..., 0] if array.shape[-1] == 1 else array[..., : 4 if array.shape[-1] > 3 else 3]


def grid_array(pixels: Tensor, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 images (N, C, H, W) side by side, as square as can be unless columns are given."""
    n, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    canvas = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap),
        255,
        dtype=torch.uint8,
    )
    for i in range(n):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = pixels[i]
    return image_array(canvas)


def enlarged(pixels: np.ndarray, least: int = 512) -> np.ndarray:
    """A picture (H, W[, C]) of which each pixel became a square, ``least`` or more on a side.

    Whole factors only, so that nothing is blurred; large pictures stay as they are.
    """
    factor = max(1, -(-least // max(pixels.shape[:2])))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def density_array(points: Tensor, side: int = 256, extent: float = 3.0) -> np.ndarray:
    """Points (N, 2) as a dark-on-light histogram of [-extent, extent]^2; the y axis points up."""
    x, y = points.cpu().double().numpy()[:, :2].T
    limits = [[-extent, extent]] * 2
    counts, _, _ = np.histogram2d(y, x, bins=side // 2, range=limits)
    shade = np.sqrt(counts / max(counts.max(), 1))
    return np.repeat(np.repeat((255 * (1 - shade[::-1])).astype(np.uint8), 2, 0), 2, 1)


def captioned_grid(pixels: Tensor, captions: Sequence[str], least: int = 96) -> np.ndarray:
    """A near-square grid of uint8 images (N, C, H, W), each with its caption below.

    Small images are enlarged by a whole number, to ``least`` pixels a side or more; captions that
    do not fit go on in a second line and end with dots.
    """
    factor = max(1, -(-least // pixels.shape[-1]))
    side, below = pixels.shape[-1] * factor, 26
    height = pixels.shape[-2] * factor
    columns = math.ceil(len(pixels) ** 0.5)
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (height + below)), "white")
    draw, letters = ImageDraw.Draw(sheet), max(side // 6, 4)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = i % columns * (side + 4), i // columns * (height + below)
        picture = Image.fromarray(image_array(image)).convert("RGB")
        sheet.paste(picture.resize((side, height), Image.Resampling.NEAREST), (x, y))
        shown = textwrap.wrap(caption, letters, max_lines=2, placeholder="...")
        draw.multiline_text((x, y + height + 1), "\n".join(shown), fill="black", spacing=0)
    return np.asarray(sheet)


def pairs_array(x: Tensor) -> np.ndarray:
    """Vectors (N, D) as a histogram of each pair of their first columns, in the model's range."""
    if x.shape[1] == 2:
        return density_array(x)
    pairs = itertools.combinations(range(min(x.shape[1], MOST_COLUMNS)), 2)
    panels = np.stack([density_array(x[:, list(pair)], 192) for pair in pairs])
    panels[:, [0, -1]] = panels[:, :, [0, -1]] = 200  # a frame around each
    return grid_array(torch.from_numpy(panels)[:, None], gap=8)


def curves_array(x: Tensor, width: int = 200, height: int = 96) -> np.ndarray:
    """Signals (N, C, L) as curves on one scale, a frame each and a colour a channel."""
    x = x[:MOST_CURVES].double().cpu().nan_to_num()
    fine, (_, _, length) = 3, x.shape  # drawn larger, so that the lines are smooth
    y = (0.5 - 0.46 * x / x.abs().max().clamp(min=1e-9)) * fine * height
    places = torch.linspace(0, fine * width, length).tolist()
    panels = []
    for curves in y.tolist():
        panel = Image.new("RGB", (fine * width, fine * height), "white")
        draw = ImageDraw.Draw(panel)
        draw.rectangle((0, 0, fine * width - 1, fine * height - 1), outline="#d0d0d0", width=fine)
        for i, curve in enumerate(curves):
            line = list(zip(places, curve, strict=True))
            draw.line(line, fill=CURVES[i % len(CURVES)], width=fine + 1, joint="curve")
        panels.append(np.asarray(panel.resize((width, height), Image.Resampling.LANCZOS)))
    return grid_array(torch.from_numpy(np.stack(panels)).permute(0, 3, 1, 2), gap=6)


def slices_array(x: Tensor) -> np.ndarray:
    """The middle slices of the first channel of volumes (N, C, D, H, W), from black to white."""
    middle = x[:, 0, x.shape[2] // 2].float().nan_to_num()
    low, high = middle.aminmax()
    pixels = (middle - low) / (high - low).clamp(min=1e-9) * 255
    return enlarged(grid_array(pixels.round().to(torch.uint8)[:, None]))


def picture_of(x: Tensor, spec: DataSpec) -> np.ndarray | None:
    """One picture of samples (B, ...) in the model's range; None if they are not to be pictured."""
    if spec.is_image:
        return enlarged(grid_array(spec.to_uint8(x)))
    draw = {1: pairs_array, 2: curves_array, 4: slices_array}.get(len(spec.shape))
    return None if draw is None or spec.shape == (1,) else draw(x)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A picture as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W), (H, W, 3) or (H, W, 4) uint8 to a PNG file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
