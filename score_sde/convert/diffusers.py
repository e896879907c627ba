"""diffusers' folders: `UNet2DModel` with DDPM's blocks (2006.11239) or NCSN++'s (2011.13456).

config.json  diffusion_pytorch_model.safetensors        in the folder, or in its unet/
scheduler_config.json                                   in the folder, or in scheduler/
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from score_sde.convert.parts import (
    ConversionError,
    Foreign,
    State,
    Transfer,
    as_pair,
    differences,
    halves_swapped,
    image_spec,
)
from score_sde.convert.schedulers import process_of
from score_sde.nets import UNet
from score_sde.nets.blocks import ResidualBlock

DOWN = ("DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")
# From 0.15 on the first of each pair; files written before have the second.
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
LEAVES = {"norm0": "norm1", "conv0": "conv1", "norm1": "norm2", "conv1": "conv2"}


OPTIONS = ("size",)


def read(
    said: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    theirs: Mapping[str, Tensor],
    given: Mapping[str, Any],
) -> Foreign:
    """A model in our words: its config.json, its scheduler_config.json if any, its weights."""
    said = {**said, **({"sample_size": given["size"]} if "size" in given else {})}
    options = net_options(said)
    found = described(theirs)
    attended = ["Attn" in name for name in said.get("down_block_types") or ()]
    differences(
        {"in_channels": 3, "out_channels": 3, "layers_per_block": 2, "attended": attended, **said},
        {key: value for key, value in found.items() if key != "attended" or attended},
    )
    channels, size = options.pop("channels"), options.pop("size")
    if options.get("out_channels", channels) not in (channels, 2 * channels):
        raise ConversionError(
            f"this U-Net has {channels} channels in and {options['out_channels']} out: it is told "
            "a second picture, or predicts something else than its input's noise; neither is known."
        )
    with torch.device("meta"):
        net = UNet(channels, size, **options)
    weights = to_ours(net, theirs, bool(said.get("flip_sin_to_cos", True)))
    centred = bool(said.get("center_input_sample", False))
    notes: list[str] = []
    sde, model = _process(scheduler, net.enlarge is not None, notes)
    if (scheduler or {}).get("variance_type") == "learned_range":
        model["learned_variance"] = net.out_channels == 2 * channels
    return Foreign(
        layout=f"diffusers {'NCSN++' if net.enlarge is not None else 'DDPM'} U-Net",
        net=options,
        sde=sde,
        model=model | {"data_std": 0.25 if centred else 0.5, "center_input": centred},
        spec=image_spec(channels, size, centred, options["classes"]),
        data_std=0.25 if centred else 0.5,
        averaged=weights,
        trained=weights,
        notes=notes,
    )


def _process(
    scheduler: Mapping[str, Any] | None, skip: bool, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the process and of `ScoreModel`."""
    said = scheduler or {}
    if skip:
        if not scheduler:
            notes.append("no scheduler_config.json: sigma from 0.01 to 1348, diffusers' defaults")
        low, high = said.get("sigma_min", 0.01), said.get("sigma_max", 1348.0)
        sde = {"name": "ve", "sigma_min": float(low), "sigma_max": float(high)}
        return sde, {"target": "scaled_score", "time_input": "log_sigma", "time_scale": 1.0}
    return process_of(scheduler, notes)


