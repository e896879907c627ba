"""Train a run, or go on with one: `--mode train` and `--mode ema`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.conditioning.classes import classes_of
from score_sde.models import ScoreModel
from score_sde.runs.run import Run, RunError, load, pick_device, read_config
from score_sde.runs.signature import sign
from score_sde.training import Interrupted, Trainer
from score_sde.training.checkpoints import load_checkpoint, steps_of
from score_sde.training.posthoc import reconstruct, save_average
from score_sde.training.session import Session
from score_sde.version import __version__

FEW_IMAGES = 500


def _check_workdir(workdir: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a used directory unless told what to do with it; nothing is changed yet."""
    steps = steps_of(workdir)
    used = _is_used(workdir)
    if resume and not steps:
        raise RunError(f"Nothing to resume in {workdir} (no checkpoint).")
    if resume and overwrite:
        raise RunError("--resume and --overwrite contradict each other; give one.")
    if used and not (resume or overwrite):
        where = f"a run at step {steps[-1]}" if steps else "a run without a checkpoint"
        raise RunError(f"{workdir} holds {where}. Use --resume, --overwrite or another --workdir.")


def _is_used(workdir: Path) -> bool:
    return (workdir / "config.json").exists() or bool(steps_of(workdir))


def make_workdir(workdir: Path, overwrite: bool) -> None:
    """Make the directory, without what an earlier run left there if it is to be overwritten."""
    if overwrite and _is_used(workdir):
        for name in ("checkpoints", "tensorboard", "progress", "samples", "snapshots", "averages"):
            shutil.rmtree(workdir / name, ignore_errors=True)
        for name in ("config.json", "config.sig", "log.jsonl"):
            (workdir / name).unlink(missing_ok=True)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"workdir {workdir} cannot be made ({error.strerror}).") from error


