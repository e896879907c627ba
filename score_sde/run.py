"""What a run directory can do: train, sample, and be loaded.

runs/vp_fashion/
    config.json      the resolved config, the data's spec, the version
    checkpoints/     see training.checkpoints
    log.jsonl, tensorboard/
    progress/        grids of the same noise as training goes on, by averaged and by raw weights
    samples/         what `--mode sample` writes
    snapshots/       what `--mode ema` makes averages/ from
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from score_sde import build
from score_sde.data import DataSpec
from score_sde.data.pictures import grid_array, image_array, picture_of, save_png
from score_sde.models import ScoreModel
from score_sde.nets import packed
from score_sde.sampling import (
    Recipe,
    SampleResult,
    calibrate,
    load_recipe,
    needs_data_std,
    sample,
)
from score_sde.sdes import SDE
from score_sde.training import CheckpointError, Interrupted, Trainer, distributed
from score_sde.training.checkpoints import (
    State,
    averages_of,
    load_checkpoint,
    load_weights,
    steps_of,
)
from score_sde.training.posthoc import load_average, reconstruct, save_average
from score_sde.training.session import Session
from score_sde.version import __version__

FEW_IMAGES = 500


class RunError(RuntimeError):
    """A run directory that cannot be used as asked; the message says what to do."""


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA, else Apple's MPS, else the CPU; RunError if the one named is not there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, there in found.items() if there), "cpu"))
    kind = name.partition(":")[0]
    if kind != "cpu" and not found.get(kind, False):
        there = ["cpu", *(kind for kind, is_there in found.items() if is_there)]
        raise RunError(f"device {name!r} is not available here; choose auto or one of {there}.")
    return torch.device(name)


@dataclass
class Run:
    """A trained model and what it was trained on.

    score: the score function score(x, t), with averaged weights unless loaded otherwise.
    data_std: standard deviation of the training data in the model's range.
    """

    path: Path
    sde: SDE
    score: ScoreModel
    data_spec: DataSpec
    config: dict[str, Any]
    step: int
    data_std: float

    def sample(
        self, n: int, first_seed: int = 0, progress: bool = False, **changes: Any
    ) -> SampleResult:
        """n samples with the run's sampler; sample i has seed first_seed + i.

        changes replace settings of the run: method, steps, nfe, grid, denoise, batch_size, options.
        A new method comes with its own steps, grid and options. grid may be the path of a recipe;
        the methods that need the data's scale are given it.
        """
        settings = build.change_sampling(self.config.get("sampling"), changes)
        chosen = build.build_sampling({"sampling": settings})
        device = next(self.score.parameters()).device
        options = dict(chosen.options or {})
        grid: str | Recipe | None = chosen.grid
        if needs_data_std(chosen.method):
            options.setdefault("data_std", self.data_std)
        if chosen.grid is not None and chosen.grid.endswith(".json"):
            grid = load_recipe(chosen.grid)
            options.pop("data_std", None)
        return sample(
            self.sde,
            packed(self.score),
            shape=(n, *self.data_spec.shape),
            method=chosen.method,
            steps=chosen.steps,
            nfe=chosen.nfe,
            grid=grid,
            denoise=chosen.denoise,
            batch_size=chosen.batch_size,
            seeds=range(first_seed, first_seed + n),
            device=device,
            progress=progress,
            return_info=True,
            **options,
        )

    def sample_shared(
        self, n: int, first_seed: int = 0, progress: bool = False, **changes: Any
    ) -> SampleResult:
        """`sample` divided over the processes of a torchrun; each receives all n samples."""
        mine = distributed.share(n)
        if distributed.size() == 1:
            return self.sample(n, first_seed, progress, **changes)
        # A process without samples of its own draws one, so that all know how it was drawn.
        part = self.sample(max(len(mine), 1), first_seed + mine.start,
                           progress and distributed.is_writer(), **changes)  # fmt: skip
        x = distributed.gather(part.x[: len(mine)], n)
        most = distributed.gather(torch.tensor([[part.nfe, part.seconds]]), distributed.size())
        return SampleResult(x, int(most[:, 0].max()), float(most[:, 1].max()), part.settings)


def load(path: str | Path, weights: str = "ema", device: str = "auto") -> Run:
    """A run from its directory alone, on any device.

    weights: "ema", "model" (as trained), or another average that the run keeps. Of the newest
    checkpoint; a damaged one is named, and the one before is used.
    A folder that was exported as safetensors has one set of weights, whichever is asked for.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise RunError(
            f"{path} is not a run directory (no config.json). Train one with "
            "`python main.py --config configs/vp_fashion.py --mode train`."
        )
    saved = _read_config(path)
    if "data_spec" not in saved:
        raise RunError(
            f"{path} is a folder of another toolkit. Make it a run with --mode import "
            f"--checkpoint {path} --workdir runs/imported."
        )
    steps, exported = steps_of(path), path / "model.safetensors"
    if not steps and not exported.is_file():
        raise RunError(f"{path} has no checkpoint yet. Train it with --mode train.")
    spec = DataSpec.from_dict(saved["data_spec"])
    model = build.build_model(saved["config"], spec)
    step, state = _find_weights(path, steps, weights) if steps else (0, load_file(exported))
    model.net.load_state_dict(state)
    model = model.to(pick_device(device)).eval().requires_grad_(False)
    return Run(path, model.sde, model, spec, saved["config"], step, saved["data_std"])