def described(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that can be read off names and shapes; attended: levels with attention."""
    inner: dict[int, int] = {}
    blocks = 0
    for key, value in theirs.items():
        match = re.fullmatch(r"down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight", key)
        if match:
            inner[int(match[1])] = len(value)
            blocks = max(blocks, int(match[2]) + 1)
    if not inner or "conv_in.weight" not in theirs or "conv_out.weight" not in theirs:
        raise ConversionError("its tensors are not those of UNet2DModel.")
    return {
        "in_channels": theirs["conv_in.weight"].shape[1],
        "out_channels": len(theirs["conv_out.weight"]),
        "block_out_channels": [inner[i] for i in sorted(inner)],
        "layers_per_block": blocks,
        "attended": [
            any(key.startswith(f"down_blocks.{i}.attentions.") for key in theirs)
            for i in sorted(inner)
        ],
    }


def net_options(said: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `UNet` from those of UNet2DModel (the contents of config.json)."""
    down = list(said.get("down_block_types") or ["DownBlock2D"] + ["AttnDownBlock2D"] * 3)
    up = list(said.get("up_block_types") or ["AttnUpBlock2D"] * 3 + ["UpBlock2D"])
    for name in (*down, *up):
        if name not in DOWN + UP:
            raise ConversionError(f"diffusers' block {name} is not supported; {DOWN + UP} are.")
    widths = list(said.get("block_out_channels") or (224, 448, 672, 896))
    skip = "Skip" in down[0]
    if any(("Skip" in name) != skip for name in (*down, *up)):
        raise ConversionError("diffusers' Skip blocks together with others are not supported.")
    attended = ["Attn" in name for name in down]
    if ["Attn" in name for name in reversed(up)] != attended:
        raise ConversionError(
            f"attention at other levels on the way up ({up}) than down ({down}) is not supported."
        )
    _refuse(said, skip)
    if said.get("sample_size") is None:
        raise ConversionError("config.json has no sample_size: give it with --option size=32.")
    size = as_pair(said["sample_size"])
    heights = [size[0] >> level for level in range(len(widths))]
    options: dict[str, Any] = dict(
        channels=said.get("in_channels", 3),
        size=size,
        out_channels=said.get("out_channels", 3),
        width=widths[0],
        multipliers=tuple(w // widths[0] for w in widths),
        blocks=said.get("layers_per_block", 2),
        attention=tuple(h for h, here in zip(heights, attended, strict=True) if here),
        middle=("block", "attention", "block") if said.get("add_attention", True)
        else ("block", "block"),
        head_channels=said.get("attention_head_dim", 8),
        norm_eps=said.get("norm_eps", 1e-5),
        dropout=said.get("dropout", 0.0),
        class_embedding="output",
        classes=said.get("num_class_embeds") or 0,
    )  # fmt: skip
    if skip:
        options |= dict(
            group_channels=4, skip_scale=math.sqrt(0.5), embedding="fourier", taps=(1, 3, 3, 1),
            progressive_input="skip", progressive_output="skip",
        )  # fmt: skip
        return options | {"norm_groups": skip_groups(options, said.get("norm_num_groups", 32))}
    shift = said.get("freq_shift", 0)
    return options | dict(
        group_channels=1,
        groups=said.get("norm_num_groups", 32),
        resample="conv" if said.get("downsample_padding", 1) == 0 else "conv_symmetric",
        decoder_attention="every",
        embedding="positional" if shift == 1 else "positional_adm",
    )


def skip_groups(options: Mapping[str, Any], groups: int | None) -> dict[str, int]:
    """Norms of Skip blocks whose group counts are not NCSN++'s min(channels / 4, 32), by name.

    Where blocks are narrower than 128 channels. Attention has 32 groups at any width, the first
    norm of a residual block of AttnSkipUpBlock2D has min(inputs + skipped // 4, 32), and the middle
    and the last norm have ``groups`` (norm_num_groups) unless that is None.
    """
    with torch.device("meta"):
        net = UNet(**{**options, "norm_groups": None})
    widths = [level.blocks[-1].conv1.out_channels for level in net.decoder]
    found: dict[str, int] = {}
    for i, level in enumerate(net.decoder):
        for j, block in enumerate(level.blocks if level.blocks[-1].attention else ()):
            skipped = widths[max(i - 1, 0)] if j == len(level.blocks) - 1 else widths[i]
            inputs = block.norm0.num_channels - skipped
            found[f"decoder.{i}.blocks.{j}.norm0"] = min(inputs + skipped // 4, 32)
    norms = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.GroupNorm)}
    for name in norms:
        if name.startswith("middle.") or name == "decoder.0.output.norm":
            found |= {name: groups} if groups else {}
        elif name.endswith("attention.norm"):
            found[name] = 32
    return {name: count for name, count in found.items() if norms[name].num_groups != count}


def _refuse(said: Mapping[str, Any], skip: bool) -> None:
    """ConversionError for settings that our network has no option for."""
    widths = said.get("block_out_channels") or (224,)
    wanted: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "act_fn": ("silu", ("silu", "swish")),
        "time_embedding_type": ("positional", ("fourier",) if skip else ("positional",)),
        "resnet_time_scale_shift": ("default", ("default",)),
        "downsample_type": ("conv", ("conv",)),
        "upsample_type": ("conv", ("conv",)),
        "class_embed_type": (None, (None,)),
        "attn_norm_num_groups": (None, (None,)),
        "freq_shift": (0, (0, 1)),
        "mid_block_scale_factor": (1, (1, 1.0)),
    }
    if skip:
        del wanted["mid_block_scale_factor"]
        if not math.isclose(said.get("mid_block_scale_factor", 1), math.sqrt(2), rel_tol=1e-6):
            raise ConversionError("Skip blocks go with mid_block_scale_factor sqrt(2).")
        if (said.get("in_channels", 3), said.get("out_channels", 3)) != (3, 3):
            raise ConversionError("diffusers has Skip blocks for images of 3 channels only.")
    for key, (default, allowed) in wanted.items():
        value = said.get(key, default)
        if value not in allowed:
            raise ConversionError(
                f"{key} = {value!r} is not supported; {' or '.join(map(repr, allowed))} is."
            )
    if any(w % widths[0] for w in widths):
        raise ConversionError(f"block_out_channels {list(widths)} are not multiples of the first.")


