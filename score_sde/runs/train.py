"""Train a run, or go on with one: `--mode train` and `--mode ema`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from score_sde import build, distributed
from score_sde.checks import trusting, trusts_files
from score_sde.conditioning.text import encode, said_of
from score_sde.conditioning.told import Conditioning, check_told, unused
from score_sde.data import Data, DataSpec
from score_sde.data.pictures import picture_of
from score_sde.models import ScoreModel
from score_sde.nets import packed
from score_sde.runs.configs import load_config, plain, with_changes
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.reading import read_facts
from score_sde.runs.run import Run, load, pick_device
from score_sde.runs.sampler import Sampler, make_sampler
from score_sde.runs.signature import is_signed
from score_sde.training import Interrupted, Logger, Pictures, Session, Trainer
from score_sde.training.checkpoints import load_checkpoint, steps_of, strays
from score_sde.training.posthoc import load_average, reconstruct, save_average
from score_sde.version import __version__

FEW_IMAGES = 500
KEPT = ("sde", "net", "model")  # sections of the model that a resumed run keeps
LEARNED = ("data", "loss", "conditioning")  # and of what it has learned so far
HARMLESS = {"data.workers", "data.strict", "training.optimizer"}


def train(
    config: str | Mapping[str, Any] | None,
    workdir: str | Path | None = None,
    resume: bool | str = False,
    overwrite: bool = False,
    device: str = "auto",
    resume_changed: bool = False,
    **changes: Any,
) -> Run:
    """Train (or go on with) a run; returns it loaded, with averaged weights.

    config: a config's name or path with an optional :variant, a ConfigDict, or a dictionary; None
        for that of the run that is resumed. changes: of its fields, by their dotted names:
        train("vp_fashion", "runs/x", **{"training.steps": 1000}).
    workdir: runs/<name> for a config by name, if None.
    resume: go on with the run in workdir; "auto": if there is a checkpoint, and else start.
        Other data, scaling, loss or conditions than before are an error unless resume_changed.
    overwrite: in place of the run in workdir, which is deleted when the new one has a checkpoint.

    Everything is built and checked before anything is written. Under torchrun all processes call
    it and train together. Raises RunError for a used or missing directory, ConfigError and
    DataError for bad settings, `Interrupted` after a signal.
    """
    directory, settings = _resolve(config, workdir, resume, changes)
    own = config is not None or trusts_files() or is_signed(directory.config)
    if resume == "auto":
        resume = bool(steps_of(directory.path))
        overwrite = overwrite or not resume
    directory.check(bool(resume), overwrite)
    with distributed.processes(pick_device(device)) as chosen:
        with nullcontext() if own else trusting(False):
            parts = _build(settings, chosen, directory.read_config() if resume else {})
        if resume:
            _check_same_run(directory, parts.facts, resume_changed)
        distributed.wait()  # all that can be wrong with the config has been found, by all
        with directory.training() if distributed.is_writer() else nullcontext():
            session = _start(directory, parts, bool(resume), own)
            _announce(directory, parts)
            try:
                session.run()
            except OSError as error:
                raise RunError(
                    f"{directory.path} cannot be written ({error}). The last checkpoint is kept; "
                    "free some space and go on with --resume."
                ) from error
            except Interrupted:
                at = session.trainer.step
                distributed.say(f"\nstopped; step {at} is saved. Go on with --resume.")
                raise
            finally:
                session.close()
            distributed.wait()
        trainer = parts.trainer
        distributed.say(
            f"done: step {trainer.step} in {trainer.seconds:.0f} s; everything is in "
            f"{directory.path}"
        )
        return load(directory.path, device="cpu" if trainer.sharded else str(chosen))


@dataclass(frozen=True)
class Parts:
    """All that a training needs, built and checked. facts: what config.json will hold."""

    data: Data
    conditioning: Conditioning
    trainer: Trainer
    pictures: Pictures | None
    facts: dict[str, Any]


def _resolve(
    config: str | Mapping[str, Any] | None,
    workdir: str | Path | None,
    resume: bool | str,
    changes: Mapping[str, Any],
) -> tuple[RunDirectory, dict[str, Any]]:
    """The directory and the config of a run, from what `train` was given."""
    if isinstance(config, str):
        named = load_config(config)
        config, workdir = named.to_dict(), workdir or Path("runs") / named.run_name
    if workdir is None:
        raise RunError("train needs a workdir where the config has no name.")
    directory = RunDirectory(Path(workdir))
    if config is None:
        if not (resume and directory.is_run):
            raise RunError(
                f"--mode train needs --config: {directory.path} is no run that could be resumed "
                "with its own."
            )
        return directory, with_changes(read_facts(directory.path).config, changes)
    return directory, with_changes(config, changes)


def _build(config: Mapping[str, Any], device: torch.device, saved: Mapping[str, Any]) -> Parts:
    """Everything, in memory only. Raises ConfigError, DataError, LabelError, TrainingError.

    saved: what config.json of the run that is resumed holds.
    """
    build.check_sections(config)
    settings, objective = build.build_training(config), build.build_objective(config)
    conditioning, seed = build.build_conditioning(config), build.build_seed(config)
    sampling = build.build_sampling(config)
    with distributed.writer_first():  # it may have to download them
        data = build.build_data(config)
    if _same(data.spec.to_dict(), saved.get("data_spec")):
        data = replace(data, spec=DataSpec.from_dict(saved["data_spec"]))
    _say_of_data(data, settings.batch_size, conditioning)
    torch.manual_seed(seed)
    model = build.build_model(config, data.spec)
    objective.check(model.sde)
    if conditioning.text:
        data, named = _with_captions(config, data)
        conditioning = conditioning.with_text(named, model.net)
    if conditioning.picture:
        data = _with_smaller(data, conditioning.picture)
    known = data.condition_items(range(min(len(data), 2)))
    check_told(conditioning, known, data.spec.classes, model.net)
    data_std = float(data.reference(1000).std())
    sampler = make_sampler(sampling, model, data_std)
    sampler.rehearse(model, data.spec.shape)
    if settings.sample_nfe:
        cheap = {"method": "dpmpp_2m", "nfe": settings.sample_nfe}
        quick = build.change_sampling(config.get("sampling"), cheap)
        sampler = make_sampler(build.build_sampling({"sampling": quick}), model, data_std)
        sampler.rehearse(model, data.spec.shape)
    trainer = Trainer(model, objective, settings, seed, data_std, device, conditioning.dropout)
    pictures = None
    if picture_of(data.reference(4), data.spec) is not None:
        count = settings.sample_images if data.spec.is_image else 20 * sampling.batch_size
        pictures = _pictures(trainer, sampler, data, conditioning, count)
    facts = {"config": _as_json(config), "data_spec": _as_json(data.spec.to_dict())}
    facts |= {"data_std": data_std, "items": len(data), "fingerprint": _fingerprint(data)}
    return Parts(data, conditioning, trainer, pictures, facts | {"version": __version__})


def _with_smaller(data: Data, factor: int) -> Data:
    """The data with each picture, in the model's range, at a part of its height and width."""
    height, width = data.spec.shape[-2:]
    if not data.spec.is_image or height % factor or width % factor:
        raise RunError(
            f"conditioning.picture={factor} needs images whose sides {factor} divides; items have "
            f"shape {data.spec.shape}."
        )
    parts = [range(i, min(i + 512, len(data))) for i in range(0, len(data), 512)]
    small = [avg_pool2d(data.spec.to_model(data.raw_items(rows)), factor) for rows in parts]
    return data.with_condition(picture=torch.cat(small))


