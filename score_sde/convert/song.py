"""Checkpoints of score_sde_pytorch (2011.13456): its `ddpm` and `ncsnpp`, whatever their options.

    {"optimizer", "model", "ema": {"shadow_params": [...]}, "step"}

Weights are called ``module.all_modules.<i>.<...>`` with i counting layers in order of execution,
and the averaged ones have no names at all. Nothing in the file says which process, image size or
range of data they were trained for; what can be, is read off the layers, the rest is that of the
published settings and can be given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import check_names
from score_sde.convert.parts import (
    ConversionError,
    Foreign,
    State,
    Transfer,
    as_pair,
    image_spec,
    strip_prefix,
)
from score_sde.nets import UNet
from score_sde.nets.blocks import ResidualBlock

PROCESSES = ("vp", "subvp", "ve")
OPTIONS = ("process", "continuous", "centered", "size")


@dataclass
class Layer:
    """One of `all_modules`: its kind and its channels."""

    kind: str
    inputs: int
    outputs: int
    resamples: bool = False


def _layer(tensors: Mapping[str, Tensor]) -> Layer:
    """What a layer is, from the names and shapes of its tensors."""
    if "Conv_1.weight" in tensors:
        weight = tensors["Conv_0.weight"]
        outputs, inputs = weight.shape[:2]
        # Only a block that resamples has a convolution on its skip path without need.
        return Layer("block", inputs, outputs, "Conv_2.weight" in tensors and inputs == outputs)
    if "NIN_3.W" in tensors:
        channels = len(tensors["NIN_3.W"])
        return Layer("attention", channels, channels)
    if "Conv2d_0.weight" in tensors:
        weight = tensors["Conv2d_0.weight"]
        return Layer("residual", weight.shape[1], weight.shape[0])
    if "Conv_0.weight" in tensors:
        weight = tensors["Conv_0.weight"]
        kind = "combine" if weight.shape[-1] == 1 else "resample"
        return Layer(kind, weight.shape[1], weight.shape[0])
    if "W" in tensors:
        return Layer("fourier", 1, tensors["W"].shape[0])
    if "weight" in tensors:
        weight = tensors["weight"]
        kind = {1: "norm", 2: "linear", 4: "conv"}[weight.ndim]
        return Layer(kind, weight.shape[-1] if weight.ndim == 2 else weight.shape[0], len(weight))
    return Layer("resample", 0, 0)  # resampling without weights


def layers_of(theirs: Mapping[str, Tensor]) -> list[Layer]:
    """The layers in order of execution."""
    by_index: dict[int, dict[str, Tensor]] = {}
    for key, value in theirs.items():
        parts = key.split(".", 2)
        if parts[0] == "all_modules" and len(parts) == 3 and parts[1].isdigit():
            by_index.setdefault(int(parts[1]), {})[parts[2]] = value
    if len(by_index) < 8:
        raise ConversionError(
            "this score_sde_pytorch checkpoint is of another network than ddpm or ncsnpp."
        )
    try:
        return [_layer(by_index.get(i, {})) for i in range(max(by_index) + 1)]
    except (KeyError, ValueError, IndexError) as error:
        raise ConversionError("this score_sde_pytorch checkpoint has an unknown layer.") from error


def net_options(
    theirs: Mapping[str, Tensor], size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Arguments of `UNet`, channels and size included, from names and shapes alone.

    Without a size, attention is taken to be at 16 pixels, as in all published settings.
    """
    layers = layers_of(theirs)
    blocks = [i for i, layer in enumerate(layers) if layer.kind == "block"]
    biggan = any(layers[i].resamples for i in blocks)
    levels = 1 + sum(layer.kind == "resample" or layer.resamples for layer in layers) // 2
    # 2 in the middle, and one more a level of the decoder than a level of the encoder.
    plain_blocks = len(blocks) - 2 * (levels - 1) * biggan
    per_level, rest = divmod(plain_blocks - 2 - levels, 2 * levels)
    if rest or per_level < 1:
        raise ConversionError("this score_sde_pytorch checkpoint is not of an encoder and decoder.")
    middle = blocks[levels * per_level + (levels - 1) * biggan]
    first = next(i for i, layer in enumerate(layers) if layer.kind == "conv")
    kinds = {layer.kind for layer in layers}
    width = layers[first].outputs
    inner: list[int] = []  # channels of each level
    attended: set[int] = set()
    level = 0
    for layer in layers[first + 1 : middle]:
        if layer.kind == "resample" or layer.resamples:
            level += 1
        elif layer.kind == "block":
            inner[level:] = [layer.outputs]
        elif layer.kind == "attention":
            attended.add(level)
    image = next(v for k, v in theirs.items() if k == f"all_modules.{first}.weight").shape[1]
    outputs = layers[-1].inputs
    fourier = "fourier" in kinds
    fir = bool(kinds & {"residual", "combine"})
    combines = [i for i, layer in enumerate(layers) if layer.kind == "combine"]
    cat = any(layers[i + 1].inputs == 2 * layers[i].outputs for i in combines)
    if size is None:
        side = 16 * 2 ** min(attended) if attended else 4 * 2**level
        size = (side, side)
    plain = any(layer.kind == "resample" and not layer.inputs for layer in layers)
    plus = biggan or plain or fir  # else it is `ddpm`
    return dict(
        channels=image,
        size=size,
        out_channels=outputs,
        width=width,
        multipliers=tuple(c // width for c in inner),
        blocks=per_level,
        attention=tuple(size[0] // 2**i for i in sorted(attended)),
        resample="block" if biggan else "plain" if plain else "conv",
        skip_scale=math.sqrt(0.5) if plus else 1.0,
        group_channels=4 if plus else 1,
        embedding="fourier" if fourier else "positional",
        taps=(1, 3, 3, 1) if fir else (1, 1),
        progressive_input="residual" if "residual" in kinds else "skip" if combines else "none",
        progressive_combine="cat" if cat else "sum",
        progressive_output="skip" if _outputs(layers) > 1 else "none",
    )


def _outputs(layers: list[Layer]) -> int:
    """How often a norm is followed by a convolution: the images that are read off."""
    pairs = zip(layers, layers[1:], strict=False)
    return sum(a.kind == "norm" and b.kind == "conv" for a, b in pairs)


def read(found: Mapping[str, Any], given: Mapping[str, Any]) -> Foreign:
    """A training checkpoint {"model", "ema", ...} in our words.

    given, where the file is silent: process ("vp", "subvp", "ve"); whether a "vp" network was
    trained on continuous time, and whether on data in [-1, 1] (centered); size.
    """
    theirs = strip_prefix(found["model"], "module.")
    averaged = _averaged(theirs, found["ema"])
    size = given.get("size")
    options = net_options(theirs, None if size is None else as_pair(size))
    with torch.device("meta"):
        net = UNet(**options)
    channels, side = options.pop("channels"), options.pop("size")
    notes = [] if size is not None else [
        f"images of {side[0]} x {side[1]}, if attention is at 16 pixels as in the published "
        "settings; else --option size=N"
    ]  # fmt: skip
    sde, model, unit = _process(theirs, options, float(found["ema"].get("decay", 0)), given, notes)
    return Foreign(
        layout="score_sde_pytorch",
        net=options,
        sde=sde,
        model=model,
        spec=image_spec(channels, side, unit),
        data_std=model["data_std"],
        averaged=to_ours(net, averaged),
        trained=to_ours(net, theirs),
        step=int(found.get("step", 0)),
        notes=notes,
    )


def _averaged(theirs: Mapping[str, Tensor], ema: Mapping[str, Any]) -> dict[str, Tensor]:
    """The averaged weights, which are a list in the order of the trainable ones."""
    fourier = [k for k in theirs if k.endswith(".W") and theirs[k].ndim == 1]
    names = [k for k in theirs if k != "sigmas" and k not in fourier]
    values = ema["shadow_params"]
    if len(names) != len(values) or any(
        theirs[name].shape != value.shape for name, value in zip(names, values, strict=True)
    ):
        raise ConversionError(
            f"its {len(values)} averaged weights do not match its {len(names)} trainable ones."
        )
    return dict(theirs) | dict(zip(names, values, strict=True))


def _process(
    theirs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    decay: float,
    given: Mapping[str, Any],
    notes: list[str],
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Arguments of the process and of `ScoreModel`, and whether data are in [0, 1]."""
    fourier = options["embedding"] == "fourier"
    guess = "ve" if fourier or 0 < decay < 0.9995 else "vp"
    process = given.get("process", guess)
    check_names([process], PROCESSES, "process", ConversionError)
    if fourier and process != "ve":
        raise ConversionError(f"its Fourier features belong to process ve, not {process}.")
    if "process" not in given:
        why = "Fourier features" if fourier else f"an averaging rate of {decay:g}"
        notes.append(f"process {process}, for its {why}; else --option process=vp, subvp or ve")
    centered = _flag(given, "centered", process != "ve")
    model: dict[str, Any] = {
        "target": "scaled_score" if process == "ve" else "eps",
        "data_std": 0.5 if centered else 0.25,
        "center_input": not centered,
    }
    if process == "ve":
        sigmas = theirs["sigmas"].double() if "sigmas" in theirs else torch.tensor([50.0, 0.01])
        low, high = (float(f"{float(s):.10g}") for s in (sigmas[-1], sigmas[0]))
        sde = {"name": "ve", "sigma_min": low, "sigma_max": high}
        if fourier:
            return sde, model | {"time_input": "log_sigma", "time_scale": 1.0}, not centered
        # Without Fourier features it knows discrete levels only.
        levels = {"time_input": "nearest", "time_table": sigmas.tolist()}
        return sde, model | levels, not centered
    published = options["group_channels"] != 1  # `ddpm` was published for discrete levels first
    continuous = process == "subvp" or _flag(given, "continuous", published)
    if "continuous" not in given and process == "vp":
        kind = "continuous time" if continuous else "discrete levels"
        notes.append(f"trained on {kind}; else --option continuous={not continuous}")
    if continuous:
        sde = {"name": process, "beta_min": 0.1, "beta_max": 20.0}
        return sde, model | {"time_scale": 999.0}, not centered
    steps = len(theirs["sigmas"]) if "sigmas" in theirs else 1000
    sde = {"name": "table", "table": "linear", "steps": steps, "t_min": 1 / steps}
    return sde, model | {"time_scale": float(steps), "time_shift": -1.0}, not centered


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = {"true": True, "false": False}.get(str(given.get(name, default)).lower())
    if value is None:
        raise ConversionError(f"{name} {given[name]!r} must be True or False.")
    return value


def to_ours(net: UNet, theirs: Mapping[str, Tensor]) -> State:
    """Weights under our names, in order of execution."""
    transfer = Transfer(net, theirs, "score_sde_pytorch")
    index = count()

    def following() -> str:
        return f"all_modules.{next(index)}"

    def block(name: str, ours: Any) -> None:
        prefix = following()
        if not isinstance(ours, ResidualBlock):
            if f"{prefix}.Conv_0.weight" in theirs:
                transfer.copy(f"{name}.conv", f"{prefix}.Conv_0")
            return
        for mine, peer in (("norm0", "GroupNorm_0"), ("conv0", "Conv_0"), ("norm1", "GroupNorm_1"),
                           ("conv1", "Conv_1")):  # fmt: skip
            transfer.copy(f"{name}.{mine}", f"{prefix}.{peer}")
        transfer.share(name, f"{prefix}.Dense_0")
        if f"{prefix}.NIN_0.W" in theirs:
            transfer.pixelwise(f"{name}.skip", f"{prefix}.NIN_0", transpose=True)
        elif ours.skip.state_dict():
            transfer.copy(f"{name}.skip", f"{prefix}.Conv_2")
        if ours.attention is not None:
            prefix = following()
            transfer.copy(f"{name}.attention.norm", f"{prefix}.GroupNorm_0")
            three = [
                {"weight": transfer.take(f"{prefix}.NIN_{j}.W").mT,
                 "bias": transfer.take(f"{prefix}.NIN_{j}.b")}
                for j in range(3)
            ]  # fmt: skip
            transfer.qkv(f"{name}.attention.qkv", three)
            transfer.pixelwise(f"{name}.attention.proj", f"{prefix}.NIN_3", transpose=True)

    if "embedding.frequencies" in net.state_dict():
        transfer.ours["embedding.frequencies"] = transfer.take(f"{following()}.W")
    for name in ("embed0", "embed1", "conv_in"):
        transfer.copy(name, following())
    for i, level in enumerate(net.encoder):
        if level.resample is not None:
            block(f"encoder.{i}.resample", level.resample)
        if level.pyramid is not None:
            residual = level.pyramid.kind == "residual"
            name = f"encoder.{i}.pyramid.conv"
            transfer.copy(
                f"{name}.conv" if residual else name,
                f"{following()}.{'Conv2d_0' if residual else 'Conv_0'}",
            )
        for j, each in enumerate(level.blocks):
            block(f"encoder.{i}.blocks.{j}", each)
    for j, each in enumerate(net.middle):
        block(f"middle.{j}", each)
    for i, level in reversed(list(enumerate(net.decoder))):
        if level.resample is not None:
            block(f"decoder.{i}.resample", level.resample)
        for j, each in enumerate(level.blocks):
            block(f"decoder.{i}.blocks.{j}", each)
        if level.output is not None:
            transfer.copy(f"decoder.{i}.output.norm", following())
            transfer.copy(f"decoder.{i}.output.conv", following())
    return transfer.finish(ignored=["sigmas"])
