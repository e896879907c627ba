"""How well a run of `sr_emoji` enlarges held-out drawings of half its size, beside interpolation.

    python benchmarks/cascade.py runs/sr_emoji [--items 48] [--level 0.1] [--picture enlarged.png]

Printed are the peak signal-to-noise ratio (dB, of pixels in [0, 1], mean over drawings and its
standard error) of bicubic interpolation, of one enlarged drawing and of the mean of four, and the
strength of edges, the mean absolute difference of neighbouring pixels, as a share of the true one:
interpolation blurs, samples should not. The picture shows the small drawing, bicubic, one sample
and the truth, in rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from score_sde import load
from score_sde.data.emoji import emoji
from score_sde.plotting.pictures import grid_array, save_png
from score_sde.runs.cascade import enlarge

SEEDS = 4


def decibels(x: Tensor, true: Tensor) -> str:
    """The mean over the drawings, and its standard error."""
    each = -10 * (x - true).square().flatten(1).mean(1).log10()
    return f"{each.mean():.2f} +- {each.std() / len(each) ** 0.5:.2f} dB"


def edges(x: Tensor) -> float:
    """The mean absolute difference of neighbouring pixels."""
    return float(x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean())


def main(words: list[str] | None = None) -> None:
    """Enlarge held-out drawings, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--level", type=float, default=0.1)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args(words)
    run = load(asked.run)
    size = run.data_spec.shape[1]
    pictures = (
        torch.from_numpy(emoji("test", side)[0]).movedim(3, 1) for side in (size, size // 2)
    )
    big, small = (x[torch.linspace(0, len(x) - 1, asked.items).long()] for x in pictures)
    spec = replace(run.data_spec, shape=tuple(small.shape[1:]))
    true = big.double() / 255
    bicubic = interpolate(small.double() / 255, scale_factor=2, mode="bicubic").clamp(0, 1)
    draws = []
    for k in range(SEEDS):
        x = enlarge(run, spec.to_model(small), spec, k * asked.items, asked.level).x
        draws.append(run.data_spec.to_uint8(x).double() / 255)
    means = {"bicubic": bicubic, "a sample": draws[0], "mean of four": torch.stack(draws).mean(0)}
    for name, x in means.items():
        print(f"{name:13} {decibels(x, true)}, edges {edges(x) / edges(true):.2f} of the true")
    if asked.picture:
        first = small[:8].double().div(255).repeat_interleave(2, 2).repeat_interleave(2, 3)
        rows = torch.cat([first, bicubic[:8], draws[0][:8], true[:8]])
        save_png(grid_array((255 * rows).round().byte(), 8), asked.picture)


if __name__ == "__main__":
    main()
