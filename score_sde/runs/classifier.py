"""A classifier of noisy samples as a run of its own: `--mode train_classifier`, `--classifier`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from score_sde import build, distributed
from score_sde.checks import trusting, trusts_files
from score_sde.data import DataSpec
from score_sde.devices import pick_device
from score_sde.models import NoisyClassifier
from score_sde.noise import seed_torch
from score_sde.runs.directory import RunDirectory
from score_sde.runs.prepare import Parts, as_begun, facts_of
from score_sde.runs.reading import build_with, read_facts
from score_sde.runs.signature import is_signed
from score_sde.runs.train import Order, carry_out, resolve
from score_sde.runs.weights import find_weights
from score_sde.training import Trainer
from score_sde.training.checkpoints import tensor_sum


@dataclass(frozen=True)
class Classifier:
    """A trained classifier, and what it was trained on. Make one by `load_classifier`."""

    path: Path
    model: NoisyClassifier
    data_spec: DataSpec
    step: int

    def __repr__(self) -> str:
        names = ", ".join(self.data_spec.classes[:12])
        return f"Classifier {self.path} at step {self.step}, of {names}, under {self.model.sde}"

    @property
    def identity(self) -> dict[str, Any]:
        """What samples that it leads depend on."""
        return {"step": self.step, "model": tensor_sum(self.model.net.state_dict())}


def load_classifier(path: str | Path, weights: str = "ema", device: str = "auto") -> Classifier:
    """A classifier from its directory, of the newest checkpoint, with averaged weights.

    Raises RunError for a directory that is none, or holds another kind of run.
    """
    path = Path(path)
    facts = read_facts(path)
    trusted = trusts_files() or is_signed(RunDirectory(path).config)
    step, state = find_weights(path, weights)
    with trusting(trusted):
        model = build_with(path, facts, state, build.build_classifier)
    model = model.to(pick_device(device)).eval().requires_grad_(False)
    return Classifier(path, model, facts.data_spec, step)


def train_classifier(
    config: str | Mapping[str, Any] | None,
    workdir: str | Path | None = None,
    resume: str = "no",
    resume_changed: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    data: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Classifier:
    """Train a classifier of noisy samples, or go on with one: ``--mode train_classifier``.

    config: with a net that is a classifier, see configs/classifier_fashion.py; the classes are
    those of the data. Everything else is as of `train`, and so are checkpoints and logs: the loss
    is the cross-entropy in nats, "wrong" the share of wrong guesses by the noise level.
    """
    again: bool | str = resume != "no" if resume != "auto" else "auto"
    changes = dict(changes or {}) | ({} if data is None else {"data.name": data})
    directory, settings = resolve(config, workdir, again, changes)
    own = config is not None or trusts_files() or is_signed(directory.config)
    order = Order(own, again, overwrite, device, resume_changed)
    carry_out(directory, settings, order, _prepare)
    return load_classifier(directory.path, device=device)


def _prepare(
    config: Mapping[str, Any],
    device: torch.device,
    saved: Mapping[str, Any],
    directory: RunDirectory,
) -> Parts:
    """Everything, in memory only; see `prepare.prepare`."""
    build.check_sections(config)
    settings, objective = build.build_training(config), build.build_classification(config)
    conditioning, seed = build.build_conditioning(config), build.build_seed(config)
    with distributed.writer_first():  # it may have to download them
        data = build.build_data(config)
    data = as_begun(data, saved)
    seed_torch(seed)
    model = build.build_classifier(config, data.spec)
    objective.check(model.sde)
    data_std = float(data.reference(1000).std())
    trainer = Trainer(model, objective, settings, seed, data_std, device)
    return Parts(data, conditioning, trainer, None, facts_of(config, data, data_std))
