"""How to train: every field of a config's training section."""

from __future__ import annotations

from dataclasses import dataclass

SHARDINGS = ("none", "full")


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
    sample_images, sample_nfe: images of a grid, and evaluations for each by dpmpp_2m; 0: by the
        sampler of the config.
    max_bad_steps: steps in a row with a gradient that is not finite after which the run stops.
    compile: run the network through torch.compile.
    sharding: of many processes, each has all of the network ("none"), or the "full" network, its
        optimiser and averages are divided over them (`sharding`), for those too large for a device.
    tensorboard, wandb: write TensorBoard files, or to Weights & Biases, beside log.jsonl.
    """

    batch_size: int = 128
    batch_per_device: int | None = None
    steps: int = 100_000
    minutes: float = 0.0
    optimizer: str = "adam"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    muon_lr: float = 0.03
    warmup_steps: int = 1000
    decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    ema_sigma_rel: float | None = None
    ema_halflives: tuple[float, ...] = ()
    ema_snapshot_every: int = 0
    log_every: int = 50
    save_every: int = 5000
    sample_every: int = 5000
    keep: int = 2
    keep_every: int = 0
    sample_images: int = 64
    sample_nfe: int = 0
    max_bad_steps: int = 20
    compile: bool = False
    sharding: str = "none"
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "lr", "keep", "max_bad_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name} must be above 0 (got {getattr(self, name)}).")
        for name in ("minutes", "keep_every", "ema_snapshot_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name} must be at least 0 (got {getattr(self, name)}).")
        if self.sharding not in SHARDINGS:
            raise ValueError(
                f"training.sharding {self.sharding!r} is unknown; choose from {SHARDINGS}."
            )
        if self.sharding != "none" and self.compile:
            raise ValueError(
                f"training.sharding={self.sharding} and training.compile=True exclude each other: "
                "choose one."
            )
        if not 0 <= self.decay <= 1:
            raise ValueError(f"training.decay must lie in [0, 1] (got {self.decay}).")
        if self.batch_per_device is not None and self.batch_per_device < 1:
            raise ValueError(
                f"training.batch_per_device must be at least 1 (got {self.batch_per_device})."
            )
