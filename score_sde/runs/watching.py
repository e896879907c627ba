"""What `training.evaluate_every` looks at while a run trains.

    held_out_loss, train_loss   the objective on held-out items and on as many training items, by
                                averaged weights at the same times with the same noise every time
    evaluation/<distance>       of a few samples to the training items, without the bias of few
                                samples, and its standard error: the Frechet distance where there
                                are more samples than features, else KID; of vectors the energy
                                distance

Held-out items are the data's test split. A held-out loss that rises while that of training items
falls is overfitting; the checkpoint of the smallest is what `--step best` loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.conditioning.told import Conditioning
from score_sde.data import Data, DataError, DataSpec
from score_sde.data.batches import Batch
from score_sde.evaluation.features import Features, find_features
from score_sde.evaluation.measures import Featured
from score_sde.evaluation.report import as_items, report
from score_sde.models import ScoreModel
from score_sde.nets import packed
from score_sde.noise import StepRandomness
from score_sde.runs.codecs import RunCodec, latents_of
from score_sde.runs.conditions import with_told
from score_sde.runs.directory import RunError
from score_sde.runs.drawn import as_stored
from score_sde.runs.features import featured, stored_items
from score_sde.runs.sampler import Sampler
from score_sde.training import Trainer

MOST_ITEMS = 512  # of each loss
MOST_REAL = 10_000
BATCH = 128


def spread_rows(n: int, most: int) -> range:
    """At most so many of n items, evenly spread: sets may be sorted by class."""
    return range(0, n, -(-n // most))


def spread_items(data: Data, most: int, batch: int = 250) -> Iterator[Batch]:
    """At most so many items, evenly spread, in the model's range, with what is known of them."""
    rows = spread_rows(len(data), most)
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        yield Batch(data.spec.to_model(data.raw_items(part)), data.condition_items(part))


@dataclass(frozen=True)
class Yardstick:
    """What samples are compared with: features of real items, and who draws samples.

    spec: of the real items. draw: samples in its range, by a model; all processes call it.
    """

    real: Featured
    extractor: Features
    measure: str
    spec: DataSpec
    draw: Callable[[ScoreModel], Tensor]

    @classmethod
    def of(
        cls, data: Data, extractor: Features, count: int, draw: Callable[[ScoreModel], Tensor]
    ) -> Yardstick:
        """For ``count`` samples of these data."""
        rows = spread_rows(len(data), MOST_REAL)
        items = torch.cat([stored_items(data, rows=rows[i : i + 512])
                           for i in range(0, len(rows), 512)])  # fmt: skip
        real = featured(extractor, as_items(items, "the data's items"))
        enough = count > 1.5 * real.features.shape[1]
        measure = ("frechet" if enough else "kid") if real.images else "energy"
        return cls(real, extractor, measure, data.spec, draw)

    def distance(self, model: ScoreModel) -> dict[str, float]:
        """The distance of samples by a model and its standard error, by their names in the log."""
        x = self.draw(model)
        if not bool(torch.isfinite(x).all()):
            return {f"evaluation/{self.measure}": float("nan")}
        mine = featured(self.extractor, as_items(as_stored(x, self.spec), "samples"))
        found = report(mine, self.real, [self.measure], few=True).measures[self.measure]
        value = found.value if found.corrected is None else found.corrected
        name = f"evaluation/{found.label.replace(' ', '_')}"
        return {name: value, f"{name}_stderr": found.stderr}


