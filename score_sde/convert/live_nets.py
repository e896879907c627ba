"""Networks of the diffusers library under our signature; nothing is converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.checks import UserError

Condition = dict[str, Tensor]


class LiveNet(nn.Module):
    """A network of diffusers as `net(x, noise_label, **condition)`, in its own precision.

    text (B, L, D), text_mask (B, L), pooled (B, P), sizes (B, 6) (SDXL's six numbers of original
    size, crop and target), class_labels (B,): what its family takes, see `FAMILIES`.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.eval().requires_grad_(False)  # DiT drops labels in training mode
        self.call = FAMILIES[type(module).__name__]
        self.taken: tuple[str, ...] = TAKEN[type(module).__name__]

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        given = dict(
            text=text, text_mask=text_mask, pooled=pooled, sizes=sizes, class_labels=class_labels
        )
        dtype = next(self.module.parameters()).dtype
        told = {name: value for name, value in given.items() if value is not None}
        unknown = sorted(set(told) - set(self.taken))
        if unknown:
            raise UserError(
                f"{type(self.module).__name__} is not told {', '.join(unknown)}; it takes "
                f"{', '.join(self.taken) or 'nothing'}."
            )
        told = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in told.items()
        }
        return self.call(self.module, x.to(dtype), noise_label.to(dtype), told).to(x.dtype)


def _unet2d(net: Any, x: Tensor, label: Tensor, told: Condition) -> Tensor:
    return net(x, label, class_labels=told.get("class_labels")).sample


def _unet_condition(net: Any, x: Tensor, label: Tensor, told: Condition) -> Tensor:
    more: dict[str, Any] = {}
    if net.config.addition_embed_type == "text_time":
        if "pooled" not in told or "sizes" not in told:
            raise UserError("this U-Net (SDXL) needs pooled and sizes beside the text.")
        more["added_cond_kwargs"] = {"text_embeds": told["pooled"], "time_ids": told["sizes"]}
    return net(
        x, label, encoder_hidden_states=told["text"],
        encoder_attention_mask=told.get("text_mask"), class_labels=told.get("class_labels"), **more,
    ).sample  # fmt: skip


def _dit(net: Any, x: Tensor, label: Tensor, told: Condition) -> Tensor:
    any_class = torch.full(x.shape[:1], net.config.num_embeds_ada_norm, device=x.device)
    labels = told.get("class_labels", any_class)
    return net(x, label, class_labels=torch.where(labels < 0, any_class, labels)).sample


def _pixart(net: Any, x: Tensor, label: Tensor, told: Condition) -> Tensor:
    more: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if net.use_additional_conditions:
        height, width = (8 * side for side in x.shape[2:])
        more["resolution"] = x.new_tensor([height, width]).repeat(len(x), 1)
        more["aspect_ratio"] = x.new_tensor([height / width]).repeat(len(x), 1)
    return net(
        x, encoder_hidden_states=told["text"], timestep=label, added_cond_kwargs=more,
        encoder_attention_mask=told.get("text_mask"),
    ).sample  # fmt: skip


def _sd3(net: Any, x: Tensor, label: Tensor, told: Condition) -> Tensor:
    return net(
        hidden_states=x, timestep=label, encoder_hidden_states=told["text"],
        pooled_projections=told["pooled"],
    ).sample  # fmt: skip


def _flux(net: Any, x: Tensor, label: Tensor, told: Condition) -> Tensor:
    """Tokens of 2 x 2 latents; its guidance is embedded, told as ``guidance`` beside the text."""
    batch, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    tokens = x.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    places = x.new_zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows, device=x.device)[:, None]
    places[..., 2] = torch.arange(columns, device=x.device)
    out = net(
        hidden_states=tokens.reshape(batch, rows * columns, 4 * channels), timestep=label,
        encoder_hidden_states=told["text"], pooled_projections=told["pooled"],
        txt_ids=x.new_zeros(told["text"].shape[1], 3), img_ids=places.view(-1, 3),
        guidance=x.new_full((batch,), EMBEDDED_GUIDANCE) if net.config.guidance_embeds else None,
    ).sample  # fmt: skip
    out = out.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(x.shape)


EMBEDDED_GUIDANCE = 3.5  # of Flux-dev: its score is that of a guided law already
FAMILIES: dict[str, Callable[[Any, Tensor, Tensor, Condition], Tensor]] = {
    "UNet2DModel": _unet2d,
    "UNet2DConditionModel": _unet_condition,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
TAKEN: dict[str, tuple[str, ...]] = {
    "UNet2DModel": ("class_labels",),
    "UNet2DConditionModel": ("text", "text_mask", "pooled", "sizes", "class_labels"),
    "DiTTransformer2DModel": ("class_labels",),
    "PixArtTransformer2DModel": ("text", "text_mask"),
    "SD3Transformer2DModel": ("text", "pooled"),
    "FluxTransformer2DModel": ("text", "pooled"),
}