def _same(spec: Mapping[str, Any], saved: Any) -> bool:
    """Whether a spec is the saved one but for rounding: a mean depends on the threads that add."""
    if not isinstance(saved, dict):
        return False
    pairs = [(value, _as_json(spec.get(key))) for key, value in saved.items()]
    return all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in pairs
    )


def _with_captions(config: Mapping[str, Any], data: Data) -> tuple[Data, list[str]]:
    """The data with what the text encoder makes of their captions, and the names of that."""
    if data.captions is None:
        raise RunError("conditioning.text needs data with captions; these have none.")
    encoder = build.build_text_encoder(config)
    _check_width(encoder, config.get("net") or {})
    with distributed.writer_first():  # it may have to download the encoder, and fills the cache
        encoded = encode(encoder, data.captions)
    if encoded.cut:
        distributed.say(said_of(encoded.cut))
    return data.with_condition(**encoded.condition), list(encoded.condition)


def _check_width(encoder: Any, net: Mapping[str, Any]) -> None:
    """RunError unless the network takes captions, and states of the encoder's width."""
    wanted, width = net.get("text") or net.get("text_dim") or 0, getattr(encoder, "width", None)
    if not wanted and not net.get("text_table"):
        raise RunError(
            "conditioning.text tells the network captions that it does not take: set "
            f"{f'net.text={width}' if width else 'net.text_table=8192'}."
        )
    if isinstance(wanted, int) and wanted and width is not None and width != wanted:
        fix = f"net.text={width}" if width else "net.text=0 and net.text_table=8192"
        raise RunError(
            f"the text encoder's states have {width} numbers, net.text is {wanted}: set {fix}."
        )


