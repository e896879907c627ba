"""diffusers' transformers: `DiTTransformer2DModel` (2212.09748) and PixArt's (2310.00426).

config.json  diffusion_pytorch_model.safetensors        in the folder, or in its transformer/

Their noise label is the index of the chain, and half of their output is a learned range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from score_sde.convert.parts import FLOATS, ConversionError, Foreign, State, as_pair, halves_swapped
from score_sde.convert.schedulers import process_of
from score_sde.data import DataSpec
from score_sde.nets import Transformer

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel", "PixArtTransformer2DModel")
MLPS = {"gelu-approximate": "gelu_tanh", "gelu": "gelu"}


def read(
    said: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    theirs: Mapping[str, Tensor],
    given: Mapping[str, Any],
) -> Foreign:
    """A transformer over latents in our words; what turns latents into pixels is another file."""
    options = net_options({**said, **({"sample_size": given["size"]} if "size" in given else {})})
    channels, size = options["channels"], options["size"]
    with torch.device("meta"):
        net = Transformer(**options)
    weights = to_ours(net, theirs, options["modulation"] == "shared")
    notes = ["its states are latents of an autoencoder, of standard deviation 1"]
    sde, model = process_of(scheduler, notes)
    model["learned_variance"] = options["out_channels"] == 2 * channels
    classes = tuple(str(i) for i in range(options.get("classes", 0)))
    del options["channels"], options["size"]
    return Foreign(
        layout="diffusers PixArt" if "text_dim" in options else "diffusers DiT",
        net={"name": "transformer", **options},
        sde=sde,
        model=model | {"data_std": 1.0},
        spec=DataSpec((channels, *size), classes=classes, name="latents"),
        data_std=1.0,
        averaged=weights,
        trained=weights,
        notes=notes,
    )


def net_options(said: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Transformer` from a config.json, with channels and size."""
    pixart = said.get("norm_type") == "ada_norm_single"
    if said.get("norm_type", "ada_norm_zero") not in ("ada_norm_zero", "ada_norm_single"):
        raise ConversionError(
            f"norm_type {said['norm_type']!r} is of another transformer than DiT and PixArt."
        )
    if said.get("use_additional_conditions"):
        raise ConversionError(
            "this PixArt is told the resolution and aspect ratio (use_additional_conditions), "
            "which has no place here yet; use load_diffusers, which keeps their network."
        )
    if said.get("activation_fn", "gelu-approximate") not in MLPS:
        raise ConversionError(f"activation_fn {said['activation_fn']!r}: {list(MLPS)} are known.")
    heads, head = int(said["num_attention_heads"]), int(said["attention_head_dim"])
    patch, size = int(said.get("patch_size", 2)), as_pair(said.get("sample_size", 32))
    options: dict[str, Any] = {
        "channels": int(said["in_channels"]),
        "size": size,
        "out_channels": int(said.get("out_channels") or said["in_channels"]),
        "width": heads * head,
        "depth": int(said["num_layers"]),
        "heads": heads,
        "patch": patch,
        "mlp": MLPS[said.get("activation_fn", "gelu-approximate")],
        "qkv_bias": bool(said.get("attention_bias", True)),
        "modulation": "shared" if pixart else "each",
        "time_endpoint": not pixart,
        "mlp_norm_eps": float(said.get("norm_eps", 1e-6 if pixart else 1e-5)),
    }
    if pixart:
        scale = said.get("interpolation_scale") or max(size[0] // 64, 1)
        base = size[0] // patch
        options |= {
            "norm_eps": options["mlp_norm_eps"],
            "text_dim": int(said.get("caption_channels") or 0),
            "position_spacing": 1 / (base / base) / scale,
        }
    else:
        options |= {"classes": int(said["num_embeds_ada_norm"]), "embedding_per_block": True}
    return options


def to_ours(net: Transformer, theirs: Mapping[str, Tensor], pixart: bool) -> State:
    """Weights under our names; ConversionError for tensors that are missing or left over."""
    renamed = _names(net, pixart)
    ours: State = {}
    used: set[str] = set()
    for name, sources in renamed.items():
        for source in sources:
            if source not in theirs or theirs[source].dtype not in FLOATS:
                raise ConversionError(f"this transformer checkpoint lacks weights {source}.")
        used.update(sources)
        parts = [theirs[source].detach().to("cpu", torch.float32) for source in sources]
        ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for i in range(len(net.embeddings)):
        key = f"embeddings.{i}.first.weight"
        ours[key] = halves_swapped(ours[key])
    left = sorted(set(theirs) - used - {"pos_embed.pos_embed"})
    if left:
        raise ConversionError(f"{len(left)} tensors that nothing uses, such as {left[0]}.")
    if net.null_text is not None:
        ours["null_text"] = torch.zeros_like(net.null_text, device="cpu")
    for name, value in net.state_dict().items():
        if ours[name].shape != value.shape:
            raise ConversionError(
                f"{name}: {tuple(ours[name].shape)} in the file, {tuple(value.shape)} expected."
            )
    return {name: ours[name].contiguous() for name in net.state_dict()}


def _names(net: Transformer, pixart: bool) -> dict[str, list[str]]:
    """Their tensors that make up each of ours, in order of concatenation."""
    pairs: list[tuple[str, list[str]]] = [("patches", ["pos_embed.proj"])]
    if pixart:
        embedder = "adaln_single.emb.timestep_embedder"
        pairs += [
            ("embeddings.0.first", [f"{embedder}.linear_1"]),
            ("embeddings.0.second", [f"{embedder}.linear_2"]),
            ("shared", ["adaln_single.linear"]),
            ("text_first", ["caption_projection.linear_1"]),
            ("text_second", ["caption_projection.linear_2"]),
            ("last", ["proj_out"]),
        ]
    else:
        pairs += [("last_modulation", ["proj_out_1"]), ("last", ["proj_out_2"])]
    tables = [("last_table", ["scale_shift_table"])] if pixart else []
    for i, block in enumerate(net.blocks):
        b = f"transformer_blocks.{i}"
        if not pixart:
            embedder = f"{b}.norm1.emb.timestep_embedder"
            pairs += [
                (f"embeddings.{i}.first", [f"{embedder}.linear_1"]),
                (f"embeddings.{i}.second", [f"{embedder}.linear_2"]),
                (f"blocks.{i}.modulation", [f"{b}.norm1.linear"]),
            ]
            table = f"{b}.norm1.emb.class_embedder.embedding_table.weight"
            tables.append((f"embeddings.{i}.classes.weight", [table]))
        else:
            tables.append((f"blocks.{i}.table", [f"{b}.scale_shift_table"]))
        pairs += [
            (f"blocks.{i}.attention.qkv", [f"{b}.attn1.to_{x}" for x in "qkv"]),
            (f"blocks.{i}.attention.out", [f"{b}.attn1.to_out.0"]),
            (f"blocks.{i}.mlp.first", [f"{b}.ff.net.0.proj"]),
            (f"blocks.{i}.mlp.second", [f"{b}.ff.net.2"]),
        ]
        if block.cross is not None:
            pairs += [
                (f"blocks.{i}.cross.q", [f"{b}.attn2.to_q"]),
                (f"blocks.{i}.cross.kv", [f"{b}.attn2.to_k", f"{b}.attn2.to_v"]),
                (f"blocks.{i}.cross.out", [f"{b}.attn2.to_out.0"]),
            ]
    wanted = net.state_dict()
    leaves = {
        f"{name}.{leaf}": [f"{source}.{leaf}" for source in sources]
        for name, sources in pairs
        for leaf in ("weight", "bias")
        if f"{name}.{leaf}" in wanted
    }
    return leaves | dict(tables)
