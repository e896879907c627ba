"""EDM's networks (2206.00364) in our words; their files are read by `edm_pickle`.

The four wrappers D(x; sigma) are processes and targets of ours:

    EDMPrecond    sigma = t                  target F           label log(sigma)/4
    VPPrecond     VP, x / sqrt(1 + sigma^2)  target eps         label (M - 1) t
    VEPrecond     VE                         sigma * score      label log(sigma/2)
    iDDPMPrecond  sigma = t                  target eps         label of the nearest table entry
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import check_names
from score_sde.convert.edm_pickle import load_pickle
from score_sde.convert.parts import (
    ConversionError,
    Foreign,
    State,
    Transfer,
    as_pair,
    differences,
    halves_swapped,
    image_spec,
    strip_prefix,
)
from score_sde.nets import UNet

WRAPPERS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")


def read(path: Path, given: Mapping[str, Any]) -> Foreign:
    """A pickle of EDM in our words; given is not used, everything is in the file."""
    kind, said, tensors = load_pickle(path)
    check_names([kind], WRAPPERS, "EDM wrapper", ConversionError)
    adm = kind in ("EDMPrecond", "iDDPMPrecond")
    inner = str(said.get("model_type", "DhariwalUNet" if adm else "SongUNet"))
    images = int(said.get("img_channels", 3))
    # It predicts variances too, which EDM never looks at: they are those of steps of DDPM's chain,
    # that is of beta and beta~ there, and the process here is another.
    learned = 2 if kind == "iDDPMPrecond" else 1
    said = {"label_dim": 0} | said | {"in_channels": images, "out_channels": images * learned}
    theirs = strip_prefix(tensors, "model.")
    options = net_options(inner, said)
    channels, size = options.pop("channels"), options.pop("size")
    defaults = {"model_channels": options["width"], "channel_mult": options["multipliers"],
                "num_blocks": options["blocks"], "augment_dim": 0}  # fmt: skip
    differences(defaults | said, _described(theirs))
    with torch.device("meta"):
        net = UNet(channels, size, **options)
    weights = to_ours(net, {key: v for key, v in theirs.items() if key != "u"})
    sde, model = _wrapper(kind, said, theirs)
    return Foreign(
        layout=f"EDM {kind} of {inner}",
        net=options,
        sde=sde,
        model=model,
        spec=image_spec(channels, size, classes=options["classes"]),
        data_std=float(said.get("sigma_data", 0.5)),
        averaged=weights,
        trained=weights,
    )


def _wrapper(
    kind: str, said: Mapping[str, Any], theirs: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the process and of `ScoreModel`; see the module."""
    sd = float(said.get("sigma_data", 0.5))
    if kind == "VPPrecond":
        low = float(said.get("beta_min", 0.1))
        sde = {"name": "vp", "beta_min": low, "beta_max": low + float(said.get("beta_d", 19.9))}
        return sde, {"target": "eps", "data_std": sd, "time_scale": said.get("M", 1000) - 1.0}
    if kind == "VEPrecond":
        ends = {key: float(said.get(key, value)) for key, value in
                (("sigma_min", 0.02), ("sigma_max", 100.0))}  # fmt: skip
        return {"name": "ve", **ends}, {
            "target": "scaled_score", "data_std": sd, "time_input": "log_sigma",
            "time_scale": 1.0, "time_shift": -math.log(2),
        }  # fmt: skip
    if kind == "EDMPrecond":
        low, high = (float(said.get(k, v)) for k, v in (("sigma_min", 0), ("sigma_max", math.inf)))
        sde = {"name": "edm", "t_min": max(low, 0.002), "t_max": min(high, 80.0)}
        return sde, {"target": "F", "data_std": sd, "time_input": "log_sigma"}
    levels = theirs["u"].double()[:-1].flip(0)  # ascending, without the 0 at the end
    sde = {"name": "edm", "t_min": max(float(levels[0]), 0.002), "t_max": 80.0}
    return sde, {
        "target": "eps", "data_std": 1.0, "scale_input": True, "time_input": "nearest",
        "time_table": levels.tolist(),
    }  # fmt: skip


