"""What `--mode restore` is given: pictures to be measured, or a measurement of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import check_names, read_arrays
from score_sde.data import DataError, DataSpec, decoding
from score_sde.noise import generator_of
from score_sde.restoration import (
    Blur,
    Compose,
    Fourier,
    Grey,
    Mask,
    Nonlinear,
    Operator,
    Pool,
    gaussian_kernel,
)
from score_sde.runs.directory import RunError
from score_sde.runs.items import check_raw, items_of
from score_sde.runs.run import Run

TASKS = ("inpaint", "colourise", "upscale", "deblur", "fourier")
SCALED = ("upscale", "deblur", "fourier")


@dataclass(frozen=True)
class Measured:
    """y (G, *measured) in the model's range, and the pictures (G, C, H, W) if they are known."""

    operator: Operator
    y: Tensor
    originals: Tensor | None = None


def operator_of(
    task: str, spec: DataSpec, mask: str | Path | None = None, factor: int | None = None
) -> Operator:
    """What a task measures of pictures of a run; RunError where it cannot.

    factor: of `SCALED` tasks, 4 unless given.
    """
    channels, height, width = spec.shape
    if factor is not None and task in TASKS and task not in SCALED:
        raise RunError(f"--factor is of --task {', '.join(SCALED)}, not of {task}.")
    factor = factor or 4
    if mask is not None and task != "inpaint":
        raise RunError(f"--mask is of --task inpaint, not of {task}.")
    if task == "inpaint":
        return Mask(_upper_half(height, width) if mask is None else read_mask(mask, height, width))
    if task == "colourise":
        if channels != 3:
            raise RunError(f"colourise needs colour; the run's pictures have {channels} channels.")
        return Grey()
    if task == "upscale":
        if height % factor or width % factor:
            raise RunError(
                f"factor {factor} does not divide {height} x {width}; choose one that does."
            )
        return Pool(factor)
    if task == "deblur":
        if factor > min(height, width):
            raise RunError(
                f"factor {factor} is wider than pictures of {height} x {width}: the blur is of "
                f"factor/2 pixels. Give at most {min(height, width)}."
            )
        return Blur(gaussian_kernel(factor / 2), "periodic")
    check_names([task], TASKS, "task", RunError)
    seen = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 1 / factor
    low = max(1, min(height, width) // 12)
    seen[:low, :low] = seen[-low:, :low] = seen[:low, -low:] = seen[-low:, -low:] = True
    return Fourier(seen)


def of_states(run: Run, operator: Operator) -> Operator:
    """What a measurement of pictures is of the run's states: through the decoder, for latents."""
    if run.codec is None:
        return operator
    codec = run.codec.codec
    return Compose(Nonlinear(lambda z: codec.decode(z.float()).to(z)), operator)


def to_pixels(run: Run, raw: Tensor) -> Tensor:
    """Raw pictures in the model's range, not encoded; DataError for what cannot be such."""
    check_raw(run, raw)
    return run.item_spec.to_model(raw).to(next(run.score.parameters()).device)


def _upper_half(height: int, width: int) -> Tensor:
    seen = torch.zeros(height, width, dtype=torch.bool)
    seen[: height // 2] = True
    return seen


def measure(
    run: Run, operator: Operator, data: str | None, split: str, items: int, noise: float, seed: int
) -> Measured:
    """The first ``items`` pictures of a set, folder or split (or one file), measured with noise."""
    x0 = pictures_of(run, data, split, items)
    y = operator(x0)
    e = torch.randn(y.shape, generator=generator_of(seed))
    return Measured(operator, y + noise * e.to(y), x0)


def read_measurement(run: Run, task: str, operator: Operator, path: str | Path) -> Measured:
    """A measurement of one's own.

    .npy: what the operator gives of one state, or of several (G, *measured), floating point in the
    model's range. A picture: the small one of upscale, the grey one of colourise, the blurred one
    of deblur, and of inpaint a whole one, of which the seen pixels are taken. RunError else.
    """
    shape = run.item_spec.shape
    measured = operator.measured(shape)
    device = next(run.score.parameters()).device
    if Path(path).suffix == ".npy":
        y = _read_array(path)
        if tuple(y.shape) == measured:
            y = y[None]
        if tuple(y.shape[1:]) != measured or len(y) < 1:
            raise RunError(
                f"{path} has shape {tuple(y.shape)}; --task {task} measures {measured} of a "
                f"picture {shape}, or (G, ...) of several."
            )
        return Measured(operator, y.to(device))
    if task == "fourier":
        raise RunError("frequencies are no picture: give --measurement as .npy, real and imaginary")
    channels, height, width = shape if task == "inpaint" else measured
    y = read_picture(run, path, channels, height, width)
    return Measured(operator, operator(y) if task == "inpaint" else y)


def _read_array(path: str | Path) -> Tensor:
    y = read_arrays(path, "a measurement that can be read", RunError).get("")
    if y is None or y.dtype.kind != "f":
        kind = "several arrays" if y is None else y.dtype
        raise RunError(
            f"{path} holds {kind}; a measurement is floating point in the model's range, pixels as "
            "run.item_spec.to_model gives them."
        )
    return torch.from_numpy(y.astype(np.float32))


def _pixels(path: str | Path, mode: str) -> Tensor:
    """The pixels (C, H, W) of a picture file, uint8, as they are read for training."""
    try:
        picture = decoding.picture_at(path)
        return torch.from_numpy(decoding.to_array(picture, str(path), mode, None, None))
    except DataError as error:
        raise RunError(f"{path} is no picture that can be read ({error}).") from error


def read_mask(path: str | Path, height: int, width: int) -> Tensor:
    """A mask (H, W) from a picture: seen where it is brighter than half."""
    values = _pixels(path, "L")[0]
    if tuple(values.shape) != (height, width):
        raise RunError(
            f"the mask {path} is {values.shape[0]} x {values.shape[1]}, the run's pictures are "
            f"{height} x {width}: make it that size."
        )
    return values > 127


def read_picture(run: Run, path: str | Path, channels: int, height: int, width: int) -> Tensor:
    """A picture file as (1, C, H, W) in the model's range; RunError for another size."""
    picture = _pixels(path, decoding.MODES.get(channels, "RGB"))
    if tuple(picture.shape[1:]) != (height, width):
        raise RunError(
            f"{path} is {picture.shape[1]} x {picture.shape[2]}, it must be {height} x "
            f"{width} for this run and task: crop or resize it."
        )
    return to_pixels(run, picture[None])


def pictures_of(run: Run, data: str | None, split: str, items: int) -> Tensor:
    """Pictures (N, C, H, W) in the model's range: one file, or the first of a set."""
    if data is None or not Path(data).is_file() or Path(data).suffix in (".npz", ".npy", ".zip"):
        found, n = items_of(run, split, items, data)
        return to_pixels(run, found.raw_items(range(n)))
    return read_picture(run, data, *run.item_spec.shape)


def shown(operator: Operator, x: Tensor, x0: Tensor) -> Tensor:
    """Draws (G, n, *shape) with what a mask shows as it is in x0 (G, *shape)."""
    flat = x.flatten(0, 1)
    seen = operator.adjoint(torch.ones_like(operator(flat)), tuple(x0.shape[1:])) > 0
    return torch.where(seen, x0.repeat_interleave(x.shape[1], 0).to(flat), flat).reshape(x.shape)
