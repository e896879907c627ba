"""How to train: every field of a config's training section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from score_sde.checks import (
    Count,
    Fraction,
    Index,
    Momentum,
    NonNegative,
    Positive,
    Row,
    require,
    validated,
)
from score_sde.training.ema import Width


@validated("training")
@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    batch_size: items an update, over all processes. steps: updates of the whole run.
    batch_per_device: most items at a time on one device; the gradients of several passes are
        added up to the same update. None: all at once.
    minutes: wall-clock limit of the whole run, resumed parts counted in, 0 for none; the run ends
        at whichever of steps and minutes comes first, its learning rate having fallen in time.
    optimizer: "adam", or "muon" for the convolutions and Adam for the rest.
    lr, betas, weight_decay: of Adam. muon_lr: of Muon.
    warmup_steps: the learning rate rises linearly over these.
    decay: fraction of the run over whose end the learning rate falls linearly to 0.
    grad_clip: largest norm of the gradient; 0 for none.
    ema_decay, ema_sigma_rel: of the averaged weights, see `EMA`.
    ema_halflives: half-lives, in updates, of further averages kept beside it.
    ema_snapshot_every: updates between snapshots from which an average of any length is made after
        training (`posthoc`); 0 for none.
    log_every, save_every, sample_every: updates between them; 0 for never (the end always saves).
    keep: newest checkpoints that are kept. keep_every: and those of every so many updates, 0: none.
    evaluate_every: updates between evaluations: the loss of held-out items, where the data have a
        test split, and the distance of a few samples to the data (`runs.watching`); 0 for none.
    evaluate_samples: how many samples; 0 for the loss alone.
    keep_best: keep the checkpoint with the smallest held-out loss as well (`--step best`).
    sample_images, sample_nfe: images of a grid, and evaluations for each by dpmpp_2m; 0: by the
        sampler of the config.
    max_bad_steps: steps in a row with a gradient that is not finite after which the run stops.
    compile: run the network through torch.compile.
    sharding: of many processes, each has all of the network ("none"), or the "full" network, its
        optimiser and averages are divided over them (`sharding`), for those too large for a device.
    checkpoints: "whole" tensors, gathered by the first process, or, with sharding=full, "sharded":
        each process writes and reads its part (`sharded`), into a folder that all of them see.
    tensorboard, wandb: write TensorBoard files, or to Weights & Biases, beside log.jsonl.
    """

    batch_size: Count = 128
    batch_per_device: Count | None = None
    steps: Count = 100_000
    minutes: NonNegative = 0.0
    optimizer: Literal["adam", "muon"] = "adam"
    lr: Positive = 2e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    muon_lr: Positive = 0.03
    warmup_steps: Index = 1000
    decay: Fraction = 0.0
    grad_clip: NonNegative = 1.0
    ema_decay: Momentum = 0.9999
    ema_sigma_rel: Width | None = None
    ema_halflives: Row[Positive] = ()
    ema_snapshot_every: Index = 0
    log_every: Index = 50
    save_every: Index = 5000
    sample_every: Index = 5000
    keep: Count = 2
    keep_every: Index = 0
    evaluate_every: Index = 0
    evaluate_samples: Index = 500
    keep_best: bool = False
    sample_images: Count = 64
    sample_nfe: Index = 0
    max_bad_steps: Count = 20
    compile: bool = False
    sharding: Literal["none", "full"] = "none"
    checkpoints: Literal["whole", "sharded"] = "whole"
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        require(
            self.sharding == "none" or not self.compile,
            f"training.sharding={self.sharding} and training.compile=True exclude each other: "
            "choose one.",
        )
        require(
            self.checkpoints == "whole" or self.sharding == "full",
            "training.checkpoints=sharded needs training.sharding=full: otherwise every process "
            "has all of the network.",
        )
        require(
            bool(self.evaluate_every) or not self.keep_best,
            "training.keep_best=True needs the held-out loss: set training.evaluate_every.",
        )
        require(
            self.evaluate_samples == 0 or self.evaluate_samples >= 20,
            f"training.evaluate_samples must be 0 or at least 20 (got {self.evaluate_samples}).",
        )