def _described(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that can be read off names and shapes."""
    found = re.compile(r"enc\.(\d+)x\d+_block(\d+)\.conv0\.weight").fullmatch
    inner = {int(m[1]): len(v) for k, v in theirs.items() if (m := found(k))}
    stem = [v for k, v in theirs.items() if re.fullmatch(r"enc\.(\d+)x\d+_conv\.weight", k)]
    if not inner or not stem:
        raise ConversionError("its tensors are not those of SongUNet or DhariwalUNet.")
    width, sides = len(stem[0]), sorted(inner, reverse=True)
    blocks = [int(m[2]) for k in theirs if (m := found(k)) and int(m[1]) == sides[0]]
    labels = {
        field: theirs[key].shape[1] if key in theirs else 0
        for field, key in (("label_dim", "map_label.weight"), ("augment_dim", "map_augment.weight"))
    }
    return {
        "img_resolution": sides[0],
        "img_channels": stem[0].shape[1],
        "model_channels": width,
        "channel_mult": [inner[side] // width for side in sides],
        "num_blocks": max(blocks) + 1,
        **labels,
    }


def net_options(kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `UNet` from those of ``kind``, SongUNet or DhariwalUNet."""
    check_names([kind], ("SongUNet", "DhariwalUNet"), "EDM network", ConversionError)
    adm = kind == "DhariwalUNet"
    size = as_pair(said["img_resolution"])
    multipliers = tuple(said.get("channel_mult", (1, 2, 3, 4) if adm else (1, 2, 2, 2)))
    width = said.get("model_channels", 192 if adm else 128)
    attended = tuple(said.get("attn_resolutions", (32, 16, 8) if adm else (16,)))
    heights = [size[0] >> level for level in range(len(multipliers))]
    options: dict[str, Any] = dict(
        channels=said["in_channels"],
        size=size,
        out_channels=said["out_channels"],
        width=width,
        multipliers=multipliers,
        blocks=said.get("num_blocks", 3 if adm else 4),
        attention=tuple(h for h in heights if h in attended),
        dropout=said.get("dropout", 0.1),
        classes=said.get("label_dim", 0),
        class_dropout=said.get("label_dropout", 0.0),
        augment=said.get("augment_dim", 0),
    )
    if said.get("channel_mult_emb", 4) != 4:
        raise ConversionError("channel_mult_emb other than 4 is not supported.")
    if adm:
        # Heads of 64 channels; a narrower block has none, and then no attention.
        wide = [h for h, m in zip(heights, multipliers, strict=True) if width * m >= 64]
        middle = ("block", "attention", "block") if heights[-1] in wide else ("block", "block")
        return options | dict(
            attention=tuple(h for h in options["attention"] if h in wide), middle=middle,
            decoder_attention="every", head_channels=64, modulation="scale_shift",
            skip_conv=False, norm_eps=1e-5, embedding="positional_adm", class_embedding="output",
        )  # fmt: skip
    embedding = said.get("embedding_type", "positional")
    if said.get("channel_mult_noise", 1) != (2 if embedding == "fourier" else 1):
        raise ConversionError("channel_mult_noise other than 2 (fourier), 1 (else) is unsupported.")
    return options | dict(
        skip_scale=math.sqrt(0.5),
        embedding="fourier" if embedding == "fourier" else "positional_edm",
        taps=tuple(said.get("resample_filter", (1, 1))),
        progressive_input=_pyramid(said, "encoder_type"),
        progressive_output=_pyramid(said, "decoder_type"),
    )


def _pyramid(said: Mapping[str, Any], key: str) -> str:
    kind = str(said.get(key, "standard"))
    return "none" if kind == "standard" else kind


def to_ours(net: UNet, theirs: Mapping[str, Tensor]) -> State:
    """Weights under our names; theirs are those of SongUNet or DhariwalUNet."""
    transfer = Transfer(net, theirs, "EDM")
    adm = net.class_embedding == "output"
    sides = [net.size[0] >> level for level in range(len(net.encoder))]
    _copy_embedding(transfer, net, adm)
    transfer.copy("conv_in", f"enc.{sides[0]}x{sides[0]}_conv")
    for i, level in enumerate(net.encoder):
        prefix = f"enc.{sides[i]}x{sides[i]}"
        if level.resample is not None:
            _copy_block(transfer, f"encoder.{i}.resample", level.resample, f"{prefix}_down")
        if level.pyramid is not None:
            residual = level.pyramid.kind == "residual"
            name = f"encoder.{i}.pyramid.conv"
            transfer.copy(
                f"{name}.conv" if residual else name,
                f"{prefix}_aux_{'residual' if residual else 'skip'}",
            )
        for j, each in enumerate(level.blocks):
            _copy_block(transfer, f"encoder.{i}.blocks.{j}", each, f"{prefix}_block{j}")
    for j, each in enumerate(net.middle):
        _copy_block(transfer, f"middle.{j}", each, f"dec.{sides[-1]}x{sides[-1]}_in{j}")
    for i, level in enumerate(net.decoder):
        prefix = f"dec.{sides[i]}x{sides[i]}"
        if level.resample is not None:
            _copy_block(transfer, f"decoder.{i}.resample", level.resample, f"{prefix}_up")
        for j, each in enumerate(level.blocks):
            _copy_block(transfer, f"decoder.{i}.blocks.{j}", each, f"{prefix}_block{j}")
        if level.output is not None:
            for mine, peer in (("norm", "out_norm"), ("conv", "out_conv")):
                theirs_name = peer if adm else f"{prefix}_aux_{mine}"
                transfer.copy(f"decoder.{i}.output.{mine}", theirs_name)
    return transfer.finish(ignored=[key for key in theirs if key.endswith("resample_filter")])


def _copy_embedding(transfer: Transfer, net: UNet, adm: bool) -> None:
    if "embedding.frequencies" in net.state_dict():
        transfer.ours["embedding.frequencies"] = transfer.take("map_noise.freqs")
    transfer.copy("embed0", "map_layer0")
    transfer.copy("embed1", "map_layer1")
    if net.augment:
        transfer.copy("embed_augment", "map_augment", ("weight",))
    if net.classes:
        transfer.copy("embed_class", "map_label", ("weight",) if adm else ("weight", "bias"))
    if adm:  # their features are [cos, sin], ours [sin, cos]
        transfer.ours["embed0.weight"] = halves_swapped(transfer.ours["embed0.weight"])
        if net.augment:
            swapped = halves_swapped(transfer.ours["embed_augment.weight"].mT).mT
            transfer.ours["embed_augment.weight"] = swapped


def _copy_block(transfer: Transfer, name: str, ours: Any, prefix: str) -> None:
    for leaf in ("norm0", "conv0", "norm1", "conv1"):
        transfer.copy(f"{name}.{leaf}", f"{prefix}.{leaf}")
    transfer.share(name, f"{prefix}.affine")
    if ours.skip.state_dict():
        transfer.copy(f"{name}.skip", f"{prefix}.skip")
    if ours.attention is not None:
        attention = f"{name}.attention"
        transfer.copy(f"{attention}.norm", f"{prefix}.norm2")
        transfer.copy(f"{attention}.proj", f"{prefix}.proj")
        for leaf in ("weight", "bias"):  # rows run q, k, v of one channel after the other
            rows = transfer.take(f"{prefix}.qkv.{leaf}")
            rows = rows.reshape(-1, 3, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
            transfer.ours[f"{attention}.qkv.{leaf}"] = rows
