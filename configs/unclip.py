"""Pictures from captions in two steps, in small (2204.06125, "unCLIP").

    unclip:encoder   emoji of 32 x 32 as vectors of 64 numbers, by an autoencoder
    unclip:prior     draws the vector of a picture from its caption, predicting x_0
    unclip:decoder   draws a picture from its vector

    for part in encoder prior decoder; do python main.py --config unclip:$part --mode train; done
    python main.py --workdir runs/unclip_decoder --mode sample --prior runs/unclip_prior \\
        --prompt "red heart"

In the paper the vectors are CLIP's, which know what a picture means; these know what it looks like.
All fields are documented in vp_cifar.py and autoencoder.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HERE = Path(__file__)
vp_fashion = runpy.run_path(str(HERE.with_name("vp_fashion.py")))["get_config"]
autoencoder = runpy.run_path(str(HERE.with_name("autoencoder.py")))["get_config"]
WIDTH = 64  # numbers of a vector


def get_config(variant: str = "prior") -> ConfigDict:
    """The settings; the variant is the part."""
    if variant not in ("encoder", "prior", "decoder"):
        raise ValueError(f"unclip has no variant {variant!r}; choose encoder, prior or decoder.")
    if variant == "encoder":
        config = autoencoder("emoji")
        config.data.size = (32, 32)
        config.autoencoder.latent_channels = WIDTH
        config.autoencoder.multipliers, config.autoencoder.patch = (1, 2, 2, 4), 4
        config.reconstruction.kl = 1e-3
        config.training.batch_size, config.training.minutes = 64, 5.0
        return config
    config = vp_fashion()
    config.loss.log_sigma_std = 1.6
    config.data.name, config.data.size = "emoji", (32, 32)
    config.data.options = ConfigDict({"balance": True})  # what is rare counts more often
    config.conditioning.dropout = 0.1
    if variant == "decoder":
        config.conditioning.embedding = "runs/unclip_encoder"
        config.net.text, config.net.text_attention = WIDTH, ()
        config.net.attention = (8,)
        config.training.minutes = 10.0
        config.sampling.method, config.sampling.nfe = "dpmpp_2m", 25
        return config
    config.codec = ConfigDict({"path": "runs/unclip_encoder"})
    config.conditioning.text = "minilm"
    config.net = ConfigDict({"name": "mlp", "width": 512, "depth": 4, "text": 384})
    config.model.target, config.model.precision = "x0", "fp32"
    config.loss.weighting = "output"  # the error of x_0 itself, as in the paper
    config.model.scale_input = True
    config.training.batch_size, config.training.minutes = 256, 4.0
    config.training.optimizer, config.training.lr = "adam", 1e-3
    config.sampling.method, config.sampling.nfe = "dpmpp_2m", 25
    return config
