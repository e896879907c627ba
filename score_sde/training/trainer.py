"""The training loop: batches in, weights and their average out.

All randomness of update k (times, noise, dropout) is a function of (seed, k), as is the order of
the data. Nothing random has to be saved, and a run that is stopped and resumed goes on exactly as
if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from score_sde.data import Data
from score_sde.losses import ScoreMatching, trivial_error
from score_sde.models import ScoreModel
from score_sde.training.checkpoints import Checkpoint
from score_sde.training.ema import EMA
from score_sde.training.logs import Logger, NoiseBins
from score_sde.training.optim import learning_rate_factor, make_optimizers


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to try."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    batch_size: items an update. steps: updates of the whole run.
    minutes: wall-clock limit of the whole run, resumed parts counted in, 0 for none; the run ends
        at whichever of steps and minutes comes first, its learning rate having fallen in time.
    optimizer: "adam", or "muon" for the convolutions and Adam for the rest.
    lr, betas, weight_decay: of Adam. muon_lr: of Muon.
    warmup_steps: the learning rate rises linearly over these.
    decay: fraction of the run over whose end the learning rate falls linearly to 0.
    grad_clip: largest norm of the gradient; 0 for none.
    ema_decay, ema_sigma_rel: see `EMA`.
    log_every, save_every, sample_every: updates between them; 0 for never (the end always saves).
    keep: checkpoints that are kept.
    sample_images, sample_nfe: images of a grid, and evaluations for each by dpmpp_2m; 0: by the
        sampler of the config.
    tensorboard: write TensorBoard files beside log.jsonl.
    """

    batch_size: int = 128
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
    log_every: int = 50
    save_every: int = 5000
    sample_every: int = 5000
    keep: int = 2
    sample_images: int = 64
    sample_nfe: int = 0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name} must be above 0 (got {getattr(self, name)}).")
        if not self.minutes >= 0:
            raise ValueError(f"training.minutes must be at least 0 (got {self.minutes}).")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"training.decay must lie in [0, 1] (got {self.decay}).")


class Trainer:
    """A model, its objective, optimisers and average: `update` does one step."""

    MAX_BAD_STEPS = 20

    def __init__(
        self,
        model: ScoreModel,
        objective: ScoreMatching,
        settings: TrainingSettings,
        seed: int = 0,
        data_std: float = 1.0,
    ):
        self.model, self.objective, self.settings, self.seed = model, objective, settings, seed
        self.data_std = data_std
        self.optimizers = make_optimizers(
            model.net, settings.optimizer, settings.lr, settings.betas,
            settings.weight_decay, settings.muon_lr,
        )  # fmt: skip
        self.ema = EMA(model.net, settings.ema_decay, settings.ema_sigma_rel)
        self.step, self.seconds, self.bad_steps = 0, 0.0, 0
        self.bins = NoiseBins()

    @property
    def progress(self) -> float:
        """The fraction of the run that is over."""
        by_time = self.seconds / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return max(self.step / self.settings.steps, by_time)

    def update(self, x0: Tensor, **condition: Any) -> dict[str, float]:
        """One step on a batch x0 (B, ...); returns loss, gradient norm and learning rate."""
        # Everything random below follows from (seed, step).
        state = np.random.SeedSequence([self.seed, self.step]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)
        self.model.train()
        terms = self.objective(self.model, x0, **condition)
        loss = terms.loss.mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.settings.grad_clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.net.parameters(), limit))
        factor = learning_rate_factor(
            self.step, self.settings.warmup_steps, self.progress, self.settings.decay
        )
        if np.isfinite(norm):
            self.bad_steps = 0
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = factor * group["base_lr"]
                optimizer.step()
            self.ema.update(self.model.net)
        else:
            self._count_bad_step(terms.t)
        self.step += 1
        log_snr = self.model.sde.log_snr(terms.t)
        trivial = trivial_error(self.model.sde, terms.t, self.data_std)
        self.bins.add(torch.exp(-0.5 * log_snr), terms.eps_error, trivial)
        return {"loss": float(loss.detach()), "grad_norm": norm, "lr": factor * self.settings.lr}

    def _count_bad_step(self, t: Tensor) -> None:
        self.bad_steps += 1
        if self.bad_steps >= self.MAX_BAD_STEPS:
            raise TrainingError(
                f"The gradient has not been finite for {self.bad_steps} steps, up to step "
                f"{self.step} (t in [{float(t.min()):.3g}, {float(t.max()):.3g}]). The weights "
                "are those before; saved checkpoints are untouched. Try half the lr, "
                "model.precision=fp32, or training.grad_clip=1."
            )

    def checkpoint(self) -> Checkpoint:
        """All that is needed to go on."""
        training = {"optimizers": [o.state_dict() for o in self.optimizers]}
        meta = {"seconds": self.seconds, "ema_updates": self.ema.updates, "seed": self.seed}
        return Checkpoint(self.model.net.state_dict(), self.ema.net.state_dict(), training, meta)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.model.net.load_state_dict(checkpoint.model)
        self.ema.net.load_state_dict(checkpoint.ema)
        states = checkpoint.training["optimizers"]
        for optimizer, state in zip(self.optimizers, states, strict=True):
            base = [group["base_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            # The learning rate of the config counts, also when it was changed for the resumption.
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["base_lr"] = lr
        self.step, self.seconds = checkpoint.meta["step"], checkpoint.meta["seconds"]
        self.ema.updates, self.seed = checkpoint.meta["ema_updates"], checkpoint.meta["seed"]

    def run(
        self,
        data: Data,
        device: torch.device,
        logger: Logger,
        save: Callable[[], None],
        draw: Callable[[], None],
    ) -> None:
        """Train to the end: ``save`` and ``draw`` are called at their intervals."""
        settings = self.settings
        batches = data.batches(settings.batch_size, self.seed, self.step, device)
        started, before = time.perf_counter(), self.seconds
        smooth, marked = None, (self.step, time.perf_counter())
        form = "{percentage:3.0f}%|{bar:20}| {desc}"
        bar = tqdm(total=1000, bar_format=form, mininterval=1.0)
        while self.progress < 1:
            x0, _ = next(batches)
            values = self.update(x0)
            self.seconds = before + time.perf_counter() - started
            bar.update(min(round(1000 * self.progress), 1000) - bar.n)
            smooth = values["loss"] if smooth is None else 0.98 * smooth + 0.02 * values["loss"]
            if settings.log_every and self.step % settings.log_every == 0:
                now = time.perf_counter()
                speed = (self.step - marked[0]) * settings.batch_size / (now - marked[1])
                eta = self.seconds * (1 / self.progress - 1)
                marked = (self.step, now)
                scalars = {**values, "loss_smooth": smooth, "images_per_second": speed}
                scalars |= {"eta_seconds": eta, "seconds": self.seconds, **self.bins.pop()}
                logger.scalars(self.step, scalars)
                shown = f"step {self.step}, loss {smooth:.4f}, {speed:.0f} items/s, ETA {eta:.0f} s"
                bar.set_description_str(shown, refresh=False)
            if settings.save_every and self.step % settings.save_every == 0:
                save()
            if settings.sample_every and self.step % settings.sample_every == 0:
                draw()
            self.seconds = before + time.perf_counter() - started
        bar.close()
