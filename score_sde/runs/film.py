"""How samples of a run came to be: the states of the sampler, and what the network saw in them.

What is seen in a state x_t is the mean of all data that may lie behind it, D = E[x_0 | x_t], which
Tweedie's formula reads from the score: coarse shapes first, details last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from score_sde.checks import Count, checked
from score_sde.data import DataSpec
from score_sde.noise import SeededNoise
from score_sde.plotting.pictures import enlarged, picture_of
from score_sde.runs.directory import RunError
from score_sde.runs.run import Run
from score_sde.runs.steering import steer
from score_sde.runs.wish import Wish
from score_sde.sampling import SampleResult

MOST = 64


class Film(NamedTuple):
    """The falling times (K,) of the frames; x_t and E[x_0 | x_t] there, (K, B, ...); the result.

    Of a run of latents both are decoded.
    """

    times: Tensor
    states: Tensor
    denoised: Tensor
    result: SampleResult


@checked
@torch.no_grad()
def film(
    run: Run,
    n: Annotated[Count, Field(le=MOST)],
    first_seed: int = 0,
    frames: Count = 16,
    wish: Wish | None = None,
    **changes: Any,
) -> Film:
    """`Run.sample`, watched: up to ``frames`` moments of the way, from noise to the last step.

    n: at most 64 samples, which are drawn in one batch. wish: what they are told. changes: of the
    sampler's settings. The denoised pictures cost an evaluation a frame, which the result does not
    count. Raises RunError, and what `Run.sample` does.
    """
    wish, seeds = wish or Wish(), range(first_seed, first_seed + n)
    first = run.sde.prior_std() * SeededNoise(list(seeds), run.data_spec.shape).draw()
    device = next(run.score.parameters()).device
    seen = [(run.sde.t_max, first.to(device))]
    result = run.sample(
        n, first_seed, hook=lambda x, t: seen.append((float(t), x.clone())),
        **wish.to_arguments() | changes | {"batch_size": n},
    )  # fmt: skip
    kept = torch.linspace(0, len(seen) - 1, min(frames, len(seen))).round().long().unique()
    chosen = [seen[i] for i in kept.tolist()]
    score = steer(run, wish, seeds).score
    times = torch.tensor([t for t, _ in chosen], dtype=torch.float64)
    states = [run.to_items(x.float()) for _, x in chosen]
    denoised = [run.to_items(run.sde.denoise(x.float(), torch.tensor(t), score)) for t, x in chosen]
    return Film(times, torch.stack(states).cpu(), torch.stack(denoised).cpu(), result)


def state_picture(x: Tensor, spec: DataSpec):
    """x_t as a picture (H, W[, 3]): brought to the contrast of pictures, or as points."""
    if spec.is_image:
        x = x / x.std(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    return picture_of(x, spec)


def write_film(found: Film, spec: DataSpec, path: Path, seconds: float = 4.0) -> Path:
    """A .gif of x_t beside E[x_0 | x_t], ending on the samples; returns its path."""
    pictures = []
    for x, denoised in zip(found.states, found.denoised, strict=True):
        pair = [state_picture(x, spec), picture_of(denoised, spec)]
        if any(picture is None for picture in pair):
            raise RunError(f"{spec.name} has items {spec.shape}, which no film can show.")
        pictures.append(_side_by_side(pair))
    pause = round(1000 * seconds / len(pictures))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], loop=0,
        duration=[pause] * (len(pictures) - 1) + [2000],
    )  # fmt: skip
    return path


def _side_by_side(pair: list[Any]) -> Image.Image:
    left, right = (Image.fromarray(enlarged(picture, 240)).convert("RGB") for picture in pair)
    sheet = Image.new("RGB", (left.width + right.width + 16, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 16, 0))
    return sheet
