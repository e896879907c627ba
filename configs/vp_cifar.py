"""DDPM++ on CIFAR-10 under the VP SDE (2011.13456), and its relatives.

    vp_cifar           continuous VP SDE, 61.8 M parameters
    vp_cifar:subvp     the same under sub-VP
    vp_cifar:ddpm      DDPM's discrete objective on its linear beta table (2006.11239)
    vp_cifar:cosine    the cosine schedule (2102.09672)
    vp_cifar:iddpm     Improved DDPM: the cosine table with learned variances (2102.09672)
    vp_cifar:flow      flow matching: alpha = 1 - t, sigma = t, predicting the velocity (2210.02747)
    vp_cifar:classes   told the class, one time in ten nothing: for --class_labels and guidance
    vp_cifar:small     3.1 M parameters, for a CPU

A field is changed by --config.section.field=value; fields that are None take a value too.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("vp", "subvp", "ddpm", "cosine", "iddpm", "flow", "classes", "small")


def get_config(variant: str = "vp") -> ConfigDict:
    """The settings; see the module for the variants."""
    if variant not in VARIANTS:
        raise ValueError(f"vp_cifar has no variant {variant!r}; choose from {', '.join(VARIANTS)}.")
    config = ConfigDict()
    config.seed = 42  # of weights, data order and noise

    config.data = data = ConfigDict()
    data.name = "cifar10"  # a set by name, a folder of images, .zip, .npy, .npz, a dotted path
    data.split = "train"  # or test
    data.size = placeholder(tuple)  # (H, W) to resize to; None keeps the images' own
    data.resize = placeholder(str)  # center_crop, stretch or pad, when sizes differ
    data.convert = "auto"  # grey, rgb, rgba; auto keeps grey grey
    data.channels = placeholder(int)  # an error if the data have another number
    data.range = placeholder(tuple)  # bounds of float data and of images of 16 or 32 bits
    data.layout = "auto"  # axes of an item of an array: CHW, HWC, CL, ...; vector: one long one
    data.scaling = (
        "symmetric"  # the model's range: symmetric [-1, 1], unit [0, 1], standard, columns
    )
    data.flip = True  # mirror at random
    data.strict = False  # True: an unreadable image is an error, not a note
    data.workers = 4  # loader processes, for sets that do not fit into memory

    config.conditioning = conditioning = ConfigDict()
    conditioning.classes = False  # tell the network the classes of the data
    conditioning.text = placeholder(str)  # a text encoder for captions; see text_emoji.py
    conditioning.text_length = 24  # the most tokens of a caption
    conditioning.picture = 0  # a picture so many times smaller; see sr_emoji.py
    conditioning.embedding = placeholder(
        str
    )  # a run whose latent of each picture is told; see unclip.py
    conditioning.others = ()  # and further conditions that a data set of yours brings, by name
    conditioning.dropout = 0.0  # how often a row is told nothing of all that, for guidance

    config.sde = sde = ConfigDict({"name": "vp", "t_min": 1e-3, "t_max": 1.0})  # sampling's range
    sde.beta_min = 0.1
    sde.beta_max = 20.0

    config.net = net = ConfigDict({"name": "unet"})
    net.width = 128  # channels of level 0
    net.multipliers = (1, 2, 2, 2)  # channels of level i are width * multipliers[i]
    net.blocks = 4  # residual blocks a level of the encoder
    net.decoder_blocks = placeholder(int)  # of the decoder; None: one more than the encoder
    net.middle = ("block", "attention", "block")  # between encoder and decoder
    net.resample = "block"  # between levels: a residual block, conv, conv_symmetric, plain
    net.attention = (16,)  # at levels of this height
    net.decoder_attention = "last"  # there after the last block of the decoder's, or after every
    net.heads = 1  # of attention
    net.head_channels = placeholder(int)  # instead: the channels of each head
    net.dropout = 0.1
    net.patch = 1  # space to depth before the first convolution
    net.modulation = "shift"  # how the noise level enters: shift or scale_shift
    net.skip_scale = 0.5**0.5  # what sums of residual blocks are multiplied by
    net.skip_conv = True  # of residual blocks that only resample
    net.group_channels = 4  # of group norms, at least
    net.groups = 32  # of group norms, at most
    net.norm_eps = 1e-6
    net.embedding = "positional"  # of the noise level: positional, positional_adm, fourier
    net.taps = (1, 1)  # the filter of resampling; (1, 3, 3, 1) in NCSN++
    net.progressive_input = "none"  # the image again at every level: skip, residual
    net.progressive_combine = "sum"  # how skip joins: sum or cat
    net.progressive_output = "none"  # skip: an image off every level of the decoder, added up

    config.model = model = ConfigDict()
    model.target = "eps"  # what the network predicts: eps, x0, v, velocity, score, F, ...
    model.data_std = 0.5  # of the data in the model's range
    model.time_input = "time"  # the network is told 999 t; log_sigma: log(sigma/alpha)/4
    model.time_scale = placeholder(float)  # another factor than 999 or 1/4
    model.learned_variance = False  # of the reverse steps; for the variance=learned of ancestral
    model.scale_input = placeholder(bool)  # inputs of unit variance; None: only for the target F
    model.center = placeholder(bool)  # the network is about what the mean (of a class) leaves
    model.precision = "fp32"  # or bf16 autocast; on CUDA also tf32, and fp16 with scaled gradients

    config.loss = loss = ConfigDict()
    loss.weighting = "simple"  # simple, likelihood, edm, min_snr, output
    loss.times = "uniform"  # uniform, discrete, lognormal, importance
    loss.t_min = 1e-5  # smallest training time
    loss.steps = 1000  # of the chain, for discrete times
    loss.log_sigma_mean = -1.2  # of lognormal times
    loss.log_sigma_std = 1.2
    loss.variance_weight = 0.0  # 0.001 with model.learned_variance and discrete times
    loss.uncertainty = False  # weigh each time by what the network expects there; net.name=edm2
    loss.stratified = False  # spread each batch evenly over the times
    loss.reduction = "mean"  # over coordinates; half_sum is Song's for VE

    config.training = training = ConfigDict()
    training.batch_size = 128  # of an update, over all processes
    training.batch_per_device = placeholder(int)  # most at a time; the rest in further passes
    training.steps = 950_000
    training.minutes = 0.0  # wall-clock limit of the run, 0 for none
    training.optimizer = "adam"  # or muon
    training.lr = 2e-4
    training.betas = (0.9, 0.999)
    training.weight_decay = 0.0
    training.muon_lr = 0.03
    training.warmup_steps = 5000
    training.decay = 0.0  # fraction of the run over whose end the learning rate falls to 0
    training.grad_clip = 1.0  # largest norm of the gradient, 0 for none
    training.ema_decay = 0.9999  # of the averaged weights
    training.ema_sigma_rel = placeholder(float)  # instead: width relative to the run so far
    training.ema_halflives = ()  # in updates, of further averages: --weights ema_halflife_500
    training.ema_snapshot_every = 0  # updates; for --mode ema, an average of any length later on
    training.log_every = 50
    training.save_every = 10_000
    training.sample_every = 10_000
    training.keep = 2  # newest checkpoints kept
    training.keep_every = 0  # and those of every so many updates, for ever
    training.evaluate_every = 0  # updates between held-out losses and distances of samples
    training.evaluate_samples = 500  # of such a distance; 0: only the loss
    training.keep_best = False  # keep the checkpoint of the smallest held-out loss, --step best
    training.sample_images = 36  # of the grids drawn as training goes on
    training.sample_nfe = 10  # evaluations for each of them, by dpmpp_2m; 0: as in sampling
    training.max_bad_steps = 20  # in a row without a finite gradient, after which to stop
    training.compile = False  # torch.compile
    training.sharding = "none"  # full: divide a large network over the processes (FSDP)
    training.checkpoints = "whole"  # sharded: each process saves its part, with sharding="full"
    training.tensorboard = True
    training.wandb = False  # Weights & Biases: pip install "score-sde[wandb]"

    config.sampling = sampling = ConfigDict()
    sampling.method = "euler_maruyama"  # see --list_samplers
    sampling.steps = 1000  # intervals of the time grid
    sampling.nfe = placeholder(int)  # instead: the most evaluations of the network per sample
    sampling.grid = placeholder(str)  # uniform, logsnr, karras; None: the method's own
    sampling.denoise = True  # end with E[x_0 | x_{t_min}]
    sampling.batch_size = 128

    if variant == "subvp":
        sde.name = "subvp"
    elif variant == "ddpm":
        config.sde = ConfigDict({"name": "table", "table": "linear", "steps": 1000})
        loss.times = "discrete"
        loss.t_min = placeholder(float)
        sampling.method = "ancestral"
        sampling.steps = 999  # and the final denoising: the 1000 steps of Algorithm 2
    elif variant == "cosine":
        config.sde = ConfigDict({"name": "cosine", "offset": 0.008})
        sampling.method = "ancestral"
    elif variant == "iddpm":
        config.sde = ConfigDict({"name": "table", "table": "cosine", "steps": 4000})
        model.learned_variance = True
        loss.times, loss.steps, loss.variance_weight = "discrete", 4000, 0.001
        loss.t_min = placeholder(float)
        sampling.method, sampling.steps = "ancestral", 250
        sampling.options = ConfigDict({"variance": "learned"})
    elif variant == "flow":
        config.sde = ConfigDict({"name": "flow"})
        model.target = "velocity"
        loss.weighting = "output"  # the squared error of the velocity
        loss.t_min = 1e-4
        sampling.method, sampling.steps = "heun", 25
    elif variant == "classes":
        conditioning.classes, conditioning.dropout = True, 0.1
    elif variant == "small":
        net.width, net.multipliers, net.blocks, net.attention = 64, (1, 2), 2, (8,)
        net.decoder_blocks, net.middle, net.resample = 2, ("block",), "conv"
        net.patch, net.modulation, net.skip_scale, net.dropout = 2, "scale_shift", 1.0, 0.0
        net.group_channels = 16
        training.batch_size, training.steps, training.lr = 64, 20_000, 1e-3
        training.warmup_steps, training.decay = 200, 0.5
        training.ema_decay, training.ema_sigma_rel = 0.999, 0.1
        training.save_every = training.sample_every = 1000
        data.workers = 0
        sampling.method, sampling.steps, sampling.nfe = "heun", None, 39
    return config
