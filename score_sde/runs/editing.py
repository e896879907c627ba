r"""From a picture instead of from noise: SDEdit (2108.01073).

    x_t = alpha(t) x_0 + sigma(t) eps,

and from there the sampler's own last steps. strength is their share: near 0 the picture stays, and
at 1 hardly more than its brightness does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data import DataError, DataSpec, decoding
from score_sde.data.decoding import picture_at as picture_at
from score_sde.noise import SeededNoise
from score_sde.runs.directory import RunError
from score_sde.sampling import SDE, SamplingSettings, make_sampler
from score_sde.sampling.grids import make_grid

Picture = str | Path | Tensor


class Start(NamedTuple):
    """x (B, ...) to start from, and the falling times from there."""

    x: Tensor
    times: Tensor


def check_strength(strength: float) -> None:
    """RunError unless it is a share of the steps."""
    if not 0 < strength <= 1:
        raise RunError(
            f"strength must lie in (0, 1], the share of the steps that are taken (got {strength})."
        )


def read_picture(given: Picture, spec: DataSpec) -> Tensor:
    """A picture file, or a state (C, H, W) of the model as it is, as such a state.

    A file is set upright, laid on white where it is transparent, and brought to the model's size:
    its middle, scaled. RunError for data that are no images and for files that cannot be read.
    """
    if isinstance(given, Tensor):
        if tuple(given.shape) != spec.shape:
            raise RunError(f"init has shape {tuple(given.shape)}; the model's is {spec.shape}.")
        return given
    mode = decoding.MODES.get(spec.shape[0])
    if not spec.is_image or mode is None:
        raise RunError(f"init needs a model of images; {spec.name} has items {spec.shape}.")
    path, (height, width) = Path(given), spec.shape[1:]
    try:
        pixels = decoding.to_array(
            picture_at(path), path.name, mode, (height, width), "center_crop"
        )
    except DataError as error:
        raise RunError(f"the picture {given} cannot be read ({error}).") from error
    assert spec.low is not None and spec.high is not None
    raw = spec.low + torch.from_numpy(pixels).float() / 255 * (spec.high - spec.low)
    return spec.to_model(raw[None])[0]


def adapted(path: str | Path, spec: DataSpec) -> str:
    """How a picture file that `read_picture` takes differs from the model's: "" if in nothing."""
    picture = picture_at(path)
    given, mode = (picture.height, picture.width), picture.mode
    height, width = spec.shape[1:]
    lines = []
    if given != (height, width):
        lines.append(
            f"The upload is {given[0]} x {given[1]}: its middle was brought to the model's "
            f"{height} x {width}."
        )
    if spec.shape[0] == 1 and mode not in decoding.GREY_MODES:
        lines.append("It has colours; the model knows shades of grey, and was given these.")
    return " ".join(lines)


def start_from(
    sde: SDE,
    x0: Tensor,
    strength: float,
    seeds: Sequence[int],
    settings: SamplingSettings,
    data_std: float,
) -> Start:
    """x0 (*shape) with noise of each seed, where the last share ``strength`` of the steps begins.

    settings: of the sampler whose steps these are. The noise is what a sample of this seed starts
    from.
    """
    check_strength(strength)
    options = {k: v for k, v in (settings.options or {}).items()}
    method = make_sampler(settings.method, **options)
    steps = settings.steps or method.default_steps
    if settings.nfe is not None and method.evaluations:
        steps = max(1, (settings.nfe - settings.denoise) // method.evaluations)
    grid = settings.grid or method.default_grid or sde.natural_grid
    times = make_grid(sde, grid, steps, data_std)
    times = times[len(times) - 1 - max(1, round(strength * (len(times) - 1))) :]
    eps = SeededNoise(seeds, tuple(x0.shape), torch.float32, x0.device).draw()
    alpha, sigma = (f(times[0]).to(x0) for f in (sde.alpha, sde.sigma))
    return Start(alpha * x0 + sigma * eps, times)
