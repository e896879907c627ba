"""A classifier of noisy garments, that leads the samples of vp_fashion (2105.05233, section 4).

    python main.py --config configs/classifier_fashion.py --mode train_classifier
    python main.py --workdir runs/vp_fashion --mode sample --classifier runs/classifier_fashion \\
        --class_labels Bag --guidance 2

It is shown x_t at every noise level of the process, and told the level. Data, scaling and process
are those of vp_fashion, as they must be. All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

vp_fashion = runpy.run_path(str(Path(__file__).with_name("vp_fashion.py")))["get_config"]


def get_config() -> ConfigDict:
    """The settings."""
    config = vp_fashion()
    config.loss.log_sigma_std = 1.6
    del config.sampling
    config.conditioning.classes = True
    config.net = ConfigDict({"name": "image_classifier", "width": 32, "multipliers": (1, 2)})
    config.net.blocks, config.net.patch, config.net.dropout = 1, 2, 0.1
    config.model = ConfigDict({"data_std": 1.0, "time_scale": 30.0, "precision": "fp32"})
    config.training.optimizer, config.training.lr = "adam", 3e-3
    config.training.minutes, config.training.steps = 3.0, 1500
    config.training.save_every, config.training.sample_every = 500, 0
    return config
