"""The loop of training: update, log, save, draw, until the run is over or a signal stops it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from score_sde import distributed
from score_sde.data import Data
from score_sde.data.batches import batch_indices
from score_sde.models import ScoreModel
from score_sde.training.checkpoints import Checkpoint, save_checkpoint, save_tensors
from score_sde.training.logs import Logger
from score_sde.training.posthoc import snapshot_path, snapshot_state
from score_sde.training.sharded import start_saving
from score_sde.training.steps import held_out_losses
from score_sde.training.stopping import Interrupted, StopSignals
from score_sde.training.trainer import Trainer
from score_sde.training.writer import BackgroundWriter

Told = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""What the network is told of the condition of a batch."""

BAR = "{percentage:3.0f}%|{bar:20}| {desc}"


class Directory(Protocol):
    """What a session asks of the directory of its run."""

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""

    @property
    def snapshots(self) -> Path:
        """Where snapshots of averages go."""

    def check_mine(self) -> None:
        """Raise if nothing can be saved there any more."""

    def save_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a grid (H, W[, 3]), uint8."""

    def drop_replaced(self) -> None:
        """Called after each checkpoint: what the run replaces may go."""


@dataclass(frozen=True)
class Pictures:
    """Grids of the same noise as training goes on.

    draw: a picture (H, W[, 3]), uint8, of samples by a model, None where there is none to be drawn.
    models: those that are shown, by the ending of their pictures' names.
    """

    draw: Callable[[ScoreModel], np.ndarray | None]
    models: dict[str, ScoreModel]


def nothing(condition: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Of a network that is told nothing."""
    return {}