@dataclass(frozen=True)
class Watcher:
    """Evaluates a model: `watcher()` is what is logged. All processes call it.

    model: with averaged weights. train: whose scaling both have. held_out: None where the data have
    no test split. sharded: whether the network is divided over processes, which all call it then.
    """

    model: ScoreModel
    objective: Any  # one with times that can be stratified
    conditioning: Conditioning
    train: Data
    held_out: Data | None
    seed: int
    sharded: bool = False
    yardstick: Yardstick | None = None

    def __call__(self) -> dict[str, float]:
        self.model.eval()
        values = {}
        if self.held_out is not None:
            n = min(len(self.held_out), len(self.train), MOST_ITEMS)
            values["held_out_loss"] = self.loss(self.held_out, n)
            values["train_loss"] = self.loss(self.train, n)
        if self.yardstick is not None:
            values |= self.yardstick.distance(self.model)
        return values

    def loss(self, data: Data, n: int) -> float:
        """The objective's mean over n items, at the same times with the same noise always."""
        device = next(self.model.parameters()).device
        rows = spread_rows(len(data), n)
        objective = replace(self.objective, stratified=True)
        random = StepRandomness(self.seed, 0, len(rows))
        random.for_times()
        t = objective.draw_times(self.model, len(rows), "cpu")
        mine = range(len(rows)) if self.sharded else distributed.share(len(rows))
        total = 0.0
        for start in range(mine.start, mine.stop, BATCH):
            part = range(start, min(start + BATCH, mine.stop))
            places = rows[part.start : part.stop]
            x0 = self.train.spec.to_model(data.raw_items(places)).to(device)
            told = {
                name: value.to(device)
                for name, value in self.conditioning.of(data.condition_items(places)).items()
            }
            eps = random.noise(x0, part)
            with torch.no_grad():
                terms = objective(self.model, x0, t[part.start : part.stop].to(device), eps, **told)
            total += float(terms.loss.sum())
        return total / len(rows) if self.sharded else distributed.total([total])[0] / len(rows)


def watcher_of(
    config: Mapping[str, Any],
    trainer: Trainer,
    sampler: Sampler,
    data: Data,
    conditioning: Conditioning,
    codec: RunCodec | None,
    eye: RunCodec | None = None,
) -> Watcher:
    """What is looked at every so many updates; RunError where there is nothing to look at.

    data: that is trained on, latents where there is a codec; samples are compared as pictures.
    """
    settings = trainer.settings
    held_out = _held_out(config, data, codec)
    if held_out is None and settings.keep_best:
        raise RunError(
            "training.keep_best=True needs held-out items, and these data have no test split: make "
            "folders train and test (or arrays of these names), or set it False."
        )
    if held_out is None and not settings.evaluate_samples:
        raise RunError(
            "training.evaluate_every has nothing to look at: the data have no test split, and "
            "training.evaluate_samples is 0."
        )
    if held_out is not None:
        held_out = with_told(config, held_out, conditioning, eye)[0]
    yardstick, count = None, settings.evaluate_samples
    if count:
        real = data if codec is None else build.build_data(config)
        extractor = find_features(None, as_items(stored_items(real, 1), "the data's items"))
        told = repeated(conditioning.of(data.condition_items(spread_rows(len(data), count))), count)
        draw = drawing(trainer, sampler, (count, *data.spec.shape), told, codec)
        yardstick = Yardstick.of(real, extractor, count, draw)
    model = trainer.model.with_net(trainer.ema.net)
    return Watcher(model, trainer.objective, conditioning, data, held_out, trainer.seed,
                   trainer.sharded, yardstick)  # fmt: skip


def _held_out(config: Mapping[str, Any], data: Data, codec: RunCodec | None) -> Data | None:
    """The test split; None where the data have none, or are it."""
    try:
        found = build.build_data(config, "test")
    except DataError:
        return None
    if data.split == found.split:
        return None
    held_out = found if codec is None else latents_of(found, codec)
    return None if held_out.fingerprint() == data.fingerprint() else held_out


def repeated(known: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """So many rows of a condition, again and again if there are fewer."""
    return {name: value[torch.arange(count) % len(value)] for name, value in known.items()}


def drawing(
    trainer: Trainer,
    sampler: Sampler,
    shape: tuple[int, ...],
    told: dict[str, Tensor],
    codec: RunCodec | None,
) -> Callable[[ScoreModel], Tensor]:
    """Draws samples of this shape (B, ...), told this, of the same noise every time, decoded."""

    def draw(model: ScoreModel) -> Tensor:
        # A network that is divided over the processes is called by all of them equally often.
        way = sampler.draw if trainer.sharded else sampler.draw_shared
        x = way(packed(model).bind(**told), shape, range(shape[0])).x
        return x if codec is None else codec.decode(x)

    return draw
