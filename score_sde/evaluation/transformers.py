"""Features of the transformers library: DINOv2 and CLIP (pip install transformers).

    dinov2    the class token, resized to 224 as 8-bit images by PIL's bicubic filter, as FD-DINOv2
              of 2306.04675 has it, which is of the large network (1024 features)
    clip      the image embedding, of length 1; CMMD (2401.09603) is of ViT-L/14 at 336 pixels

The networks are named by a hub id or a folder in SCORE_SDE_DINOV2 and SCORE_SDE_CLIP. A distance is
called FD-DINOv2 or CMMD only for the networks of these papers.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from score_sde.checks import library, reading
from score_sde.evaluation.inception import as_rgb

DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIPS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def resize_pil(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) to uint8 (B, 3, size, size) by PIL's bicubic filter."""
    resized = [
        np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC))
        for i in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def normalised(images: Tensor, moments: tuple[Any, Any]) -> Tensor:
    """uint8 images as floats of the mean and spread that a network was trained with."""
    mean, std = (torch.tensor(m).view(1, 3, 1, 1) for m in moments)
    return (images.float() / 255 - mean) / std


def _load(cls: str, where: str) -> Any:
    transformers = library("transformers", "text", "these features need")
    what = (
        "a folder with config.json and model.safetensors from the hub, as SCORE_SDE_DINOV2 or "
        "SCORE_SDE_CLIP should name"
    )
    with reading(where, what):
        return getattr(transformers, cls).from_pretrained(where).eval().requires_grad_(False)


def _facts(net: Any) -> dict[str, Any]:
    """The network's own settings."""
    return getattr(net, "config").to_dict()  # noqa: B009  (no config of ours)


class DINOv2Features:
    """uint8 (B, C, H, W) -> (B, width): the class token of DINOv2 (2304.07193)."""

    def __init__(self, where: str | None = None):
        where = where or os.environ.get("SCORE_SDE_DINOV2") or DINOV2
        self.net = _load("Dinov2Model", where)
        facts = _facts(self.net)
        shape = facts["hidden_size"], facts["num_hidden_layers"]
        large = shape == (1024, 24) and facts["patch_size"] == 14
        self.name = "dinov2" if large else f"dinov2-{shape[0]}x{shape[1]}"
        self.facts: dict[str, Any] = {
            "extractor": self.name, "weights_from": where, "resize": "PIL bicubic to 224, 8 bits",
            "preprocessing": "ImageNet's mean and std; class token",
        }  # fmt: skip
        if large:
            self.facts["frechet_name"] = "FD-DINOv2"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = normalised(resize_pil(as_rgb(images), 224), IMAGENET)
        return self.net(pixel_values=x).last_hidden_state[:, 0]


class CLIPFeatures:
    """uint8 (B, C, H, W) -> (B, width): the image embedding of CLIP (2103.00020), of length 1."""

    def __init__(self, where: str | None = None):
        where = where or os.environ.get("SCORE_SDE_CLIP") or CLIP
        self.net = _load("CLIPVisionModelWithProjection", where)
        facts = _facts(self.net)
        self.size = int(facts["image_size"])
        large = (facts["hidden_size"], facts["patch_size"], self.size)
        genuine = large == (1024, 14, 336)
        self.name = "clip" if genuine else f"clip-{large[0]}-{large[1]}-{large[2]}"
        self.facts: dict[str, Any] = {
            "extractor": self.name, "weights_from": where,
            "resize": f"PIL bicubic to {self.size}, 8 bits", "preprocessing": "CLIP's mean and std",
        }  # fmt: skip
        if genuine:
            self.facts["cmmd_name"] = "CMMD"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = normalised(resize_pil(as_rgb(images), self.size), CLIPS)
        return F.normalize(self.net(pixel_values=x).image_embeds)
