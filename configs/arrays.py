"""Vectors, tables, signals and volumes of yours, from .npy, .npz, .csv, .tsv or .parquet.

    python main.py --config arrays --data table.csv

Each column of a table and each channel of a signal is brought to mean 0 and standard deviation 1,
and back in what is sampled. A column called label, class, target, species or y is the class of its
row. All fields are documented in vp_cifar.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

toy2d = runpy.run_path(str(Path(__file__).with_name("toy2d.py")))["get_config"]


def get_config() -> ConfigDict:
    """The settings."""
    config = toy2d()
    config.data.name = ""  # --data says
    config.data.scaling = "columns"
    config.data.options = ConfigDict()
    config.data.options.label = placeholder(str)  # of a table: the column that is the class
    config.data.options.drop = placeholder(str)  # of a table: a column to leave out
    config.data.options.items = placeholder(str)  # of an .npz: the key of the items
    config.data.options.labels = placeholder(str)  # of an .npz: the key of the labels
    config.net.width, config.net.depth = 256, 4
    config.training.batch_size = 256
    config.training.steps = 6000
    config.training.lr = 1e-3
    config.sampling.batch_size = 500
    return config
