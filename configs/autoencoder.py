"""Autoencoders whose latents a diffusion is trained on (2112.10752), in minutes on two CPU cores.

autoencoder:fashion   garments of 28 x 28, latents of 4 x 7 x 7
autoencoder:emoji     emoji of 64 x 64, latents of 4 x 16 x 16
autoencoder:images    any pictures of yours (--data), 64 x 64, a quarter of the size
autoencoder:kl_f8     Stable Diffusion's sizes, 83.7 M parameters, an eighth of the size

python main.py --config autoencoder:fashion --mode train
python main.py --config latent_fashion --mode train
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("fashion", "emoji", "images", "kl_f8")


def get_config(variant: str = "fashion") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in VARIANTS:
        raise ValueError(
            f"autoencoder has no variant {variant!r}; choose from {', '.join(VARIANTS)}."
        )
    config = ConfigDict()
    config.seed = 42  # of weights, data order and noise

    config.data = data = ConfigDict()  # as in vp_cifar.py
    data.name = "fashion_mnist"
    data.split = "train"
    data.size = placeholder(tuple)
    data.resize = placeholder(str)
    data.convert = "auto"
    data.scaling = "symmetric"
    data.flip = False
    data.strict = False
    data.workers = 0

    config.autoencoder = net = ConfigDict({"name": "kl"})
    net.latent_channels = 4
    net.width = 32  # channels of level 0
    net.multipliers = (1, 2)  # channels of level i are width * multipliers[i]
    net.blocks = 1  # residual blocks a level of the encoder
    net.decoder_blocks = 2
    net.attention = False  # at the lowest level
    net.patch = 2  # space to depth before the first convolution, and back after the last

    config.reconstruction = loss = ConfigDict()
    loss.absolute = 1.0  # weight of the mean absolute error
    loss.square = 1.0  # and of the mean squared error
    loss.kl = 1e-4  # of the latents' divergence from N(0, 1), in nats a number of the picture
    loss.precision = "bf16"  # autocast around the network; or fp32

    config.training = training = ConfigDict()  # as in vp_cifar.py
    training.batch_size = 64
    training.batch_per_device = placeholder(int)
    training.steps, training.minutes = 20_000, 4.0
    training.optimizer, training.muon_lr = "muon", 0.012
    training.lr, training.betas, training.weight_decay = 3e-3, (0.9, 0.99), 0.0
    training.warmup_steps, training.decay, training.grad_clip = 50, 0.7, 1.0
    training.ema_decay, training.ema_sigma_rel = 0.999, 0.1
    training.log_every = 25
    training.save_every = training.sample_every = 500
    training.keep, training.sample_images = 2, 64
    training.tensorboard = True

    if variant in ("emoji", "images"):
        data.name, data.size = "emoji", (64, 64)
        training.batch_size, training.minutes = 32, 10.0
    if variant == "images":
        data.name, data.resize = "", "center_crop"  # --data says
    elif variant == "kl_f8":
        data.name, data.size, data.resize = "", (256, 256), "center_crop"
        net.width, net.multipliers, net.patch = 128, (1, 2, 4, 4), 1
        net.blocks, net.decoder_blocks, net.attention = 2, 3, True
        loss.kl = 1e-6
        training.optimizer, training.lr, training.minutes = "adam", 1e-4, 0.0
        training.steps, training.save_every, training.sample_every = 400_000, 5000, 5000
        training.tensorboard = True
    return config
