"""Points in the plane with a small MLP: seconds on any computer.

    toy2d              eight Gaussians on a ring
    toy2d:moons        two half circles; also checkerboard, swissroll
    toy2d:map          a map of the flow of the ring in 1 to 4 steps, from scratch

All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_cifar = runpy.run_path(str(Path(__file__).with_name("vp_cifar.py")))["get_config"]


def get_config(variant: str = "ring8") -> ConfigDict:
    """The settings; the variant is the data set."""
    if variant not in ("ring8", "moons", "checkerboard", "swissroll", "map"):
        raise ValueError(
            f"toy2d has no variant {variant!r}; choose from ring8, moons, checkerboard, swissroll, "
            "map."
        )
    config = vp_cifar()
    config.data.name = "ring8" if variant == "map" else variant
    config.data.scaling = "standard"
    config.data.flip = False
    config.net = ConfigDict()
    config.net.name = "mlp"
    config.net.width = 128  # of the hidden layers
    config.net.depth = 3  # number of hidden layers
    config.model.target = "v"
    config.model.data_std = 1.0
    config.loss.t_min = 1e-3
    config.training.batch_size = 512
    config.training.steps = 4000
    config.training.lr = 2e-3
    config.training.warmup_steps = 100
    config.training.decay = 0.5
    config.training.ema_sigma_rel = 0.1
    config.training.sample_nfe = 0
    config.training.save_every = 2000
    config.training.sample_every = 2000
    config.sampling.method, config.sampling.steps = "heun", 25
    config.sampling.batch_size = 1000
    if variant == "map":
        del config.loss
        config.flow_map = ConfigDict()
        config.flow_map.steps = 4  # the most that it is for
        config.flow_map.same = 0.5  # share of pairs of times that are one: flow matching
        config.sampling = ConfigDict()
        config.sampling.method, config.sampling.steps = "flow_map", 4
        config.sampling.batch_size = 1000
    return config
