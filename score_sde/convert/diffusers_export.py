"""Our U-Nets as diffusers' `UNet2DModel`, where that has them: settings, weights and scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from score_sde.convert.diffusers import ATTENTION, names, skip_groups
from score_sde.convert.parts import ConversionError, State
from score_sde.convert.schedulers import TARGETS
from score_sde.nets import UNet

WANTED: dict[str, tuple[Any, ...]] = {  # what UNet2DModel can be of our settings
    "patch": (1,), "augment": (0,), "modulation": ("shift",), "progressive_combine": ("sum",),
    "middle": (["block", "attention", "block"],), "classes": (0,),
}  # fmt: skip
OF_SKIP_BLOCKS: dict[str, tuple[Any, ...]] = {  # with NCSN++'s pyramids
    "resample": ("block",), "progressive_output": ("skip",), "embedding": ("fourier",),
    "taps": ([1, 3, 3, 1],), "group_channels": (4,), "groups": (32,), "channels": (3,),
    "skip_conv": (True,), "decoder_attention": ("last",), "skip_scale": (0.5**0.5,),
}  # fmt: skip
OF_PLAIN_BLOCKS: dict[str, tuple[Any, ...]] = {
    "resample": ("conv", "conv_symmetric"), "progressive_input": ("none",),
    "progressive_output": ("none",), "taps": ([1, 1],), "group_channels": (1,),
    "skip_scale": (1, 1.0), "embedding": ("positional", "positional_adm"),
}  # fmt: skip


def check_options(options: Mapping[str, Any]) -> None:
    """ConversionError that says which part of the network diffusers does not have."""
    skip = options["progressive_input"] == "skip"
    wanted = WANTED | (OF_SKIP_BLOCKS if skip else OF_PLAIN_BLOCKS)
    wanted |= {"decoder_blocks": (None, options["blocks"] + 1)}
    if options["attention"] and not skip:
        wanted["decoder_attention"] = ("every",)
    for key, allowed in wanted.items():
        value = options[key]
        value = list(value) if isinstance(value, tuple) else value
        if value not in allowed:
            raise ConversionError(
                f"diffusers' UNet2DModel has no network with net.{key}={value!r} (only "
                f"{' or '.join(map(repr, allowed))}). Use --format safetensors."
            )


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """UNet2DModel's settings for a `UNet` of these options (all of them, channels and size too).

    ConversionError says which part of the network diffusers does not have.
    """
    check_options(options)
    skip = options["progressive_input"] == "skip"
    height = options["size"][0]
    attended = [height // 2**i in options["attention"] for i in range(len(options["multipliers"]))]
    names = [("Attn" if there else "") + ("Skip" if skip else "") for there in attended]
    square = options["size"][0] == options["size"][1]
    widths = [options["width"] * m for m in options["multipliers"]]
    regrouped = options["norm_groups"] or {}
    groups = regrouped.get("decoder.0.output.norm") if skip else options["groups"]
    if regrouped != (skip_groups(options, groups) if skip else {}):
        raise ConversionError(
            "diffusers' blocks of these widths have other group counts than this network (Skip "
            "blocks of less than 128 channels do). Use --format safetensors."
        )
    heads = options["heads"]
    attended_widths = {w for w, there in zip(widths, attended, strict=True) if there} | {widths[-1]}
    if heads > 1 and len(attended_widths) > 1:
        raise ConversionError("diffusers counts channels per head, which differ between levels.")
    size = None if heads == 1 else widths[-1] // heads
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if square else list(options["size"]),
        "in_channels": options["channels"],
        "out_channels": options["out_channels"] or options["channels"],
        "center_input_sample": False,
        "time_embedding_type": "fourier" if skip else "positional",
        "freq_shift": 1 if options["embedding"] == "positional" else 0,
        "flip_sin_to_cos": False,
        "down_block_types": [f"{name}DownBlock2D" for name in names],
        "up_block_types": [f"{name}UpBlock2D" for name in reversed(names)],
        "block_out_channels": widths,
        "layers_per_block": options["blocks"],
        "mid_block_scale_factor": math.sqrt(2) if skip else 1,
        "downsample_padding": 0 if options["resample"] == "conv" else 1,
        "dropout": options["dropout"],
        "act_fn": "silu",
        "attention_head_dim": options["head_channels"] or size,
        "norm_num_groups": groups,
        "norm_eps": options["norm_eps"],
    }


def to_theirs(net: UNet) -> State:
    """Weights of a `UNet` under the names of UNet2DModel."""
    ours = net.state_dict()
    theirs: State = {}
    order = [name for name, block in net.modulated() if block.modulation_channels]
    sizes = [size for size in net.shares if size]
    shares = {
        leaf: dict(zip(order, ours[f"modulation.{leaf}"].split(sizes), strict=True))
        for leaf in ("weight", "bias")
    }
    for mine, peer, kind in names(net):
        if kind == "frequencies":
            theirs[peer] = ours[mine]
            continue
        for leaf in ("weight", "bias"):
            if kind == "share":
                theirs[f"{peer}.{leaf}"] = shares[leaf][mine]
            elif kind == "attention":
                theirs[f"{peer}.group_norm.{leaf}"] = ours[f"{mine}.norm.{leaf}"]
                parts = [*ours[f"{mine}.qkv.{leaf}"].chunk(3), ours[f"{mine}.proj.{leaf}"]]
                for name, part in zip(ATTENTION, parts, strict=True):
                    theirs[f"{peer}.{name}.{leaf}"] = part.flatten(1 if leaf == "weight" else 0)
            else:
                theirs[f"{peer}.{leaf}"] = ours[f"{mine}.{leaf}"]
    return {key: value.clone().contiguous() for key, value in theirs.items()}


def scheduler(sde: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any] | None:
    """scheduler_config.json for a process and a `ScoreModel` of these arguments, if there is one.

    diffusers' schedulers stand for DDPM's linear and cosine tables, and for VE.
    """
    if sde["name"] == "ve" and model.get("target") == "scaled_score":
        return {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000,
                "sigma_min": sde["sigma_min"], "sigma_max": sde["sigma_max"]}  # fmt: skip
    targets = {mine: peer for peer, mine in TARGETS.items()}
    steps = sde.get("steps", 1000)
    told = (model.get("time_scale"), model.get("time_shift", 0.0))
    tables = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    if sde["name"] != "table" or told != (steps, -1.0) or model.get("target") not in targets:
        return None
    table = sde.get("table", "linear")
    if not isinstance(table, str):
        beta: dict[str, Any] = {"trained_betas": list(table)}
    else:
        beta = {"beta_schedule": tables[table], "beta_start": 0.1 / steps, "beta_end": 20 / steps}
    variance = "learned_range" if model.get("learned_variance") else "fixed_large"
    return {"_class_name": "DDPMScheduler", "num_train_timesteps": steps, "clip_sample": True,
            "variance_type": variance, "prediction_type": targets[model["target"]],
            **beta}  # fmt: skip
