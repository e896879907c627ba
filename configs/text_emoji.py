"""Text to image in small: emoji drawn from their captions, in fifteen minutes on two CPU cores.

3 590 captioned drawings of 32 x 32 (fetched once by npm), 195 captions held out. The quick start's
network and recipe (vp_fashion.py) with captions: states of a frozen text encoder, looked at after
every block, a learned table of word pieces beside them, and the caption dropped one time in ten.
All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_fashion = runpy.run_path(str(Path(__file__).with_name("vp_fashion.py")))["get_config"]


def get_config() -> ConfigDict:
    """The settings."""
    config = vp_fashion()
    config.data.name = "emoji"
    config.data.size = (32, 32)
    config.data.options = ConfigDict({"balance": True})  # what is rare counts more often
    config.conditioning.text = "minilm"
    config.conditioning.text_length = 24
    config.conditioning.dropout = 0.1
    config.net.attention = (8,)
    config.net.text = 384  # numbers of a token's state
    config.net.text_table = 8192  # rows of the learned table of word pieces
    config.loss.log_sigma_mean, config.loss.log_sigma_std = 1.2, 1.5  # where words decide
    config.training.minutes, config.training.steps = 15.0, 1600
    config.training.save_every = config.training.sample_every = 400
    config.sampling.method, config.sampling.nfe, config.sampling.grid = "dpmpp_2m", 25, "karras"
    return config
