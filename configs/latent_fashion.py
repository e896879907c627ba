"""Garments from latents: a diffusion over what an autoencoder makes of them (2112.10752).

    latent_fashion          of any kind
    latent_fashion:classes  told which of the ten kinds, one time in ten nothing

    python main.py --config autoencoder:fashion --mode train
    python main.py --config latent_fashion --mode train
    python main.py --config latent_fashion --mode sample

The run keeps a copy of the autoencoder, so that it samples to pictures wherever it goes. Latents
have 4 channels of 7 x 7; the recipe is that of vp_fashion.py. All fields are documented in
vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_fashion = runpy.run_path(str(Path(__file__).with_name("vp_fashion.py")))["get_config"]


def get_config(variant: str = "") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in ("", "classes"):
        raise ValueError(f"latent_fashion has no variant {variant!r}; there is classes.")
    config = vp_fashion(variant)
    config.loss.log_sigma_std, config.model.center = 1.6, None
    config.codec = ConfigDict({"path": "runs/autoencoder_fashion"})  # or a diffusers VAE's folder
    config.net.patch, config.net.width = 1, 96
    config.net.multipliers, config.net.attention = (1,), (7,)
    config.training.minutes = 5.0
    return config
