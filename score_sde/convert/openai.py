"""OpenAI's U-Nets: improved-diffusion (2102.09672) and guided-diffusion, ADM (2105.05233).

A file holds tensors and nothing else. Heads, the order of q, k and v, the schedule and the size
of images are those of the published models unless given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    halves_swapped,
    image_spec,
)
from score_sde.nets import UNet
from score_sde.nets.blocks import ResidualBlock

OPTIONS = ("size", "heads", "head_channels", "attention_order", "schedule", "steps")
ORDERS = ("legacy", "new")


def read(theirs: Mapping[str, Tensor], given: Mapping[str, Any]) -> Foreign:
    """A state dict in our words.

    given: size; heads or head_channels; attention_order "legacy" (q, k, v within each head) or
    "new"; schedule "linear" or "cosine"; steps of the chain.
    """
    options = net_options(theirs, given)
    channels, size = options.pop("channels"), options.pop("size")
    guided = options["resample"] == "block"
    sixty_four = guided and options["width"] == 192
    order = given.get("attention_order", "new" if sixty_four else "legacy")
    schedule = given.get("schedule", "linear" if guided and not sixty_four else "cosine")
    steps = int(given.get("steps", 1000 if guided else 4000))
    check_names([order], ORDERS, "attention_order", ConversionError)
    with torch.device("meta"):
        net = UNet(channels, size, **options)
    weights = to_ours(net, theirs, order)
    model = {"target": "eps", "data_std": 0.5, "time_scale": 1000.0, "time_shift": -1000 / steps}
    model |= {"learned_variance": options["out_channels"] == 2 * channels}
    heads = options["head_channels"] or options["heads"]
    kind = "channels each" if options["head_channels"] else "of them"
    return Foreign(
        layout="guided-diffusion" if guided else "improved-diffusion",
        net=options,
        sde={"name": "table", "table": schedule, "steps": steps, "t_min": 1 / steps},
        model=model,
        spec=image_spec(channels, size, classes=options["classes"]),
        data_std=0.5,
        averaged=weights,
        trained=weights,
        notes=[
            f"images of {size[0]} x {size[1]}, attention heads: {heads} {kind} in {order} order, "
            f"{schedule} schedule of {steps} steps, as in the published models; else --option "
            "size=, heads= or head_channels=, attention_order=, schedule=, steps="
        ],
    )


def net_options(theirs: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `UNet`, channels and size included, from names and shapes."""
    try:
        width = theirs["time_embed.0.weight"].shape[1]
        stem, last = theirs["input_blocks.0.0.weight"], theirs["out.2.weight"]
        inner: list[int] = []
        attended: set[int] = set()
        level = blocks = 0
        guided = scaled = False
        count = 1 + max(int(m[1]) for k in theirs if (m := re.match(r"input_blocks\.(\d+)", k)))
        strides = _strides(theirs, count)
        for i in range(1, count):
            prefix = f"input_blocks.{i}"
            if i in strides:
                level += 1
                guided = f"{prefix}.0.op.weight" not in theirs
                continue
            conv = theirs[f"{prefix}.0.in_layers.2.weight"]
            scaled = len(theirs[f"{prefix}.0.emb_layers.1.weight"]) == 2 * len(conv)
            inner[level:] = [len(conv)]
            blocks += level == 0
            if f"{prefix}.1.qkv.weight" in theirs:
                attended.add(level)
    except (KeyError, ValueError, IndexError) as error:
        raise ConversionError(f"this OpenAI checkpoint is not of a U-Net (no {error}).") from error
    if len(stem) != width or any(c % width for c in inner):
        raise ConversionError(
            f"this OpenAI checkpoint starts with {len(stem)} channels and goes on with {inner}; "
            f"only multiples of its {width} are supported."
        )
    if "size" in given:
        size = as_pair(given["size"])
    else:
        side = (32 if guided else 16) * 2 ** min(attended) if attended else 4 * 2 ** len(inner)
        size = (side, side)
    multipliers = tuple(c // width for c in inner)
    by_number = not guided or multipliers == (1, 1, 2, 3, 4)
    heads = given.get("heads", 4 if by_number else None)
    head_channels = given.get("head_channels", None if heads else 64)
    label = theirs.get("label_emb.weight")
    return dict(
        channels=stem.shape[1], size=size, out_channels=len(last), width=width,
        multipliers=multipliers, blocks=blocks,
        attention=tuple(size[0] // 2**i for i in sorted(attended)), decoder_attention="every",
        middle=("block", "attention", "block")
        if "middle_block.1.qkv.weight" in theirs else ("block", "block"),
        heads=heads or 1, head_channels=head_channels, group_channels=1, norm_eps=1e-5,
        modulation="scale_shift" if scaled else "shift", skip_conv=False,
        resample="block" if guided else "conv_symmetric", embedding="positional_adm",
        classes=0 if label is None else len(label), class_embedding="output",
    )  # fmt: skip


def _strides(theirs: Mapping[str, Tensor], count: int) -> list[int]:
    """Which of the input blocks lead to the next level.

    With a convolution that says so itself. A residual block that resamples looks like any other;
    but as each level has as many blocks, they stand at equal distances.
    """
    convs = [i for i in range(count) if f"input_blocks.{i}.0.op.weight" in theirs]
    if convs:
        return convs
    ups = [k for k in theirs if re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", k)]
    per_level, rest = divmod(count, len(ups) + 1)
    if rest:
        raise ConversionError("this OpenAI checkpoint has levels of different numbers of blocks.")
    return list(range(per_level, count, per_level))


def to_ours(net: UNet, theirs: Mapping[str, Tensor], order: str) -> State:
    """Weights under our names."""
    transfer = Transfer(net, theirs, "OpenAI")

    def block(name: str, ours: Any, prefix: str, attention: str = "") -> None:
        for mine, peer in (("norm0", "in_layers.0"), ("conv0", "in_layers.2"),
                           ("norm1", "out_layers.0"), ("conv1", "out_layers.3")):  # fmt: skip
            transfer.copy(f"{name}.{mine}", f"{prefix}.{peer}")
        transfer.share(name, f"{prefix}.emb_layers.1")
        if ours.skip.state_dict():
            transfer.pixelwise(f"{name}.skip", f"{prefix}.skip_connection")
        if ours.attention is not None:
            heads, mine = ours.attention.heads, f"{name}.attention"
            transfer.copy(f"{mine}.norm", f"{attention}.norm")
            transfer.pixelwise(f"{mine}.qkv", f"{attention}.qkv")
            transfer.pixelwise(f"{mine}.proj", f"{attention}.proj_out")
            for leaf in ("weight", "bias") if order == "legacy" else ():
                rows = transfer.ours[f"{mine}.qkv.{leaf}"]
                rows = rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)
                transfer.ours[f"{mine}.qkv.{leaf}"] = rows

    def resample(name: str, ours: Any, prefix: str, leaf: str) -> None:
        if isinstance(ours, ResidualBlock):
            block(name, ours, prefix)
        else:
            transfer.copy(f"{name}.conv", f"{prefix}.{leaf}")

    transfer.copy("embed0", "time_embed.0")
    transfer.copy("embed1", "time_embed.2")
    transfer.ours["embed0.weight"] = halves_swapped(transfer.ours["embed0.weight"])
    if net.classes:
        transfer.ours["embed_class.weight"] = transfer.take("label_emb.weight").mT
    transfer.copy("conv_in", "input_blocks.0.0")
    index = 1
    for i, level in enumerate(net.encoder):
        if level.resample is not None:
            resample(f"encoder.{i}.resample", level.resample, f"input_blocks.{index}.0", "op")
            index += 1
        for j, each in enumerate(level.blocks):
            prefix = f"input_blocks.{index}"
            block(f"encoder.{i}.blocks.{j}", each, f"{prefix}.0", f"{prefix}.1")
            index += 1
    block("middle.0", net.middle[0], "middle_block.0", "middle_block.1")
    block("middle.1", net.middle[1], f"middle_block.{2 if net.middle[0].attention else 1}")
    index = 0
    for i, level in reversed(list(enumerate(net.decoder))):
        for j, each in enumerate(level.blocks):
            prefix = f"output_blocks.{index}"
            block(f"decoder.{i}.blocks.{j}", each, f"{prefix}.0", f"{prefix}.1")
            index += 1
        if i > 0:
            prefix = f"output_blocks.{index - 1}.{2 if level.blocks[-1].attention else 1}"
            resample(f"decoder.{i - 1}.resample", net.decoder[i - 1].resample, prefix, "conv")
    transfer.copy("decoder.0.output.norm", "out.0")
    transfer.copy("decoder.0.output.conv", "out.2")
    return transfer.finish()
