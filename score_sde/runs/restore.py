"""Pictures from what is left of them: `--mode restore`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from score_sde import distributed
from score_sde.checks import Count, NonNegative, Seed, check_alone, checked
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.devices import pick_device
from score_sde.plotting.pictures import enlarged, grid_array
from score_sde.restoration import Mask, Restored, restore
from score_sde.runs.directory import RunError
from score_sde.runs.load import load_score
from score_sde.runs.measuring import (
    Measured,
    measure,
    of_states,
    operator_of,
    read_measurement,
    shown,
)
from score_sde.runs.outputs import Output, open_output, write_npz, write_png
from score_sde.runs.run import Run
from score_sde.runs.steering import Wish, steer

ROUNDING = 1 / 255
"""The noise, in the model's range, that stands for none where a mask shows pixels as they are."""
Factor = Annotated[int, Field(ge=2, le=2**20)]


@checked("")
def restore_to_files(
    workdir: str | Path,
    task: str,
    data: str | None = None,
    split: str = "test",
    items: Count = 1,
    measurement: str | Path | None = None,
    mask: str | Path | None = None,
    factor: Factor | None = None,
    noise: NonNegative = 0.05,
    num_samples: Count = 8,
    nfe: Count = 60,
    restoration: str | None = None,
    first_seed: Seed = 0,
    batch_size: Count | None = None,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    prompt: str | None = None,
    guidance: NonNegative | None = None,
    options: Mapping[str, Any] | None = None,
    step: int | str | None = None,
) -> Path:
    """Measure pictures, draw what they may have been, and write both into a folder.

    task: inpaint (mask: a picture, white where it is seen; the upper half without one), colourise,
    upscale (factor x factor means), deblur (a Gaussian of factor/2 pixels), fourier (one in factor
    of the frequencies), factor being 4 unless given. data: a picture, or a set or folder of which
    the first ``items`` are taken; the run's own split when None. measurement: a measurement of
    one's own in their place, see `read_measurement`. noise: standard deviation in the model's
    range, [-1, 1] for pictures; 0 for inpainting leaves seen pixels exactly as they are.
    num_samples: draws of each item. restoration, nfe, options: of `restore`. class_labels: a class
    for all items, or one each. prompt, guidance: of `Run.sample`; the posterior is then that of the
    guided score. A run of latents is measured through its decoder, which is not linear: by the
    hybrid, unless told else.

    measurement.npz holds y; samples.npz the draws (items, num_samples, H, W, C), their mean and
    standard deviation, and the originals; grid.png a row an item: original, measured, mean,
    deviation, draws. settings.json says residual^2/noise^2, effective particles, and cost. Returns
    the folder.
    """
    request: dict[str, Any] = {
        "task": task, "data": data, "split": split, "items": items, "factor": factor,
        "measurement": None if measurement is None else str(measurement),
        "mask": None if mask is None else str(mask), "noise": noise, "restoration": restoration,
        "nfe": nfe, "options": dict(options or {}), "num_samples": num_samples, "prompt": prompt,
        "first_seed": first_seed, "weights": weights, "guidance": guidance,
    }  # fmt: skip
    check_request(task, noise, data, measurement)
    with distributed.processes(pick_device(device)) as chosen:
        run = load_score(workdir, weights, str(chosen), step=step)
        if not run.item_spec.is_image:
            raise RunError("this run is not of pictures; use score_sde.restore from Python.")
        operator = operator_of(task, run.item_spec, mask, factor)
        if measurement is None:
            measured = measure(run, operator, data, split, items, noise, first_seed)
        else:
            measured = read_measurement(run, task, operator, measurement)
        wish = Wish(class_labels, prompt, guidance)
        steered = steer(run, wish, range(len(measured.y)))
        labels = steered.class_labels
        request["class_labels"] = None if labels is None else labels.tolist()
        request["items"] = len(measured.y)
        name = f"{task}_{restoration or 'auto'}_nfe{nfe}"
        output = open_output(run, "restored", name, request, out)
        result = restore(
            run.sde, steered.score, measured.y, of_states(run, operator),
            noise_std=noise or ROUNDING, gaussian=run.gaussian,
            method=restoration, n=num_samples, nfe=nfe,
            seeds=range(first_seed, first_seed + num_samples), batch_size=batch_size,
            device=chosen, return_info=True, **dict(options or {}),
        )  # fmt: skip
        distributed.say(str(result))
        if distributed.is_writer():
            _write(run, output, measured, result, exact=noise == 0)
        distributed.wait()
        n = len(measured.y)
        distributed.say(f"{num_samples} draws of {n} pictures are in {output.folder}")
    return output.folder


