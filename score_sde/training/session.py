"""A trainer and the run directory it writes to: checkpoints, snapshots, pictures, logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from score_sde import distributed
from score_sde.data import Data, DataSpec
from score_sde.data.pictures import picture_of, save_png
from score_sde.training.checkpoints import Checkpoint, save_checkpoint, save_tensors
from score_sde.training.logs import Logger
from score_sde.training.posthoc import snapshot_path, snapshot_state
from score_sde.training.trainer import Trainer
from score_sde.training.writer import BackgroundWriter


class Session:
    """Trains into ``workdir``; under torchrun all processes have one, and the first one writes.

    samplers: functions that draw samples in the model's range, by the ending of their pictures'
        names: "" for averaged weights.
    resumed: the trainer was restored from the newest checkpoint in workdir.
    facts: settings to show beside the curves.
    """

    def __init__(
        self,
        workdir: Path,
        trainer: Trainer,
        spec: DataSpec,
        samplers: Mapping[str, Callable[[], Tensor]],
        resumed: bool,
        facts: Mapping[str, Any],
    ):
        self.workdir, self.trainer, self.spec, self.samplers = workdir, trainer, spec, samplers
        self.settings = trainer.settings
        self.writer = BackgroundWriter()
        self.saved_step = trainer.step if resumed else -1
        self.logger = None
        if distributed.is_writer():
            self.logger = Logger(
                workdir,
                self.settings.tensorboard,
                self.settings.wandb,
                trainer.step if resumed else None,
                facts,
            )

    def train(self, data: Data) -> None:
        """To the end of the run, or until it is stopped; all that was saved is then on the disk."""
        try:
            self.trainer.run(data, self.logger, self.save, self.draw, self.each_step)
            self.save()
            self.writer.wait()
            self.draw()
        finally:
            if self.logger is not None:
                self.logger.close()
            self.writer.wait()

    def each_step(self) -> None:
        """Stop soon after a write has failed; keep a snapshot where one is due."""
        self.writer.check()
        every, step = self.settings.ema_snapshot_every, self.trainer.step
        if every and step % every == 0:
            path = snapshot_path(self.workdir, step)
            state = snapshot_state(self.trainer.powers)
            self.writer.submit("snapshot", lambda copied: save_tensors(path, copied), state)

    def save(self) -> None:
        """A checkpoint of this step, written in the background."""
        if self.saved_step == self.trainer.step:
            return
        checkpoint, step = self.trainer.checkpoint(), self.trainer.step
        self.saved_step = step
        keep, keep_every = self.settings.keep, self.settings.keep_every
        self.writer.submit(
            "checkpoint",
            lambda parts: save_checkpoint(
                self.workdir, step, Checkpoint(**parts), keep, keep_every
            ),
            vars(checkpoint),
        )

    def draw(self) -> None:
        """Grids of the same noise, by the averaged and by the raw weights."""
        for ending, sampler in self.samplers.items():
            picture = picture_of(sampler().cpu(), self.spec)
            if picture is not None and self.logger is not None:
                step = self.trainer.step
                save_png(picture, self.workdir / "progress" / f"step_{step:08d}{ending}.png")
                self.logger.image(step, f"samples{ending}", picture)