class Session:
    """Trains into a directory; under torchrun all processes have one, and the first one writes.

    told: what the network is told. pictures: None where samples cannot be pictured. logger: of the
        process that writes.
    evaluation: numbers of the averaged model, "held_out_loss" among them where there are held-out
        items; called by all processes.
    """

    def __init__(
        self,
        directory: Directory,
        trainer: Trainer,
        data: Data,
        told: Told = nothing,
        pictures: Pictures | None = None,
        logger: Logger | None = None,
        saved_step: int = -1,
        evaluation: Callable[[], dict[str, float]] | None = None,
    ):
        self.directory, self.trainer, self.data = directory, trainer, data
        self.told = told
        self.pictures, self.logger, self.saved_step = pictures, logger, saved_step
        self.settings, self.evaluation = trainer.settings, evaluation
        self.held_out_loss: float | None = None  # of this step, None where it was not evaluated
        self.best = min(held_out_losses(directory.checkpoints).values(), default=math.inf)
        self.writer = BackgroundWriter()
        sharded = trainer.sharded and self.settings.checkpoints == "sharded"
        self.group = distributed.group_of_hosts() if sharded else None
        trainer.outcomes.name_row = self._name_row

    def run(self) -> None:
        """To the end of the run; all that was saved is then on the disk.

        Raises Interrupted, after a save, when a signal asks for it.
        """
        trainer, settings = self.trainer, self.settings
        batches = self.data.batches(
            settings.batch_size, trainer.seed, trainer.step, trainer.device, trainer.rows
        )
        quiet = not distributed.is_writer()
        clock = _Clock(trainer.seconds, trainer.step)
        with (
            StopSignals(impatient=distributed.size() == 1) as stop,
            tqdm(total=1000, bar_format=BAR, mininterval=1.0, disable=quiet) as bar,
        ):
            while trainer.progress < 1:
                x0, condition = next(batches)
                values = trainer.update(x0, **self.told(condition))
                trainer.seconds, stopping = distributed.total(
                    [0.0 if quiet else clock.seconds(), stop.number]
                )
                bar.update(min(round(1000 * trainer.progress), 1000) - bar.n)
                self.writer.check()
                if self._due(settings.log_every):
                    self.log(values | trainer.read(), x0, clock, bar)
                if self._due(settings.ema_snapshot_every):
                    self.snapshot()
                self.held_out_loss = None
                if self._due(settings.evaluate_every):
                    self.evaluate()
                if self._due(settings.save_every):
                    self.save()
                if self._due(settings.sample_every):
                    self.draw()
                if stopping:
                    self.save()
                    self.writer.wait()
                    raise Interrupted(stop.number or signal.SIGTERM)
            if settings.evaluate_every and not self._due(settings.evaluate_every):
                self.evaluate()
            self.save()
            self.writer.wait()
            self.draw()

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.step % every == 0

    def log(self, values: dict[str, float], x0: Tensor, clock: _Clock, bar: tqdm) -> None:
        """A line of numbers, and a shorter one beside the bar; all processes add up their part."""
        trainer = self.trainer
        speed = clock.speed(trainer.step) * self.settings.batch_size
        scalars = trainer.scalars(values, speed, x0)
        if self.logger is not None:
            self.logger.scalars(trainer.step, scalars)
        shown = f"step {trainer.step}, loss {trainer.outcomes.smooth_loss:.4f}, {speed:.0f} items/s"
        bar.set_description_str(f"{shown}, ETA {scalars['eta_seconds']:.0f} s", refresh=False)

    def evaluate(self) -> None:
        """Numbers of the averaged model into the log; a checkpoint if it is the best so far."""
        if self.evaluation is None:
            return
        values = self.evaluation()
        if self.logger is not None:
            self.logger.scalars(self.trainer.step, values)
        self.held_out_loss = values.get("held_out_loss")
        if self.held_out_loss is not None and self.held_out_loss < self.best:
            self.best = self.held_out_loss
            if self.settings.keep_best:
                self.save()

    def snapshot(self) -> None:
        """The averages from which one of any length can be made later, in the background."""
        self._check_directory()
        path = snapshot_path(self.directory.snapshots, self.trainer.step)
        state = snapshot_state(self.trainer.powers)
        self.writer.submit("snapshot", lambda copied: save_tensors(path, copied), state)

    def save(self) -> None:
        """A checkpoint of this step, written in the background."""
        if self.saved_step == self.trainer.step:
            return
        self._check_directory()
        self.saved_step = step = self.trainer.step

        def write(parts: dict) -> None:
            kept = self.settings.keep, self.settings.keep_every, self.settings.keep_best
            save_checkpoint(self.directory.checkpoints, step, Checkpoint(**parts), *kept)
            self.directory.drop_replaced()

        checkpoint = self.trainer.checkpoint()
        if self.held_out_loss is not None:
            checkpoint.meta["held_out_loss"] = self.held_out_loss
        if self.group is not None:
            self.writer.wait()
            kept = self.settings.keep, self.settings.keep_every, self.settings.keep_best
            folder = self.directory.checkpoints
            finish = start_saving(folder, step, checkpoint, self.group, *kept)

            def write_parts() -> None:
                finish()
                if distributed.is_writer():
                    self.directory.drop_replaced()

            return self.writer.run(write_parts)
        self.writer.submit("checkpoint", write, vars(checkpoint))

    def draw(self) -> None:
        """Grids of the same noise, by the averaged and by the raw weights."""
        if self.pictures is None:
            return
        self._check_directory()
        for ending, model in self.pictures.models.items():
            model.eval()  # the next update sets the weights as trained back to training
            picture = self.pictures.draw(model)
            if picture is not None and self.logger is not None:
                self.directory.save_picture(self.trainer.step, ending, picture)
                self.logger.image(self.trainer.step, f"samples{ending}", picture)

    def _check_directory(self) -> None:
        if distributed.is_writer():
            self.directory.check_mine()

    def _name_row(self, step: int, row: int) -> str:
        """What people call the item in a row of the batch of a step."""
        trainer = self.trainer
        where = (len(self.data), self.settings.batch_size, trainer.seed, step)
        return self.data.name_of(batch_indices(*where)[trainer.rows.start + row])

    def close(self) -> None:
        """Finish what is being written, whatever has happened."""
        if self.logger is not None:
            self.logger.close()
        self.writer.wait()


class _Clock:
    """Seconds of the run, those of earlier sessions counted in, and updates a second."""

    def __init__(self, before: float, step: int):
        self._started = time.perf_counter()
        self._before, self._mark = before, (step, self._started)

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def speed(self, step: int) -> float:
        """Updates a second since the last call."""
        (last_step, last), self._mark = self._mark, (step, time.perf_counter())
        return (step - last_step) / (self._mark[1] - last)
