"""The one embedding of all labels of a U-Net: noise, class, augmentation, a picture's own noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError
from score_sde.nets.layers import FourierEmbedding, SinusoidalEmbedding, initialize, linear


class LabelEmbedding(nn.Module):
    """What U-Nets make of labels: features, two layers, and what is added before or after these.

    classes, augment: how many there are; class_embedding: "input" or "output" of the two layers.
    """

    classes: int
    augment: int
    class_embedding: str

    def _make_embedding(
        self, width: int, kind: str, picture: bool, second_time: bool = False
    ) -> None:
        inputs, emb = (2 * width if kind == "fourier" else width), 4 * width
        self.embedding = (
            FourierEmbedding(inputs)
            if kind == "fourier"
            else SinusoidalEmbedding(
                inputs, endpoint=kind != "positional_adm", powers=kind == "positional_edm"
            )
        )
        self.embed0, self.embed1 = linear(inputs, emb), linear(emb, emb)
        into = self.class_embedding == "input"
        self.embed_class = (
            initialize(nn.Linear(self.classes, inputs if into else emb, bias=into))
            if self.classes
            else None
        )
        self.embed_augment = (
            initialize(nn.Linear(self.augment, inputs, bias=False)) if self.augment else None
        )
        self.embed_level = linear(width, inputs, scale=0.0) if picture else None
        self.level_waves = SinusoidalEmbedding(width)
        # Zero, so that a map of the flow starts as the score model whose weights it is given.
        self.embed_second = linear(width, inputs, scale=0.0) if second_time else None

    def embed(
        self, noise_label: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None,
        picture_level: Tensor | None = None, second_label: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The embedding (B, 4 width) of all labels; see `forward`."""
        classes = None
        if self.embed_class is not None:
            rows = self._class_rows(noise_label, class_labels)
            if self.class_embedding == "input":
                rows = rows * self.classes**0.5  # of unit variance, as the features are nearly
            classes = self.embed_class(rows)
        h = self.embedding(noise_label).to(self.embed0.weight.dtype)
        if classes is not None and self.class_embedding == "input":
            h = h + classes
        if self.embed_augment is not None and augment_labels is not None:
            h = h + self.embed_augment(augment_labels.to(h.dtype))
        if self.embed_level is not None and picture_level is not None:
            h = h + self.embed_level(self.level_waves(999 * picture_level).to(h.dtype))
        if self.embed_second is not None and second_label is not None:
            h = h + self.embed_second(self.level_waves(second_label).to(h.dtype))
        h = self.embed1(F.silu(self.embed0(h)))
        return h + classes if classes is not None and self.class_embedding == "output" else h

    def _class_rows(self, noise_label: Tensor, class_labels: Tensor | None) -> Tensor:
        dtype = self.embed0.weight.dtype
        if class_labels is None:
            return torch.zeros(
                noise_label.shape[0], self.classes, dtype=dtype, device=noise_label.device
            )
        if class_labels.ndim == 1 and not class_labels.is_floating_point():
            rows = F.one_hot(class_labels.long().clamp(min=0), self.classes).to(dtype)
            return rows * (class_labels >= 0)[:, None]  # -1: without a class, `scores.nothing_like`
        if class_labels.shape != (noise_label.shape[0], self.classes):
            raise UserError(
                f"class_labels must be integers (B,) or rows (B, {self.classes}); "
                f"got shape {tuple(class_labels.shape)}."
            )
        return class_labels.to(dtype)
