"""Emoji of 64 x 64 from their captions, by a diffusion over latents (2112.10752).

    python main.py --config autoencoder:emoji --mode train
    python main.py --config latent_emoji --mode train
    python main.py --config latent_emoji --mode sample --prompt "red heart" --guidance 2

Latents have 4 channels of 16 x 16; captions are told as in text_emoji.py. All fields are documented
in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

text_emoji = runpy.run_path(str(Path(__file__).with_name("text_emoji.py")))["get_config"]


def get_config() -> ConfigDict:
    """The settings."""
    config = text_emoji()
    config.codec = ConfigDict({"path": "runs/autoencoder_emoji"})
    config.data.size = (64, 64)
    config.net.patch, config.net.attention = 1, (8,)
    config.loss.log_sigma_mean, config.loss.log_sigma_std = -0.3, 1.6
    return config