def _pictures(
    trainer: Trainer, sampler: Sampler, data: Data, conditioning: Conditioning, count: int
) -> Pictures:
    """Grids of ``count`` samples: of all classes in turn, and told what the first items are."""
    known = conditioning.of(data.condition_items(range(min(count, len(data)))))
    told = {name: value[torch.arange(count) % len(value)] for name, value in known.items()}
    if conditioning.classes:
        told["class_labels"] = torch.arange(count) % len(data.spec.classes)

    def draw(model: ScoreModel) -> Tensor:
        score, shape = packed(model).bind(**told), (count, *data.spec.shape)
        # A network that is divided over the processes is called by all of them equally often.
        way = sampler.draw if trainer.sharded else sampler.draw_shared
        return way(score, shape, range(count)).x

    models = {"": trainer.model.with_net(trainer.ema.net), "_raw": trainer.model}
    return Pictures(draw, models, data.spec)


def _say_of_data(data: Data, batch_size: int, conditioning: Conditioning) -> None:
    """What is worth knowing of the data before training on them."""
    for note in (*data.notes, unused(conditioning, data.spec.classes)):
        if note:
            distributed.say(note)
    n = len(data)
    if n < batch_size:
        distributed.say(f"{n} items < batch {batch_size}: items repeat within a batch.")
    if data.spec.is_image and n < FEW_IMAGES:
        distributed.say(
            f"{n} images are few: a model of usual size learns them by heart, and its samples "
            "are copies. Compare them with the training images, or train a smaller one."
        )


def _fingerprint(data: Data) -> str | None:
    """Of the data; None if its items are others whenever one looks, as augmented ones are."""
    few = range(min(len(data), 4))
    return data.fingerprint() if torch.equal(*(data.raw_items(few) for _ in "ab")) else None


def _check_same_run(directory: RunDirectory, facts: Mapping[str, Any], changed: bool) -> None:
    """Raise RunError that lists how a run to be resumed differs from what it was begun with.

    changed: data, loss and conditions may differ; the model may not.
    """
    saved = directory.read_config()
    old, new = saved.get("config") or {}, facts["config"]
    if (old.get("data") or {}).get("name") == "imported":
        raise RunError(f"{directory.path} was imported without its optimiser: no resuming it.")
    model = _differences(old, new, KEPT)
    optimizers = [(c.get("training") or {}).get("optimizer", "adam") for c in (old, new)]
    if optimizers[0] != optimizers[1]:
        model.append("training.optimizer ({} there, {} here)".format(*optimizers))
    if model:
        raise RunError(
            f"Checkpoint in {directory.path} does not fit: the config differs in "
            f"{', '.join(model)}. Use the old values or another --workdir."
        )
    learned = _differences(old, new, LEARNED)
    if not learned:
        learned = [
            f"{what} ({saved[key]} there, {facts[key]} here)"
            for key, what in (("items", "the number of items"), ("fingerprint", "their content"))
            if saved.get(key) is not None and saved[key] != facts[key]
        ]
    if not learned:
        there, here = {"spec": saved.get("data_spec")}, {"spec": facts["data_spec"]}
        here["spec"] = {key: here["spec"].get(key) for key in there["spec"] or {}}
        learned = _differences(there, here, ("spec",))
    if learned and not changed:
        raise RunError(
            f"The run in {directory.path} was trained on something else: {', '.join(learned)}. Use "
            "the old values, another --workdir, or --resume_changed to go on all the same."
        )
    for difference in learned:
        distributed.say(f"resumed with a change: {difference}")


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: tuple[str, ...]
) -> list[str]:
    """Fields that differ, with both values; a field that is missing is at None."""
    found = []
    for section in sections:
        there, here = old.get(section) or {}, new.get(section) or {}
        for key in sorted({*there, *here}):
            if there.get(key) != here.get(key) and f"{section}.{key}" not in HARMLESS:
                found.append(f"{section}.{key} ({there.get(key)} there, {here.get(key)} here)")
    return found


