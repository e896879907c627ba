"""Data with what a network is told of their items: encoded captions, smaller pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import avg_pool2d

from score_sde import build, distributed
from score_sde.conditioning.text import encode, said_of
from score_sde.conditioning.told import Conditioning
from score_sde.data import Data
from score_sde.data.latent import LatentData
from score_sde.runs.codecs import RunCodec, latents_of
from score_sde.runs.directory import RunError


def with_told(
    config: Mapping[str, Any], data: Data, conditioning: Conditioning, eye: RunCodec | None
) -> tuple[Data, list[str]]:
    """The data with the conditions that are made of them, and the names of those of captions.

    eye: the codec of conditioning.embedding.
    """
    named: list[str] = []
    if eye is not None:
        data = with_embeddings(data, eye, (config.get("net") or {}).get("text") or 0)
    if conditioning.text:
        data, named = with_captions(config, data)
    if conditioning.picture:
        data = with_smaller(data, conditioning.picture)
    return data, named


def with_smaller(data: Data, factor: int) -> Data:
    """The data with each picture, in the model's range, at a part of its height and width."""
    height, width = data.spec.shape[-2:]
    if not data.spec.is_image or height % factor or width % factor:
        raise RunError(
            f"conditioning.picture={factor} needs images whose sides {factor} divides; items have "
            f"shape {data.spec.shape}."
        )
    parts = [range(i, min(i + 512, len(data))) for i in range(0, len(data), 512)]
    small = [avg_pool2d(data.spec.to_model(data.raw_items(rows)), factor) for rows in parts]
    return data.with_condition(picture=torch.cat(small))


def with_embeddings(data: Data, codec: RunCodec, width: int) -> Data:
    """The data with the latent of each picture as one vector (B, width), told as pooled."""
    if isinstance(data, LatentData):
        raise RunError("conditioning.embedding is for runs of pixels: drop codec.path.")
    vectors = latents_of(data, codec).raw[:, 0].flatten(1)
    if vectors.shape[1] != width:
        raise RunError(
            f"the embeddings of {codec.path} have {vectors.shape[1]} numbers, net.text is {width}: "
            f"set net.text={vectors.shape[1]}."
        )
    return data.with_condition(pooled=vectors)


def with_captions(config: Mapping[str, Any], data: Data) -> tuple[Data, list[str]]:
    """The data with what the text encoder makes of their captions, and the names of that."""
    if data.captions is None:
        raise RunError("conditioning.text needs data with captions; these have none.")
    encoder = build.build_text_encoder(config)
    _check_width(encoder, config.get("net") or {})
    with distributed.writer_first():  # it may have to download the encoder, and fills the cache
        encoded = encode(encoder, data.captions)
    if encoded.cut:
        distributed.say(said_of(encoded.cut))
    return data.with_condition(**encoded.condition), list(encoded.condition)


def _check_width(encoder: Any, net: Mapping[str, Any]) -> None:
    """RunError unless the network takes captions, and states of the encoder's width."""
    wanted, width = net.get("text") or net.get("text_dim") or 0, getattr(encoder, "width", None)
    if not wanted and not net.get("text_table"):
        raise RunError(
            "conditioning.text tells the network captions that it does not take: set "
            f"{f'net.text={width}' if width else 'net.text_table=8192'}."
        )
    if isinstance(wanted, int) and wanted and width is not None and width != wanted:
        fix = f"net.text={width}" if width else "net.text=0 and net.text_table=8192"
        raise RunError(
            f"the text encoder's states have {width} numbers, net.text is {wanted}: set {fix}."
        )
