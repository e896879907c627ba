"""Train a run, or go on with one: `--mode train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_sde import build, distributed
from score_sde.checks import checked, trusting, trusts_files
from score_sde.devices import pick_device
from score_sde.runs.autoencoders import finish_autoencoder, prepare_autoencoder
from score_sde.runs.codecs import RunCodec
from score_sde.runs.configs import load_config, with_changes
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.load import load
from score_sde.runs.prepare import Parts, prepare
from score_sde.runs.reading import read_facts
from score_sde.runs.resume import check_same_run
from score_sde.runs.run import Run
from score_sde.runs.sampler import given_settings
from score_sde.runs.signature import is_signed
from score_sde.sampling import change_sampling
from score_sde.training import Interrupted as Interrupted
from score_sde.training import Logger, Session
from score_sde.training.checkpoints import load_checkpoint, steps_of, strays


@checked
def train(
    config: str | Mapping[str, Any] | None,
    workdir: str | Path | None = None,
    resume: bool | str = False,
    overwrite: bool = False,
    device: str = "auto",
    resume_changed: bool = False,
    **changes: Any,
) -> Run | RunCodec:
    """Train (or go on with) a run; returns it loaded, with averaged weights.

    A config with a section autoencoder trains one: what is returned then is its codec.

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
    directory, settings = resolve(config, workdir, resume, changes)
    own = config is not None or trusts_files() or is_signed(directory.config)
    order = Order(own, resume, overwrite, device, resume_changed)
    if build.is_autoencoder(settings):
        made, _ = carry_out(directory, settings, order, prepare_autoencoder, finish_autoencoder)
        return made
    _, where = carry_out(directory, settings, order, prepare)
    return load(directory.path, device=where)


@dataclass(frozen=True)
class Order:
    """How a directory is trained in, as of `train`; own: whether the config is the user's word."""

    own: bool
    resume: bool | str
    overwrite: bool
    device: str
    resume_changed: bool


def carry_out(
    directory: RunDirectory,
    settings: Mapping[str, Any],
    order: Order,
    make: Callable[..., Parts],
    finish: Callable[[RunDirectory, Parts], Any] | None = None,
) -> tuple[Any, str]:
    """Train in a directory what ``make`` makes of a config; where to load it.

    make: `prepare`, or another function of the config, the device, what config.json holds of a run
    that is resumed, and the directory. finish: what is done after the last update; the first result
    is what it returns.
    """
    resume, overwrite = order.resume, order.overwrite
    if resume == "auto":
        resume = bool(steps_of(directory.checkpoints))
        overwrite = overwrite or not resume
    directory.check(bool(resume), overwrite)
    if not resume:
        _check_sources(directory, settings)
    with distributed.processes(pick_device(order.device)) as chosen:
        with nullcontext() if order.own else trusting(False):
            parts = make(settings, chosen, directory.read_config() if resume else {}, directory)
        if resume:
            check_same_run(directory, parts.facts, order.resume_changed)
        distributed.wait()  # all that can be wrong with the config has been found, by all
        with directory.training() if distributed.is_writer() else nullcontext():
            session = _start(directory, parts, bool(resume), order.own)
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
            made = None if finish is None else finish(directory, parts)
        return made, "cpu" if trainer.sharded else str(chosen)


def _check_sources(directory: RunDirectory, settings: Mapping[str, Any]) -> None:
    """RunError if what a new run is made of lies in the run that it would replace."""
    for section, name in (("teacher", "path"), ("codec", "path"), ("conditioning", "embedding")):
        found = settings.get(section)
        source = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(source, str) and Path(source).resolve() == directory.path.resolve():
            raise RunError(
                f"{section}.{name} is {source}, the very run that this one would replace: give it "
                "a --workdir of its own."
            )


def resolve(
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
        found: Mapping[str, Any] = directory.read_config().get("config", {})
        if not build.is_autoencoder(found):
            found = read_facts(directory.path).config
        return directory, with_changes(found, changes)
    return directory, with_changes(config, changes)


def _start(directory: RunDirectory, parts: Parts, resume: bool, own: bool) -> Session:
    """A session at the beginning, or at the newest checkpoint; from here on, files are written."""
    trainer, config = parts.trainer, parts.facts["config"]
    if resume:
        if others := strays(directory.checkpoints):
            distributed.say(f"no checkpoints, left alone: {', '.join(others)}")
        checkpoint = load_checkpoint(directory.checkpoints, trainer.layout())
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
        for name, codec in parts.codecs.items() if not resume else ():
            codec.save(directory.path, name)
        board = directory.tensorboard if trainer.settings.tensorboard else None
        wandb = directory.wandb_id if trainer.settings.wandb else None
        logger = Logger(directory.log, board, wandb, at, config)
    saved_step = -1 if at is None else at
    return Session(
        directory, trainer, parts.data, parts.conditioning.of, parts.pictures, logger,
        saved_step, parts.watcher,
    )  # fmt: skip


def _announce(directory: RunDirectory, parts: Parts) -> None:
    trainer, settings, net = parts.trainer, parts.trainer.settings, parts.trainer.model.net
    parameters = sum(p.numel() for p in net.parameters())
    many = f" and {distributed.size() - 1} more processes" if distributed.size() > 1 else ""
    many += ", which share the network" if trainer.sharded else ""
    if settings.sharding != "none" and not trainer.sharded:
        distributed.say(f"training.sharding={settings.sharding}: one process has all of it")
    told = ", ".join(parts.conditioning.names)
    under = f" under {process}" if (process := getattr(trainer.model, "sde", None)) else ""
    distributed.say(
        f"training {type(net).__name__} ({parameters:,} parameters){f', told {told},' * bool(told)}"
        f"{under} on {trainer.device}{many}, into {directory.path}"
    )


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
    changes: Mapping[str, Any] | None = None,
) -> Run | RunCodec:
    """`train` with some of the config's fields given by themselves: ``--mode train``.

    config: None for that of the run that is resumed. changes: of its fields, by dotted names. data:
    in place of config.data.name. method, steps, nfe, grid, batch_size, options: of the sampler.
    resume: no, yes or auto.
    """
    changes = dict(changes or {})
    if data is not None:
        changes["data.name"] = data
    if wandb:
        changes["training.wandb"] = True
    given = resume != "no" if resume != "auto" else "auto"
    directory, settings = resolve(config, workdir, given, changes)
    asked = given_settings(None, method, steps, nfe, grid, batch_size, options)
    if not build.is_autoencoder(settings) or any(v is not None for v in asked.values()):
        changes["sampling"] = change_sampling(settings.get("sampling"), asked)
    return train(config, directory.path, given, overwrite, device, resume_changed, **changes)
