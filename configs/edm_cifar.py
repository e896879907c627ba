"""CIFAR-10 by Karras et al.'s recipe (2206.00364): preconditioned output, log-normal noise levels.

    edm_cifar          55.7 M parameters
    edm_cifar:classes  the same, always told the class
    edm_cifar:small    for a CPU
    edm_cifar:edm2     the magnitude-preserving U-Net of 2312.02696, always told the class

Without their augmentation. All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_cifar = runpy.run_path(str(Path(__file__).with_name("vp_cifar.py")))["get_config"]


def get_config(variant: str = "edm") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in ("edm", "classes", "small", "edm2"):
        raise ValueError(
            f"edm_cifar has no variant {variant!r}; choose from edm, classes, small, edm2."
        )
    config = vp_cifar("small" if variant == "small" else "vp")
    config.sde = ConfigDict({"name": "edm", "t_min": 0.002, "t_max": 80.0})
    config.model.target = "F"
    config.model.time_input = "log_sigma"
    config.loss.weighting = "edm"
    config.loss.times = "lognormal"
    config.loss.t_min = 1e-4
    config.conditioning.classes = variant in ("classes", "edm2")
    if variant != "small":
        config.net.multipliers = (2, 2, 2)
        config.net.dropout = 0.13
        config.training.batch_size = 512
        config.training.steps = 400_000
        config.training.lr = 1e-3
        config.training.warmup_steps = 20_000
        config.training.ema_decay = 0.9993  # a half-life of 0.5 M images
        config.training.grad_clip = 0.0
    if variant == "edm2":
        config.net = ConfigDict({"name": "edm2", "width": 128, "multipliers": (1, 2, 2)})
        config.net.blocks, config.net.attention, config.net.dropout = 3, (16, 8), 0.1
        config.net.log_variance = config.loss.uncertainty = True
        config.loss.log_sigma_mean, config.loss.log_sigma_std = -0.4, 1.0
        config.training.lr, config.training.betas = 1e-2, (0.9, 0.99)
        config.training.decay = 0.8  # the paper falls as 1/sqrt(step) instead
        config.training.ema_snapshot_every = 4000
    config.sampling.method, config.sampling.steps = "heun", 17  # 35 evaluations
    config.sampling.nfe = None
    return config
