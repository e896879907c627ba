"""Pictures from what is left of them: `--mode restore`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from score_sde import distributed
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.data.pictures import grid_array
from score_sde.noise import generator_of
from score_sde.processes.expand import expand
from score_sde.restoration import (
    Blur,
    Fourier,
    Grey,
    Mask,
    Operator,
    Pool,
    Restored,
    gaussian_kernel,
    restore,
)
from score_sde.runs.directory import RunError
from score_sde.runs.items import items_of, refuse_latents, to_model
from score_sde.runs.outputs import Output, open_output, write_npz, write_png
from score_sde.runs.run import Run, load, pick_device

TASKS = ("inpaint", "colourise", "upscale", "deblur", "fourier")
ROUNDING = 1 / 255
"""The noise, in the model's range, that stands for none where a mask shows pixels as they are."""


def restore_to_files(
    workdir: str | Path,
    task: str,
    data: str | None = None,
    split: str = "test",
    items: int = 1,
    mask: str | Path | None = None,
    factor: int = 4,
    noise: float = 0.05,
    num_samples: int = 8,
    nfe: int = 60,
    restoration: str | None = None,
    first_seed: int = 0,
    batch_size: int | None = None,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    options: Mapping[str, Any] | None = None,
    step: int | str | None = None,
) -> Path:
    """Measure pictures, draw what they may have been, and write both into a folder.

    task: inpaint (mask: a picture, white where it is seen; the upper half without one), colourise,
    upscale (factor x factor means), deblur (a Gaussian of factor/2 pixels), fourier (one in factor
    of the frequencies). data: a picture, or a set or folder of which the first ``items`` are taken;
    the run's own split when None. noise: standard deviation in the model's range, [-1, 1] for
    pictures; 0 for inpainting leaves seen pixels exactly as they are. num_samples: draws of each
    item. method, nfe, options: of `restore`. class_labels: a class for all items, or one each.

    measurement.npz holds y; samples.npz the draws (items, num_samples, H, W, C), their mean and
    standard deviation, and the originals; grid.png a row an item: original, measured, mean,
    deviation, draws. settings.json says residual^2/noise^2, effective particles, and cost. Returns
    the folder.
    """
    if num_samples < 1:
        raise RunError(f"num_samples must be >= 1 (got {num_samples}).")
    with distributed.processes(pick_device(device)) as chosen:
        run = load(workdir, weights, str(chosen), step=step)
        refuse_latents(
            run,
            "whose measurements of pixels go through its decoder",
            "From Python: score_sde.restore(run.sde, run.score, y, Compose(Nonlinear("
            "run.codec.codec.decode), operator), ...), by a method for nonlinear operators.",
        )
        if not run.data_spec.is_image:
            raise RunError("this run is not of pictures; use score_sde.restore from Python.")
        operator = operator_of(task, run.data_spec, mask, factor)
        check_noise(task, noise)
        x0 = pictures_of(run, data, split, items)
        labels = run.class_labels(class_labels, range(len(x0)))
        request: dict[str, Any] = {"task": task, "data": data, "split": split, "items": len(x0)}
        request |= {"mask": None if mask is None else str(mask), "factor": factor, "noise": noise}
        request |= {"restoration": restoration, "nfe": nfe, "options": dict(options or {})}
        request |= {"num_samples": num_samples, "first_seed": first_seed, "weights": weights}
        request["class_labels"] = None if labels is None else labels.tolist()
        name = f"{task}_{restoration or 'auto'}_nfe{nfe}"
        output = open_output(run, "restored", name, request, out)
        y = operator(x0)
        e = torch.randn(y.shape, generator=generator_of(first_seed))
        y = y + noise * e.to(y)
        seeds = range(first_seed, first_seed + num_samples)
        result = restore(
            run.sde, run.score.bind(class_labels=labels), y, operator, noise_std=noise or ROUNDING,
            gaussian=run.gaussian, method=restoration, n=num_samples, nfe=nfe, seeds=seeds,
            batch_size=batch_size, device=chosen, return_info=True, **dict(options or {}),
        )  # fmt: skip
        distributed.say(str(result))
        draws = result.x if noise else shown(operator, result.x, x0.cpu())
        if distributed.is_writer():
            _write(run, output, operator, x0.cpu(), y.cpu(), draws, result)
        distributed.wait()
        distributed.say(f"{num_samples} draws of {len(x0)} pictures are in {output.folder}")
    return output.folder


def check_noise(task: str, noise: float) -> None:
    """RunError for noise that is negative, or none where a posterior needs some."""
    if noise < 0 or (noise == 0 and task != "inpaint"):
        raise RunError(
            f"noise must be positive (got {noise:g}): give at least that of rounding, 0.004 for "
            "8-bit pixels in [-1, 1]. Only --task inpaint takes 0, and keeps what is seen."
        )


