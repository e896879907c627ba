"""Autoencoders of the diffusers library as codecs; nothing is converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.checks import library, read_json, reading
from score_sde.convert.parts import ConversionError
from score_sde.nets.codec import Codec, Moments


class LiveAutoencoder(nn.Module):
    """A `AutoencoderKL` of diffusers as an autoencoder for `Codec`, in its own precision."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module: Any = module.eval().requires_grad_(False)

    def moments(self, x: Tensor) -> Moments:
        """Mean and standard deviation of the latents of x."""
        dtype = next(self.module.parameters()).dtype
        law = self.module.encode(x.to(dtype)).latent_dist
        return Moments(law.mean.to(x.dtype), law.std.to(x.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1]."""
        dtype = next(self.module.parameters()).dtype
        return self.module.decode(latents.to(dtype)).sample.to(latents.dtype)


def read_autoencoder(path: Path) -> Any:
    """A diffusers AutoencoderKL from its folder, or from ``vae`` in the folder of a pipeline.

    Its weights are float32, whatever the file's are. Raises ConversionError for another network
    and a missing library.
    """
    folder = path / "vae" if (path / "vae").is_dir() else path
    what = "an autoencoder of diffusers"
    said = read_json(folder / "config.json", dict[str, Any], what, ConversionError)
    kind = said.get("_class_name")
    if kind != "AutoencoderKL":
        raise ConversionError(f"{folder} holds a {kind}; only AutoencoderKL is known here.")
    with reading(folder, what, ConversionError):
        return _autoencoder_kl().from_pretrained(
            folder, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
        )


def autoencoder_of(settings: Mapping[str, Any]) -> LiveAutoencoder:
    """A diffusers AutoencoderKL of these settings, with weights still to be loaded."""
    return LiveAutoencoder(_autoencoder_kl().from_config(dict(settings)))


def _autoencoder_kl() -> Any:
    what = "autoencoders of diffusers need"
    return library("diffusers", "diffusers", what, ConversionError).AutoencoderKL


def codec_of(module: Any) -> Codec:
    """The codec of an autoencoder: its config's scale and shift, or mean and spread a channel."""
    said = module.config
    scale = float(said.get("scaling_factor") or 1.0)
    mean, spread = said.get("latents_mean"), said.get("latents_std")
    if mean is not None and spread is not None:
        shift, scales = torch.tensor(mean).flatten(), scale / torch.tensor(spread).flatten()
        return Codec(LiveAutoencoder(module), shift, scales)
    return Codec(LiveAutoencoder(module), float(said.get("shift_factor") or 0.0), scale)
