"""Emoji enlarged from 32 x 32 to 64 x 64: the second half of a cascade (2106.15282).

    python main.py --config configs/sr_emoji.py --mode train
    python main.py --workdir runs/text_emoji --mode sample --prompt "red heart" \\
        --upscale runs/sr_emoji

The network is told the small picture beside x, and in training noise is put into it, whose level it
is told too. All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_fashion = runpy.run_path(str(Path(__file__).with_name("vp_fashion.py")))["get_config"]


def get_config() -> ConfigDict:
    """The settings."""
    config = vp_fashion()
    config.loss.log_sigma_std = 1.6
    config.data.name = "emoji"
    config.data.size = (64, 64)
    config.conditioning.picture = 2  # times smaller
    config.net.width, config.net.attention = 32, ()
    config.net.picture = 3  # channels of the small picture
    config.net.picture_noise = 0.3  # the most noise in it, in standard deviations of the data
    config.training.batch_size = 64
    config.training.minutes = 15.0
    config.sampling.method, config.sampling.nfe, config.sampling.grid = "dpmpp_2m", 15, "karras"
    return config
