"""Any folder or zip of pictures of yours: sizes, channels and classes are found out.

    python main.py --config images:64 --data photos/

    images:32    pictures of 32 x 32
    images:64    of 64 x 64
    images:128   of 128 x 128

Pictures of other sizes are cropped to their middle and scaled. The network is small on a CPU, in
the manner of vp_fashion, and large where there is a GPU. All fields are documented in vp_cifar.py.
"""

import os
import runpy
from pathlib import Path

import torch
from ml_collections import ConfigDict

vp_fashion = runpy.run_path(str(Path(__file__).with_name("vp_fashion.py")))["get_config"]
PATCHES = {32: 2, 64: 2, 128: 4}  # of the small network, which computes on 16 x 16 or 32 x 32


def get_config(variant: str = "64") -> ConfigDict:
    """The settings; the variant is the size."""
    if not variant.isdecimal() or int(variant) not in PATCHES:
        raise ValueError(f"images has no variant {variant!r}; choose from 32, 64, 128.")
    size = int(variant)
    config = vp_fashion()
    config.loss.log_sigma_std = 1.6
    config.data.name = ""  # --data says
    config.data.size = (size, size)
    config.data.resize = "center_crop"
    config.data.flip = False  # True for scenes and faces, not for letters
    config.data.workers = min(4, max((os.cpu_count() or 1) - 1, 0))
    config.net.dropout = 0.1
    config.training.minutes = 30.0
    config.training.sample_images = 36
    config.sampling.batch_size = 64
    if torch.cuda.is_available():
        config.net.width, config.net.head_channels = 128, 64
        config.net.patch = PATCHES[size] // 2
        config.net.multipliers = (1, 2, 2, 2)
        config.net.attention = (size // config.net.patch // 4,)
        config.training.steps, config.training.minutes = 200_000, 0.0
        config.training.sample_every = config.training.save_every = 5000
    else:
        config.net.width, config.net.patch = 48, PATCHES[size]
        config.net.multipliers = (1, 2) if size == 32 else (1, 2, 2)
        config.net.attention = (8,)
        config.training.batch_size = 128 if size == 32 else 64
    return config
