"""Vectors, tables, signals and volumes of yours, from .npy, .npz, .csv, .tsv or .parquet.

    python main.py --config arrays --data table.csv
    python main.py --config arrays:signals --data ecg.npy
    python main.py --config arrays:volumes --data scans.npy

    arrays           by an MLP, which takes any item as one long vector
    arrays:signals   (L,), (C, L) or (L, C), by a U-Net of one dimension
    arrays:volumes   (D, H, W), (C, D, H, W) or (D, H, W, C), by a U-Net of three

Each column of a table and each channel of a signal is brought to mean 0 and standard deviation 1,
and back in what is sampled. A column called label, class, target, species or y is the class of its
row. All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

HERE = Path(__file__)
toy2d = runpy.run_path(str(HERE.with_name("toy2d.py")))["get_config"]
vp_fashion = runpy.run_path(str(HERE.with_name("vp_fashion.py")))["get_config"]


def get_config(variant: str = "vectors") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in ("vectors", "signals", "volumes"):
        raise ValueError(
            f"arrays has no variant {variant!r}; choose from vectors, signals, volumes."
        )
    config = toy2d() if variant == "vectors" else vp_fashion()
    config.data.name = ""  # --data says
    config.data.scaling = "columns"
    config.data.options = ConfigDict()
    config.data.options.label = placeholder(str)  # of a table: the column that is the class
    config.data.options.drop = placeholder(str)  # of a table: a column to leave out
    config.data.options.items = placeholder(str)  # of an .npz: the key of the items
    config.data.options.labels = placeholder(str)  # of an .npz: the key of the labels
    if variant == "vectors":
        config.net.width, config.net.depth = 256, 4
        config.training.batch_size = 256
        config.training.steps = 6000
        config.training.lr = 1e-3
        config.sampling.batch_size = 500
        return config
    config.loss.log_sigma_std = 1.6
    config.training.minutes, config.training.save_every = 5.0, 500
    config.training.sample_every, config.training.sample_images = 500, 16
    config.sampling.method, config.sampling.nfe = "dpmpp_2m", 39  # 25: variances 3 % high
    config.net.attention = ()
    if variant == "signals":
        config.data.layout = "signal"
        config.net.patch, config.net.multipliers, config.net.width = 4, (1, 2), 64
    else:
        config.data.layout = "volume"
        config.net.patch, config.net.multipliers, config.net.width = 2, (1, 2), 32
        config.training.batch_size = 32
    return config