def _find_weights(path: Path, steps: list[int], weights: str) -> tuple[int, State]:
    """The named weights of the newest checkpoint that is whole, and their step."""
    if (average := load_average(path, weights)) is not None:
        return average
    for step in reversed(steps):
        there = averages_of(path, step)
        if weights not in there and {"ema", "model"} <= set(there):
            made = sorted(file.stem for file in (path / "averages").glob("*.safetensors"))
            raise RunError(f"weights must be one of {there + made} (got {weights!r}).")
        try:
            return step, load_weights(path, step, weights)
        except CheckpointError as error:
            print(f"{error} Trying the one before.")
    raise RunError(f"No checkpoint of {path} can be read.")


def _read_config(workdir: Path) -> dict[str, Any]:
    try:
        return json.loads((workdir / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{workdir}/config.json cannot be read ({error}).") from error


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
        for name in ("config.json", "log.jsonl"):
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
            _check_same_model(_read_config(workdir)["config"], config, workdir)
        torch.manual_seed(seed)
        model = build.build_model(config, spec)
        name = type(model.net).__name__
        data_std = float(data.reference(1000).std())
        trainer = Trainer(model, objective, settings, seed, data_std, chosen)
        distributed.wait()  # all that can be wrong with the config has been found, by all
        if distributed.is_writer():
            make_workdir(workdir, overwrite)
            saved = {"config": _plain(config), "data_spec": spec.to_dict(), "data_std": data_std}
            saved |= {"version": __version__}
            (workdir / "config.json").write_text(json.dumps(saved, indent=1) + "\n")
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


def sample_to_files(
    workdir: str | Path,
    num_samples: int = 64,
    first_seed: int = 0,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    **changes: Any,
) -> Path:
    """Sample a run and write num_samples PNG files, grid.png, samples.npz and settings.json.

    changes are those of `Run.sample`. Files are named by seed. Data that are not images give the
    .npz and, in the plane, a picture. Returns the folder: ``out``, or one named by the method.
    """
    if num_samples < 1:
        raise RunError(f"num_samples must be >= 1 (got {num_samples}).")
    with distributed.processes(pick_device(device)) as chosen:
        run = load(workdir, weights, str(chosen))
        result = run.sample_shared(num_samples, first_seed, progress=True, **changes)
        distributed.say(str(result))
        name = f"{result.settings['method']}_{result.nfe}_evaluations"
        folder = Path(out) if out else Path(workdir) / "samples" / name
        if distributed.is_writer():
            _empty_sample_folder(folder)
            seeds = range(first_seed, first_seed + num_samples)
            _write_samples(folder, result.x, run.data_spec, seeds)
            facts = {"num_samples": num_samples, "first_seed": first_seed, "weights": weights}
            facts |= {"step": run.step, "nfe": result.nfe, "seconds": result.seconds}
            facts |= result.settings
            (folder / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
        distributed.say(f"{num_samples} samples are in {folder}")
    return folder


def calibrate_run(
    workdir: str | Path,
    nfe: int = 20,
    thorough: bool = False,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Fit a time grid of `adams` to a run's model and save it: recipe_<nfe>.json in the run."""
    run = load(workdir, weights, device)
    where = next(run.score.parameters()).device
    shape = (64, *run.data_spec.shape)
    recipe: Recipe = calibrate(
        run.sde, run.score, shape, nfe, data_std=run.data_std, thorough=thorough, device=where
    )
    path = Path(out) if out else Path(workdir) / f"recipe_{nfe}.json"
    recipe.save(path)
    print(f"{len(recipe.times) - 1} steps of order {recipe.order}, data_std {recipe.data_std:.3g}")
    print(f"saved {path}; use it with --sampler adams --grid {path}")
    return path


def _empty_sample_folder(folder: Path) -> None:
    """Samples of an earlier call go; anybody else's files are an error."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "settings.json").is_file():
            raise RunError(f"{folder} holds other files; give an empty or new folder as --out.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _write_samples(folder: Path, x: Tensor, spec: DataSpec, seeds: Sequence[int]) -> None:
    x = x.float().cpu()
    if not spec.is_image:
        np.savez(folder / "samples.npz", samples=spec.to_raw(x).numpy())
        if (picture := picture_of(x, spec)) is not None:
            save_png(picture, folder / "grid.png")
        return
    pixels = spec.to_uint8(x)
    np.savez_compressed(folder / "samples.npz", samples=pixels.permute(0, 2, 3, 1).numpy())
    for seed, image in zip(seeds, pixels, strict=True):
        save_png(image_array(image), folder / f"{seed:06d}.png")
    save_png(grid_array(pixels[:256]), folder / "grid.png")
