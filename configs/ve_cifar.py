"""CIFAR-10 under the VE SDE (2011.13456): data in [0, 1], noise from 0.01 to 50.

    ve_cifar           NCSN++, 62.8 M parameters
    ve_cifar:small     for a CPU

The network is told log sigma through random Fourier features and fed inputs of unit variance;
the small one is otherwise that of vp_cifar. All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_cifar = runpy.run_path(str(Path(__file__).with_name("vp_cifar.py")))["get_config"]


def get_config(variant: str = "ve") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in ("ve", "small"):
        raise ValueError(f"ve_cifar has no variant {variant!r}; choose from ve, small.")
    config = vp_cifar("small" if variant == "small" else "vp")
    config.data.scaling = "unit"
    config.sde = ConfigDict({"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0, "t_min": 1e-5})
    config.net.embedding = "fourier"
    if variant == "ve":
        config.net.taps, config.net.progressive_input = (1, 3, 3, 1), "residual"
    config.model.data_std = 0.25
    config.model.time_input = "log_sigma"
    config.model.time_scale = 1.0
    config.model.scale_input = True
    config.training.ema_decay = 0.999
    return config