def operator_of(
    task: str, spec: DataSpec, mask: str | Path | None = None, factor: int = 4
) -> Operator:
    """What a task measures of pictures of a run; RunError where it cannot."""
    channels, height, width = spec.shape
    if mask is not None and task != "inpaint":
        raise RunError(f"--mask is of --task inpaint, not of {task}.")
    if task == "inpaint":
        return Mask(_upper_half(height, width) if mask is None else read_mask(mask, height, width))
    if factor < 2:
        raise RunError(f"factor must be at least 2 (got {factor}).")
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
        return Blur(gaussian_kernel(factor / 2), "periodic")
    if task == "fourier":
        seen = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 1 / factor
        low = max(1, min(height, width) // 12)
        seen[:low, :low] = seen[-low:, :low] = seen[:low, -low:] = seen[-low:, -low:] = True
        return Fourier(seen)
    raise RunError(f"task must be one of {', '.join(TASKS)} (got {task!r}).")


def _upper_half(height: int, width: int) -> Tensor:
    seen = torch.zeros(height, width, dtype=torch.bool)
    seen[: height // 2] = True
    return seen


def _open(path: str | Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError) as error:
        raise RunError(f"{path} is no picture that can be read ({error}).") from error


def read_mask(path: str | Path, height: int, width: int) -> Tensor:
    """A mask (H, W) from a picture: seen where it is brighter than half."""
    values = torch.from_numpy(np.array(_open(path).convert("L")))
    if tuple(values.shape) != (height, width):
        raise RunError(
            f"the mask {path} is {values.shape[0]} x {values.shape[1]}, the run's pictures are "
            f"{height} x {width}: make it that size."
        )
    return values > 127


def pictures_of(run: Run, data: str | None, split: str, items: int) -> Tensor:
    """Pictures (N, C, H, W) in the model's range: one file, or the first of a set."""
    if data is None or not Path(data).is_file() or Path(data).suffix in (".npz", ".npy", ".zip"):
        found, n = items_of(run, split, items, data)
        return to_model(run, found.raw_items(range(n)))
    channels, height, width = run.data_spec.shape
    picture = np.array(_open(data).convert({1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "RGB")))
    if picture.shape[:2] != (height, width):
        raise RunError(
            f"{data} is {picture.shape[0]} x {picture.shape[1]}, the run's pictures are {height} x "
            f"{width}: crop or resize it."
        )
    return to_model(
        run, torch.from_numpy(picture.reshape(height, width, -1)).permute(2, 0, 1)[None]
    )


def shown(operator: Operator, x: Tensor, x0: Tensor) -> Tensor:
    """Draws (G, n, *shape) with what a mask shows as it is in x0 (G, *shape)."""
    flat = x.flatten(0, 1)
    seen = operator.adjoint(torch.ones_like(operator(flat)), tuple(x0.shape[1:])) > 0
    return torch.where(seen, x0.repeat_interleave(x.shape[1], 0).to(flat), flat).reshape(x.shape)


def _write(
    run: Run, output: Output, operator: Operator, x0: Tensor, y: Tensor, x: Tensor, result: Restored
) -> None:
    spec, shape = run.data_spec, tuple(x0.shape[1:])
    mean, std = x.mean(1), x.std(1, correction=0)
    back = operator.pinv(y, shape) if operator.gram(shape) is not None else None
    if back is None:  # Fourier and blur: what A' makes of it, at the scale of the picture
        back = operator.adjoint(y, shape)
        back = back * expand(x0.flatten(1).norm(dim=1) / back.flatten(1).norm(dim=1), back)
    deviation = std / std.amax().clamp_min(1e-6) * 2 - 1
    rows = [torch.stack([x0, back, mean]), deviation[None], x.transpose(0, 1)[:12]]
    row = torch.cat([part.float() for part in rows]).transpose(0, 1).flatten(0, 1)
    write_png(output.folder / "grid.png", grid_array(_pixels(spec, row), len(row) // len(x0)))
    write_npz(output.folder / "measurement.npz", {"y": y.numpy()})
    arrays = {"samples": _arrays(spec, x.flatten(0, 1)).reshape(*x.shape[:2], *_hwc(shape))}
    arrays |= {"mean": _arrays(spec, mean), "originals": _arrays(spec, x0)}
    arrays["std"] = std.permute(0, 2, 3, 1).numpy()
    write_npz(output.folder / "samples.npz", arrays, compress=True)
    facts: dict[str, Any] = {"line": str(result), "method": result.method, "nfe": result.nfe}
    facts |= {"products": result.products, "seconds": result.seconds, "said": result.said}
    facts["residual_over_noise"] = result.residual.tolist()
    facts["spread"] = std.flatten(1).mean(1).tolist()
    error = (mean - x0).flatten(1).square().mean(1)
    facts["psnr_of_mean"] = (-10 * (error / 4).log10()).tolist()
    if result.ess is not None and result.temper is not None and result.log_evidence is not None:
        facts["effective_share"] = result.ess.tolist()
        facts["temper"] = result.temper.tolist()
        facts["log_evidence"] = result.log_evidence.tolist()
    output.finish(facts, ["grid.png", "measurement.npz", "samples.npz"])


def _pixels(spec: DataSpec, x: Tensor) -> Tensor:
    return spec.to_uint8(x.float().cpu())


def _hwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1], shape[2], shape[0]


def _arrays(spec: DataSpec, x: Tensor) -> np.ndarray:
    return _pixels(spec, x).permute(0, 2, 3, 1).numpy()