def fill(run: Run, x0: Tensor, seen: Tensor, n: int) -> tuple[Tensor, Restored]:
    """n draws (n, C, H, W) of a picture (C, H, W) that a mask (H, W) shows in part, and facts.

    All in the model's range; what is seen stays as it is.
    """
    operator = Mask(seen)
    result = restore(
        run.sde, run.score, operator(x0[None])[0], operator, noise_std=ROUNDING, nfe=30,
        gaussian=run.gaussian, n=n, seeds=range(n), device=next(run.score.parameters()).device,
        return_info=True,
    )  # fmt: skip
    return shown(operator, result.x.cpu()[None], x0[None])[0], result


def check_request(
    task: str, noise: float, data: str | None, measurement: str | Path | None
) -> None:
    """RunError for what contradicts itself, before any work."""
    if noise == 0 and task != "inpaint":
        raise RunError(
            f"noise must be positive (got {noise:g}): give at least that of rounding, 0.004 for "
            "8-bit pixels in [-1, 1]. Only --task inpaint takes 0, and keeps what is seen."
        )
    check_alone({"--measurement": measurement, "--data": data}, RunError)


def _write(run: Run, output: Output, measured: Measured, result: Restored, exact: bool) -> None:
    spec, shape = run.item_spec, run.item_spec.shape
    x = run.to_items(result.x.flatten(0, 1).to(measured.y)).cpu()
    x = x.reshape(*result.x.shape[:2], *shape)
    mean, std = _mean(run, measured, result, x), x.std(1, correction=0)
    if exact:
        known = measured.operator.adjoint(measured.y.cpu(), shape)
        x = shown(measured.operator, x, known)
        mean = shown(measured.operator, mean[:, None], known)[:, 0]
    assert spec.low is not None and spec.high is not None
    black, white = (float((end - spec.shift) / spec.scale) for end in (spec.low, spec.high))
    deviation = black + (white - black) * std / std.amax().clamp_min(1e-6)
    row = _row(measured, x, mean, deviation)
    pixels = _pixels(spec, row.transpose(0, 1).flatten(0, 1))
    output.claim()
    write_png(output.folder / "grid.png", enlarged(grid_array(pixels, len(row))))
    write_npz(output.folder / "measurement.npz", {"y": measured.y.cpu().numpy()})
    arrays = {"samples": _arrays(spec, x.flatten(0, 1)).reshape(*x.shape[:2], *_hwc(shape))}
    arrays["mean"] = _arrays(spec, mean)
    arrays["std"] = std.permute(0, 2, 3, 1).numpy()
    facts = _facts(result) | {"spread": std.flatten(1).mean(1).tolist()}
    if measured.originals is not None:
        x0 = measured.originals.cpu()
        arrays["originals"] = _arrays(spec, x0)
        error = (mean - x0).flatten(1).square().mean(1)
        facts["psnr_of_mean"] = (-10 * (error / (white - black) ** 2).log10()).tolist()
    write_npz(output.folder / "samples.npz", arrays, compress=True)
    output.finish(facts, ["grid.png", "measurement.npz", "samples.npz"])


def _mean(run: Run, measured: Measured, result: Restored, x: Tensor) -> Tensor:
    """E[x_0 | y] (G, C, H, W); the mean of latents is not that of pictures, so of draws there."""
    if run.codec is not None:
        return x.mean(1)
    return run.to_items(result.mean.to(measured.y)).cpu()


def _row(measured: Measured, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """What stands beside each other for every item, (columns, G, *shape)."""
    operator, y, shape = measured.operator, measured.y.cpu(), tuple(x.shape[2:])
    if operator.gram(shape) is not None:
        back = operator.pinv(y, shape)
    else:  # Fourier and blur: what A' makes of it, at the scale of the picture
        back = operator.adjoint(y, shape)
        back = back * (_norm(mean) / _norm(back))
    first = [] if measured.originals is None else [measured.originals.cpu()]
    parts = [torch.stack([*first, back, mean]), deviation[None], x.transpose(0, 1)[:12]]
    return torch.cat([part.float() for part in parts])


def _norm(x: Tensor) -> Tensor:
    """Of each picture (G, C, H, W), to go with them."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _facts(result: Restored) -> dict[str, Any]:
    facts: dict[str, Any] = {"line": str(result), "method": result.method, "nfe": result.nfe}
    facts |= {"products": result.products, "seconds": result.seconds, "said": result.said}
    facts["residual_over_noise"] = result.residual.tolist()
    if result.ess is not None and result.temper is not None and result.log_evidence is not None:
        facts["effective_share"] = result.ess.tolist()
        facts["temper"] = result.temper.tolist()
        facts["log_evidence"] = result.log_evidence.tolist()
    return facts


def _pixels(spec: DataSpec, x: Tensor) -> Tensor:
    return spec.to_uint8(x.float().cpu())


def _hwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1], shape[2], shape[0]


def _arrays(spec: DataSpec, x: Tensor) -> np.ndarray:
    return _pixels(spec, x).permute(0, 2, 3, 1).numpy()
