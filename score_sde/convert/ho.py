"""Ho's DDPM (2006.11239) in its PyTorch versions: `temb.dense.0`, `down.0.block.0.norm1`, ...

The same network as diffusers' under older names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from score_sde.convert import diffusers
from score_sde.convert.parts import ConversionError, Foreign, as_pair

OPTIONS = ("size",)
RENAMED = (
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"^(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.(nin|conv)_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def read(theirs: Mapping[str, Tensor], given: Mapping[str, Any]) -> Foreign:
    """A state dict in our words. given: size, else attention is taken to be at 16 pixels."""
    renamed = {}
    for key, value in theirs.items():
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    top = max((int(m[1]) for k in renamed if (m := re.match(r"up_blocks\.(\d+)", k))), default=-1)
    renamed = {
        re.sub(r"^up_blocks\.(\d+)", lambda m: f"up_blocks.{top - int(m[1])}", key): value
        for key, value in renamed.items()
    }
    found = diffusers.described(renamed)
    attended = [i for i, there in enumerate(found["attended"]) if there]
    if "size" in given:
        size = as_pair(given["size"])
    elif attended:
        size = as_pair(16 * 2 ** attended[0])
    else:
        raise ConversionError("this DDPM checkpoint does not tell its image size: --option size=N.")
    names = ["AttnDownBlock2D" if there else "DownBlock2D" for there in found["attended"]]
    said = {
        "sample_size": size, "down_block_types": names, "downsample_padding": 0, "norm_eps": 1e-6,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(names)],
        "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None,
        **{k: v for k, v in found.items() if k != "attended"},
    }  # fmt: skip
    foreign = diffusers.read(said, {"beta_schedule": "linear"}, renamed, {})
    foreign.layout = "Ho's DDPM"
    if "size" not in given:
        foreign.notes.append(
            f"images of {size[0]} x {size[1]}, if attention is at 16 pixels; else --option size=N"
        )
    return foreign