def _start(directory: RunDirectory, parts: Parts, resume: bool, own: bool) -> Session:
    """A session at the beginning, or at the newest checkpoint; from here on, files are written."""
    trainer, config = parts.trainer, parts.facts["config"]
    if resume:
        if others := strays(directory.path):
            distributed.say(f"no checkpoints, left alone: {', '.join(others)}")
        checkpoint = load_checkpoint(directory.path)
        if checkpoint is None:
            raise RunError(f"Nothing to resume in {directory.path}: no checkpoint can be read.")
        if not checkpoint.training:
            raise RunError(
                f"{directory.path} was imported without its optimiser: it cannot be resumed."
            )
        trainer.restore(checkpoint)
        distributed.say(f"resumed {directory.path} at step {trainer.step}")
    distributed.wait()
    logger, at = None, trainer.step if resume else None
    if distributed.is_writer():
        (directory.write_config if resume else directory.begin)(parts.facts, own)
        shown = trainer.settings.tensorboard, trainer.settings.wandb
        logger = Logger(directory.path, *shown, at, config)
    saved_step = -1 if at is None else at
    return Session(
        directory, trainer, parts.data, parts.conditioning, parts.pictures, logger, saved_step
    )


def _announce(directory: RunDirectory, parts: Parts) -> None:
    trainer, settings, net = parts.trainer, parts.trainer.settings, parts.trainer.model.net
    parameters = sum(p.numel() for p in net.parameters())
    many = f" and {distributed.size() - 1} more processes" if distributed.size() > 1 else ""
    many += ", which share the network" if trainer.sharded else ""
    if settings.sharding != "none" and not trainer.sharded:
        distributed.say(f"training.sharding={settings.sharding}: one process has all of it")
    told = ", ".join(parts.conditioning.names)
    distributed.say(
        f"training {type(net).__name__} ({parameters:,} parameters){f', told {told},' * bool(told)}"
        f" under {trainer.model.sde} on {trainer.device}{many}, into {directory.path}"
    )


def _as_json(value: Any) -> Any:
    """A value as JSON would return it."""
    return json.loads(json.dumps(plain(value)))


def make_average(
    workdir: str | Path, sigma_rel: float, step: int | None = None, device: str = "auto"
) -> Run:
    """An average of relative width sigma_rel from a run's snapshots (2312.02696), kept in the run.

    It is then the weights "sigma_rel_<width>" of `load` and of --weights, or
    "sigma_rel_<width>_step_<step>" where there is one of another step. step: of the snapshot it
    ends at, the last when None. Raises CheckpointError for a run without snapshots.
    """
    workdir = Path(workdir)
    at, state = reconstruct(workdir, sigma_rel, step)
    name = f"sigma_rel_{sigma_rel:g}"
    there = load_average(workdir, name)
    if there is not None and there[0] != at:  # an average of another step is not replaced
        name = f"{name}_step_{at}"
    save_average(workdir, name, at, state)
    print(f"the average of relative width {sigma_rel:g} at step {at}; use it with --weights {name}")
    return load(workdir, name, device)


def train_as_asked(
    workdir: str | Path,
    config: Mapping[str, Any] | None = None,
    resume: str = "no",
    resume_changed: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    data: str | None = None,
    method: str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    wandb: bool = False,
) -> Run:
    """`train` with some of the config's fields given by themselves: ``--mode train``.

    config: None for that of the run that is resumed. data: in place of config.data.name. method,
    steps, nfe, grid, batch_size, options: of the sampler. resume: no, yes or auto.
    """
    changes: dict[str, Any] = {} if data is None else {"data.name": data}
    if wandb:
        changes["training.wandb"] = True
    given = resume != "no" if resume != "auto" else "auto"
    directory, settings = _resolve(config, workdir, given, changes)
    sampling: dict[str, Any] = {"method": method, "steps": steps, "nfe": nfe, "grid": grid}
    sampling |= {"batch_size": batch_size, "options": options}
    settings["sampling"] = build.change_sampling(settings.get("sampling"), sampling)
    return train(settings, directory.path, given, overwrite, device, resume_changed)
