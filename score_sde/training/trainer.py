"""One update after the other: batches in, weights and their averages out.

`Trainer.update` is the step: noise, loss, gradients, weights, averages. All randomness of update k
is a function of (seed, k) and the place in the batch (`noise.StepRandomness`), as is the order of
the data, so that a run that is stopped and resumed goes on exactly as if it had not been, and
several passes or processes do together what one would. The loop around it is `session.Session`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from score_sde import distributed
from score_sde.devices import moved
from score_sde.losses import LossTerms
from score_sde.models import PRECISIONS
from score_sde.noise import StepRandomness
from score_sde.scores import without
from score_sde.training.checkpoints import Checkpoint
from score_sde.training.ema import EMA
from score_sde.training.errors import TrainingError, explained
from score_sde.training.logs import NoiseBins, bin_names, peak_memory
from score_sde.training.objective import Ending, Objective, Trainable
from score_sde.training.optim import learning_rate_factor, make_optimizers, step_unless
from score_sde.training.outcomes import Outcome, Outcomes
from score_sde.training.posthoc import WIDTHS
from score_sde.training.precision import set_precision
from score_sde.training.settings import TrainingSettings
from score_sde.training.sharded import layout_of
from score_sde.training.sharding import load_net, load_optimizer, shard, whole

MOST_UNREAD = 50


Model = TypeVar("Model", bound=Trainable)


def check_division(settings: TrainingSettings) -> None:
    """Raise TrainingError for a batch that cannot be divided over the processes as it must be."""
    size = distributed.size()
    if settings.batch_size < size:
        raise TrainingError(
            f"training.batch_size={settings.batch_size} leaves nothing to some of the {size} "
            "processes. Use a larger batch or fewer processes."
        )
    sharded = settings.sharding == "full" and size > 1
    if sharded and settings.batch_per_device == 1 and settings.batch_size % size:
        raise TrainingError(
            f"training.sharding=full needs as many passes from all of {size} processes, and "
            f"training.batch_per_device=1 divides batch_size={settings.batch_size} unevenly. Use a "
            f"multiple of {size}, or 2."
        )


class Trainer(Generic[Model]):
    """A model, its objective, optimisers and averages: `update` does one step.

    data_std: standard deviation of the data, of the trivial predictor that errors are shown beside.
    dropout: probability that a row is told nothing of its condition (`conditioning.told`).
    device: where to train; where the network is, if None. A network to be sharded is best on the
    CPU: it then never is whole on the device.
    ending: another objective for the last share of the training.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        settings: TrainingSettings,
        seed: int = 0,
        data_std: float = 1.0,
        device: torch.device | None = None,
        dropout: float = 0.0,
        ending: Ending | None = None,
    ):
        check_division(settings)
        self.model, self.objective, self.settings, self.seed = model, objective, settings, seed
        self.data_std, self.dropout, self.ending = data_std, dropout, ending
        self.device = device or next(model.net.parameters()).device
        self.sharded = settings.sharding == "full" and distributed.size() > 1
        self.rows = distributed.share(settings.batch_size)
        self.scaler = set_precision(model.precision, self.device)
        self.ema = self._average(settings.ema_decay, settings.ema_sigma_rel)
        self.averages = {f"ema_halflife_{h:g}": self._average(halflife=h)
                         for h in settings.ema_halflives}  # fmt: skip
        widths = WIDTHS if settings.ema_snapshot_every else ()
        self.powers = {width: self._average(sigma_rel=width) for width in widths}
        self._place(model.net)
        self.optimizers = make_optimizers(
            model.net, settings.optimizer, settings.lr, settings.betas,
            settings.weight_decay, settings.muon_lr, PRECISIONS[model.precision],
        )  # fmt: skip
        # The network as it is called; weights are read, averaged and saved from model.net itself.
        self.called_net = model.net if self.sharded else distributed.wrap(model.net)
        if settings.compile:
            self.called_net = torch.compile(self.called_net)  # type: ignore[assignment]
        self.called_model = model.with_net(self.called_net)
        self.step, self.seconds = 0, 0.0
        self.outcomes = Outcomes(settings.max_bad_steps, self._place_of)
        self.bins = NoiseBins(objective.measures)

    def _average(self, decay: float = 0.0, sigma_rel: float | None = None,
                 halflife: float | None = None) -> EMA:  # fmt: skip
        ema = EMA(self.model.net, decay, sigma_rel, halflife)
        self._place(ema.net)  # before the next one: whole copies are never many
        return ema

    def _place(self, net: nn.Module) -> None:
        shard(net, self.device) if self.sharded else net.to(self.device)

    def _every_average(self) -> dict[str, EMA]:
        """By the names that they have in checkpoints."""
        powers = {f"ema_power_{width:g}": ema for width, ema in self.powers.items()}
        return {"ema": self.ema, **self.averages, **powers}

    @property
    def progress(self) -> float:
        """The fraction of the run that is over."""
        by_time = self.seconds / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return max(self.step / self.settings.steps, by_time)

    @property
    def now(self) -> Objective:
        """What the next update minimises."""
        ends = self.ending is not None and self.progress >= 1 - self.ending.share
        return self.ending.objective if self.ending is not None and ends else self.objective

    def update(self, x0: Tensor, **condition: Tensor) -> dict[str, Any]:
        """One step on this process's rows x0 of a batch; its part of the loss, the norm, the lr.

        A step whose gradient is not finite changes nothing but the averages, which take the same
        weights once more. Nothing waits for the device: loss and norm are tensors () on it, and
        what has happened is found out by `read`, every training.log_every updates.

        condition: what the network is told of them, each with as many rows.
        """
        settings = self.settings
        random = StepRandomness(self.seed, self.step, settings.batch_size)
        self.called_net.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        terms = self._gradient(x0, self._told(condition, random), random)
        with explained(settings):
            norm = self._clip_gradient()
        factor = learning_rate_factor(
            self.step, settings.warmup_steps, self.progress, settings.decay
        )
        bad = ~torch.isfinite(norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["base_lr"]
            step_unless(bad, optimizer)
        for ema in self._every_average().values():
            ema.update(self.model.net)
        self.scaler.update()
        self._count(terms)
        loss_here = terms.loss.sum() / settings.batch_size
        self.outcomes.unread.append(Outcome(self.step, loss_here, norm, bad, terms))
        self.step += 1
        if len(self.outcomes.unread) >= (settings.log_every or MOST_UNREAD):
            self.read()
        return {"loss": loss_here, "grad_norm": norm, "lr": factor * settings.lr}

    def read(self) -> dict[str, float]:
        """Loss of the whole batch and norm of the last update, see `Outcomes.read`."""
        return self.outcomes.read()

    def _told(self, condition: dict[str, Tensor], random: StepRandomness) -> dict[str, Tensor]:
        """The condition, with nothing in the rows that are dropped."""
        if not condition or not self.dropout:
            return condition
        return without(condition, random.dropped(self.dropout, self.rows))

    def _gradient(
        self, x0: Tensor, condition: dict[str, Tensor], random: StepRandomness
    ) -> LossTerms:
        """The gradient of the batch's mean loss, added up over passes; the terms of these rows."""
        t, eps = self._draw(x0, random)
        terms = []
        for part, last in self._passes():
            random.for_layers(self.rows.start + part.start)
            told = {name: value[part] for name, value in condition.items()}
            waits = distributed.without_exchange(self.called_net, not last)
            with waits, explained(self.settings):
                term = self.now(self.called_model, x0[part], t[part], eps[part], **told)
                loss = term.loss.sum() * (distributed.size() / self.settings.batch_size)
                self.scaler.scale(loss).backward()
            terms.append(LossTerms(*(value.detach() for value in term)))
        return LossTerms(*(torch.cat(values) for values in zip(*terms, strict=True)))

    def _draw(self, x0: Tensor, random: StepRandomness) -> tuple[Tensor, Tensor]:
        """Times and noise of this process's rows x0: what is random in their loss."""
        random.for_times()
        times = self.now.draw_times(self.model, self.settings.batch_size, "cpu")
        mine = times[self.rows.start : self.rows.stop]
        return moved(mine, x0.device), random.noise(x0, self.rows)

    def _passes(self) -> Iterator[tuple[slice, bool]]:
        """Parts of this process's rows, at most batch_per_device each, and whether it is the last.

        All processes make the same number of passes.
        """
        most = max(1, -(-self.settings.batch_size // distributed.size()))
        count = -(-most // min(self.settings.batch_per_device or most, most))
        n = len(self.rows)
        for i in range(count):
            part = slice(i * n // count, (i + 1) * n // count)
            if part.stop > part.start:
                yield part, part.stop == n

    def _clip_gradient(self) -> Tensor:
        """Bring the gradient's norm below the limit; returns what it was."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        limit = self.settings.grad_clip or float("inf")
        return whole(nn.utils.clip_grad_norm_(self.model.net.parameters(), limit))

    def _count(self, terms: LossTerms) -> None:
        log_snr = self.model.sde.log_snr(terms.t)
        trivial = self.now.trivial(self.model, terms.t, self.data_std)
        self.bins.add(torch.exp(-0.5 * log_snr), terms.error, trivial)

    def _place_of(self, t: Tensor) -> str:
        """In which noise levels these times are, to be followed by the items."""
        levels = torch.exp(-0.5 * self.model.sde.log_snr(t))
        return f"noise level {', '.join(bin_names(levels))}; "

    # Saved and resumed ------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """All that is needed to go on, not copied; sharded tensors are still so (`writer`)."""
        self.read()
        training = {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }
        averages = self._every_average()
        meta = {
            "seconds": self.seconds,
            "seed": self.seed,
            "ema_updates": {name: ema.updates for name, ema in averages.items()},
            "bins": self.bins.sums(),
            **self.outcomes.counts(),
        }
        states = {name: ema.net.state_dict() for name, ema in averages.items()}
        return Checkpoint(self.model.net.state_dict(), states.pop("ema"), training, meta, states)

    def layout(self) -> dict[str, Tensor]:
        """How the tensors of a checkpoint that was written in parts are read here."""
        return layout_of(self.checkpoint(), self.optimizers)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. What it does not have starts anew: averages from its weights."""
        start: dict[str, Any] = {"seed": self.seed, "seconds": 0.0, "ema_updates": {}, "bins": None}
        meta = start | checkpoint.meta
        load_net(self.model.net, checkpoint.model)
        for name, ema in self._every_average().items():
            saved = checkpoint.ema if name == "ema" else checkpoint.averages.get(name)
            load_net(ema.net, checkpoint.model if saved is None else saved)
            ema.updates = 0 if saved is None else meta["ema_updates"].get(name, meta["step"])
        states = checkpoint.training.get("optimizers")
        for optimizer, state in zip(self.optimizers, states, strict=True) if states else ():
            base = [group["base_lr"] for group in optimizer.param_groups]
            load_optimizer(optimizer, state)
            # The learning rate of the config counts, also when it was changed for the resumption.
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["base_lr"] = lr
        if checkpoint.training.get("scaler"):
            self.scaler.load_state_dict(checkpoint.training["scaler"])
        self.step, self.seconds, self.seed = meta["step"], meta["seconds"], meta["seed"]
        self.outcomes.restore(meta)
        if meta["bins"] is not None:
            self.bins.restore(meta["bins"])

    def scalars(self, values: dict[str, float], speed: float, x0: Tensor) -> dict[str, Any]:
        """What is logged; the means of the noise bins are of all processes."""
        low, high, spread = float(x0.min()), float(x0.max()), float(x0.std())
        return {
            **values,
            "loss_smooth": self.outcomes.smooth_loss,
            "images_per_second": speed,
            "eta_seconds": self.seconds * (1 / self.progress - 1),
            "seconds": self.seconds,
            "memory_gb": peak_memory(self.device),
            "skipped_steps": self.outcomes.skipped_steps,
            "ema_distance": self.ema.distance(self.model.net),
            "data/min": low,
            "data/max": high,
            "data/std": spread,
            **self.bins.pop(),
        }