def to_ours(net: UNet, theirs: Mapping[str, Tensor], flipped: bool) -> State:
    """Weights under our names; flipped is their flip_sin_to_cos."""
    transfer = Transfer(net, theirs, "diffusers")
    for mine, peer, kind in names(net):
        if kind == "layer":
            transfer.copy(mine, peer)
        elif kind == "pixelwise":
            transfer.pixelwise(mine, peer)
        elif kind == "share":
            transfer.share(mine, peer)
        elif kind == "frequencies":
            transfer.ours[mine] = transfer.take(peer)
        elif kind == "classes":
            transfer.ours[mine] = transfer.take(peer).mT
        else:
            _attention_to_ours(transfer, mine, peer)
    if flipped and "embedding.frequencies" not in transfer.ours:
        transfer.ours["embed0.weight"] = halves_swapped(transfer.ours["embed0.weight"])
    return transfer.finish()


def _attention_to_ours(transfer: Transfer, mine: str, peer: str) -> None:
    old = f"{peer}.query.weight" in transfer.theirs
    q, k, v, out = (f"{peer}.{b if old else a}" for a, b in ATTENTION.items())
    transfer.copy(f"{mine}.norm", f"{peer}.group_norm")
    three = [
        {leaf: transfer.take(f"{name}.{leaf}").flatten(1 if leaf == "weight" else 0)
         for leaf in ("weight", "bias")}
        for name in (q, k, v)
    ]  # fmt: skip
    transfer.qkv(f"{mine}.qkv", three)
    transfer.pixelwise(f"{mine}.proj", out)


def names(net: UNet) -> list[tuple[str, str, str]]:
    """(our name, theirs, how it is held) of every layer."""
    found: list[tuple[str, str, str]] = []
    top = len(net.encoder) - 1
    skip = net.enlarge is not None

    def block(mine: str, ours: Any, peer: str, attention: str = "") -> None:
        if not isinstance(ours, ResidualBlock):
            found.append((f"{mine}.conv", f"{peer}.conv", "layer"))
            return
        found.extend((f"{mine}.{a}", f"{peer}.{b}", "layer") for a, b in LEAVES.items())
        found.append((mine, f"{peer}.time_emb_proj", "share"))
        if ours.skip.state_dict():
            found.append((f"{mine}.skip", f"{peer}.conv_shortcut", "pixelwise"))
        if ours.attention is not None:
            found.append((f"{mine}.attention", attention, "attention"))

    if "embedding.frequencies" in net.state_dict():
        found.append(("embedding.frequencies", "time_proj.weight", "frequencies"))
    if net.classes:
        found.append(("embed_class.weight", "class_embedding.weight", "classes"))
    for mine, peer in (("embed0", "time_embedding.linear_1"), ("embed1", "time_embedding.linear_2"),
                       ("conv_in", "conv_in")):  # fmt: skip
        found.append((mine, peer, "layer"))
    for i, level in enumerate(net.encoder):
        here, before = f"down_blocks.{i}", f"down_blocks.{i - 1}"
        if level.resample is not None:
            peer = f"{before}.resnet_down" if skip else f"{before}.downsamplers.0"
            block(f"encoder.{i}.resample", level.resample, peer)
        if level.pyramid is not None:
            found.append((f"encoder.{i}.pyramid.conv", f"{before}.skip_conv", "layer"))
        for j, each in enumerate(level.blocks):
            block(f"encoder.{i}.blocks.{j}", each, f"{here}.resnets.{j}", f"{here}.attentions.{j}")
    for j, each in enumerate(net.middle):
        block(f"middle.{j}", each, f"mid_block.resnets.{j}", "mid_block.attentions.0")
    for i, level in enumerate(net.decoder):
        here, before = f"up_blocks.{top - i}", f"up_blocks.{top - i - 1}"
        if level.resample is not None:
            peer = f"{before}.resnet_up" if skip else f"{before}.upsamplers.0"
            block(f"decoder.{i}.resample", level.resample, peer)
        for j, each in enumerate(level.blocks):
            attention = f"{here}.attentions.{0 if skip else j}"
            block(f"decoder.{i}.blocks.{j}", each, f"{here}.resnets.{j}", attention)
        if level.output is not None:
            norm = f"{here}.skip_norm" if i else "conv_norm_out"
            last = f"{here}.skip_conv" if i else "conv_out"
            found += [(f"decoder.{i}.output.norm", norm, "layer"),
                      (f"decoder.{i}.output.conv", last, "layer")]  # fmt: skip
    return found