def _check_same_model(saved: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> None:
    """A resumed run keeps its model: raise RunError that lists the differences."""
    differences = []
    for section in ("sde", "net", "model"):
        old, new = saved.get(section) or {}, config.get(section) or {}
        differences += [
            f"{section}.{key} ({old.get(key)} there, {new.get(key)} here)"
            for key in sorted({*old, *new})
            if _plain(old.get(key)) != _plain(new.get(key))
        ]
    old, new = ((c.get("training") or {}).get("optimizer", "adam") for c in (saved, config))
    if saved.get("training") and old != new:
        differences.append(f"training.optimizer ({old} there, {new} here)")
    if differences:
        raise RunError(
            f"Checkpoint in {workdir} does not fit: the config differs in "
            f"{', '.join(differences)}. Use the old values or another --workdir."
        )


def _plain(value: Any) -> Any:
    """A value as JSON would return it."""
    return json.loads(json.dumps(value))


def train(
    config: Mapping[str, Any],
    workdir: str | Path,
    resume: bool | str = False,
    overwrite: bool = False,
    device: str = "auto",
) -> Run:
    """Train (or go on with) a run as the config says; returns it loaded, with averaged weights.

    resume: go on with the run in workdir; "auto": if there is a checkpoint, and else start.
    Under torchrun all processes call it and train together. Raises RunError for a used or missing
    directory, ConfigError and DataError for bad settings, `Interrupted` after a signal.
    """
    workdir = Path(workdir)
    build.check_sections(config)
    settings, objective = build.build_training(config), build.build_objective(config)
    sampling = build.build_sampling(config)  # a misspelt sampler is found now, not at step 5000
    if resume == "auto":
        resume = bool(steps_of(workdir))
        overwrite = overwrite or not resume  # a run without a checkpoint has nothing to lose
    _check_workdir(workdir, bool(resume), overwrite)
    with distributed.processes(pick_device(device)) as chosen:
        with distributed.writer_first():  # it may have to download them
            data = build.build_data(config)
        spec, seed, n = data.spec, int(config.get("seed", 0)), len(data)
        for note in data.notes:
            distributed.say(note)
        if spec.classes:
            distributed.say(
                f"{len(spec.classes)} classes found; this model is unconditional and ignores them."
            )
        if n < settings.batch_size:
            distributed.say(
                f"{n} items < batch {settings.batch_size}: items repeat within a batch."
            )
        if spec.is_image and n < FEW_IMAGES:
            distributed.say(
                f"{n} images are few: a model of usual size learns them by heart, and its samples "
                "are copies. Compare them with the training images, or train a smaller one."
            )
        if resume:
            _check_same_model(read_config(workdir)["config"], config, workdir)
        torch.manual_seed(seed)
        model = build.build_model(config, spec)
        name = type(model.net).__name__
        if classes_of(model.net):
            raise RunError(
                f"net.classes is {classes_of(model.net)}, but training tells the network no "
                "classes: leave it out."
            )
        data_std = float(data.reference(1000).std())
        trainer = Trainer(model, objective, settings, seed, data_std, chosen)
        distributed.wait()  # all that can be wrong with the config has been found, by all
        if distributed.is_writer():
            make_workdir(workdir, overwrite)
            saved = {"config": _plain(config), "data_spec": spec.to_dict(), "data_std": data_std}
            saved |= {"version": __version__}
            (workdir / "config.json").write_text(json.dumps(saved, indent=1) + "\n")
            sign(workdir / "config.json")
        if resume:
            checkpoint = load_checkpoint(workdir)
            if checkpoint is None:
                raise RunError(f"Nothing to resume in {workdir}: no checkpoint there can be read.")
            if not checkpoint.training:
                raise RunError(
                    f"{workdir} was imported without its optimiser: it cannot be resumed."
                )
            trainer.restore(checkpoint)
            distributed.say(f"resumed {workdir} at step {trainer.step}")
        parameters = sum(p.numel() for p in model.parameters())
        many = f" and {distributed.size() - 1} more processes" if distributed.size() > 1 else ""
        many += ", which share the network" if trainer.sharded else ""
        if settings.sharding != "none" and not trainer.sharded:
            distributed.say(f"training.sharding={settings.sharding}: one process has all of it")
        distributed.say(
            f"training {name} ({parameters:,} parameters) under {model.sde} "
            f"on {chosen}{many}, into {workdir}"
        )
        saved_config = _plain(config)
        count = settings.sample_images if spec.is_image else 20 * sampling.batch_size
        cheap: dict[str, Any] = {"method": "dpmpp_2m", "nfe": settings.sample_nfe}

        def sampler(score: ScoreModel) -> Callable[[], Tensor]:
            run = Run(workdir, model.sde, score, spec, saved_config, 0, data_std)

            def draw() -> Tensor:
                score.eval()  # the next update sets the weights as trained back to training
                if trainer.sharded:  # all call the network equally often
                    return run.sample(count, **(cheap if settings.sample_nfe else {})).x
                return run.sample_shared(count, **(cheap if settings.sample_nfe else {})).x

            return draw

        samplers = {"": sampler(model.with_net(trainer.ema.net)), "_raw": sampler(model)}
        try:
            Session(workdir, trainer, spec, samplers, bool(resume), saved_config).train(data)
        except OSError as error:
            raise RunError(
                f"{workdir} cannot be written ({error}). The last checkpoint is kept; free some "
                "space and go on with --resume."
            ) from error
        except Interrupted:
            distributed.say(f"\nstopped; step {trainer.step} is saved. Go on with --resume.")
            raise
        distributed.say(
            f"done: step {trainer.step} in {trainer.seconds:.0f} s; everything is in {workdir}"
        )
        distributed.wait()
        return load(workdir, device="cpu" if trainer.sharded else str(chosen))


def make_average(
    workdir: str | Path, sigma_rel: float, step: int | None = None, device: str = "auto"
) -> Run:
    """An average of relative width sigma_rel from a run's snapshots (2312.02696), kept in the run.

    It is then the weights "sigma_rel_<width>" of `load` and of --weights. step: of the snapshot it
    ends at, the last when None. Raises CheckpointError for a run without snapshots.
    """
    workdir = Path(workdir)
    at, state = reconstruct(workdir, sigma_rel, step)
    name = save_average(workdir, sigma_rel, at, state)
    print(f"the average of relative width {sigma_rel:g} at step {at}; use it with --weights {name}")
    return load(workdir, name, device)


def train_as_asked(
    config: Mapping[str, Any],
    workdir: str | Path,
    resume: str = "no",
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

    data: in place of config.data.name. method, steps, nfe, grid, batch_size, options: of the
    sampler. resume: no, yes or auto.
    """
    config = {key: dict(v) if isinstance(v, Mapping) else v for key, v in config.items()}
    if data is not None:
        config["data"] = {**config.get("data", {}), "name": data}
    changes: dict[str, Any] = {"method": method, "steps": steps, "nfe": nfe, "grid": grid}
    changes |= {"batch_size": batch_size, "options": options}
    config["sampling"] = build.change_sampling(config.get("sampling"), changes)
    if wandb:
        config["training"] = {**config.get("training", {}), "wandb": True}
    return train(config, workdir, {"no": False, "yes": True}.get(resume, resume), overwrite, device)
