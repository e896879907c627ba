"""Coloured shapes with captions: a task for text conditioning whose answers can be told exactly.

A picture is one shape in one colour on white, 16 x 16, at a random place and of a random size:
"a red circle". Some pairs of colour and shape are never in the training split, though each colour
and each shape is: a model that draws them has understood how the words combine. Every possible
picture is known, so the nearest of them in squared error says what a sample shows (`recognise`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import check_count, check_names
from score_sde.data.spec import DataError

SIDE = 16
RADII = (3, 4, 5, 6)
COLOURS = {
    "red": (225, 40, 40), "green": (40, 170, 70), "blue": (40, 80, 220),
    "yellow": (240, 210, 40), "purple": (150, 60, 180), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT = (("red", "square"), ("green", "triangle"), ("blue", "cross"), ("yellow", "circle"))
COUNTS = {"train": 4000, "test": 400}
Pair = tuple[str, str]


def shape_mask(shape: str, radius: int) -> np.ndarray:
    """The pixels (2 radius + 1, 2 radius + 1) of a shape, bool."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    if shape == "circle":
        return x**2 + y**2 <= (radius + 0.4) ** 2
    if shape == "square":
        return np.ones_like(x, bool)
    if shape == "triangle":  # its point upwards
        return 2 * abs(x) <= y + radius
    check_names([shape], SHAPES, "shape", DataError)
    return np.minimum(abs(x), abs(y)) <= radius // 3  # a cross


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Every mask (T, 16, 16) bool that a picture can have, and its shape's number (T,)."""
    masks, numbers = [], []
    for number, shape in enumerate(SHAPES):
        for radius in RADII:
            mask = shape_mask(shape, radius)
            for top in range(SIDE - 2 * radius):
                for left in range(SIDE - 2 * radius):
                    canvas = np.zeros((SIDE, SIDE), bool)
                    canvas[top : top + len(mask), left : left + len(mask)] = mask
                    masks.append(canvas)
                    numbers.append(number)
    return np.stack(masks), np.array(numbers)


def caption_of(colour: str, shape: str) -> str:
    """What the picture is called."""
    return f"a {colour} {shape}"


def pair_of(caption: str) -> Pair:
    """Colour and shape of a caption; DataError unless it names one of each."""
    words = caption.split()
    colours = [w for w in words if w in COLOURS]
    shapes = [w for w in words if w in SHAPES]
    if len(colours) != 1 or len(shapes) != 1:
        raise DataError(f"the caption {caption!r} must name one colour and one shape.")
    return colours[0], shapes[0]


def shapes(split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Images (N, 16, 16, 3) uint8 and captions: 4 000 for "train", 400 held-out for "test"."""
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = HELD_OUT if split == "test" else tuple(p for p in every if p not in HELD_OUT)
    return draw_shapes(COUNTS[split], pairs, seed=int(split == "test"))


def draw_shapes(n: int, pairs: Sequence[Pair], seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """n pictures of the pairs in turn, each at a random place and size, and their captions."""
    masks, numbers = _templates()
    drawn = np.random.default_rng(seed)
    images = np.full((n, SIDE, SIDE, 3), 255, np.uint8)
    captions = []
    for i in range(n):
        colour, shape = pairs[i % len(pairs)]
        chosen = drawn.choice(np.flatnonzero(numbers == SHAPES.index(shape)))
        images[i][masks[chosen]] = COLOURS[colour]
        captions.append(caption_of(colour, shape))
    return images, tuple(captions)


def recognise(images: Tensor) -> list[Pair]:
    """Colour and shape of the possible picture nearest to each of images (B, 3, 16, 16) uint8.

    Of mask m and colour c, |x - picture|^2 is |x - white|^2 plus, over the pixels p of m,
    |x_p - c|^2 - |x_p - white|^2: one matrix product for all of them.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIDE, SIDE):
        raise DataError(f"pictures of shapes are (B, 3, 16, 16); got {tuple(images.shape)}.")
    masks, numbers = _templates()
    pixels = images.detach().cpu().double().flatten(2)  # (B, 3, P)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float64)
    to_colour = (pixels[:, None] - palette[:, :, None]).square().sum(2)  # (B, colours, P)
    to_white = (pixels - 255).square().sum(1, keepdim=True)
    gains = (to_colour - to_white) @ torch.from_numpy(masks).flatten(1).double().T
    best = gains.flatten(1).argmin(1)
    colours = list(COLOURS)
    return [(colours[b // len(masks)], SHAPES[numbers[b % len(masks)]]) for b in best.tolist()]


@dataclass(frozen=True)
class ShapeScore:
    """Shares of pictures whose colour, whose shape, and whose both are what the caption says."""

    colour: float
    shape: float
    both: float


def score_shapes(images: Tensor, captions: Sequence[str]) -> ShapeScore:
    """How many of the pictures (B, 3, 16, 16) uint8 show what their B captions say."""
    check_count(len(captions), len(images), "captions", DataError)
    shown = np.array(recognise(images))
    right = shown == np.array([pair_of(c) for c in captions])
    colour, shape = right.mean(0).tolist()
    return ShapeScore(colour, shape, float(right.all(1).mean()))
