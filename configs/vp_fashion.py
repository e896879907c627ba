"""The quick start: garments from noise in eight minutes on two CPU cores.

    vp_fashion          of any kind
    vp_fashion:classes  told which of the ten kinds, one time in ten nothing
    vp_fashion:fast     of any kind, in ninety seconds: the whole schedule in that time

Fashion-MNIST (6 000 images that ship with the package) under the VP SDE. What makes it quick:
arithmetic on 14 x 14 and 7 x 7 pixels, bfloat16 inside the network, EDM's preconditioning with
log-normal noise levels, Muon, and an average over the last tenth of the run. All fields are
documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_cifar = runpy.run_path(str(Path(__file__).with_name("vp_cifar.py")))["get_config"]


def get_config(variant: str = "") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in ("", "classes", "fast"):
        raise ValueError(f"vp_fashion has no variant {variant!r}; choose from classes, fast.")
    config = vp_cifar("small")
    config.data.name = "fashion_mnist"
    config.data.scaling = "standard"
    config.data.flip = False
    config.sde.t_min = 0.003  # sigma/alpha = 0.02: far below what eight bits resolve
    config.net.width, config.net.attention, config.net.heads = 48, (7,), 2
    config.model.target = "F"
    config.model.data_std = 1.0
    config.model.time_input, config.model.time_scale = "log_sigma", 30.0
    config.model.precision = "bf16"
    config.loss.weighting = "edm"
    config.loss.times = "lognormal"
    config.loss.t_min = 1e-4
    config.loss.log_sigma_mean, config.loss.log_sigma_std = -0.3, 1.2
    config.loss.stratified = True
    config.training.batch_size = 128
    config.training.optimizer, config.training.muon_lr = "muon", 0.012
    config.training.lr, config.training.betas = 3e-3, (0.9, 0.99)
    config.training.minutes, config.training.steps = 7.5, 20_000
    config.training.warmup_steps, config.training.decay = 100, 0.7
    config.training.ema_sigma_rel = 0.1
    config.training.log_every = 25
    config.training.sample_images, config.training.sample_nfe = 64, 0
    config.training.save_every = config.training.sample_every = 1000
    config.sampling.method, config.sampling.nfe, config.sampling.grid = "dpmpp_2m_sde", 39, "karras"
    config.sampling.batch_size = 250
    if variant == "classes":
        config.conditioning.classes, config.conditioning.dropout = True, 0.1
        config.loss.log_sigma_std = 1.6
        config.model.center = True  # so that a class is what it is from the first noise on
    if variant == "fast":  # a narrow network and small batches are four times the updates
        config.net.width, config.model.center = 32, True
        config.training.minutes, config.training.batch_size = 1.5, 64
        config.training.warmup_steps = 30
    return config
