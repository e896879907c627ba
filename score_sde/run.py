"""What a run directory can do: train, sample, and be loaded.

runs/vp_fashion/
    config.json      the resolved config, the data's spec, the version
    checkpoints/     see training.checkpoints
    log.jsonl, tensorboard/
    progress/        grids of the same noise as training goes on
    samples/         what `--mode sample` writes
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
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
from score_sde.sampling import (
    Recipe,
    SampleResult,
    calibrate,
    load_recipe,
    needs_data_std,
    sample,
)
from score_sde.sdes import SDE
from score_sde.training import Logger, Trainer
from score_sde.training.checkpoints import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    steps_of,
)
from score_sde.version import __version__


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
            self.score,
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


def load(path: str | Path, weights: str = "ema", device: str = "auto") -> Run:
    """A run from its directory alone, on any device; weights are "ema" or "model" (as trained).

    A folder that was exported as safetensors has one set of weights, whichever is asked for.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise RunError(
            f"{path} is not a run directory (no config.json). Train one with "
            "`python main.py --config configs/vp_fashion.py --mode train`."
        )
    if weights not in ("ema", "model"):
        raise RunError(f"weights must be ema or model (got {weights!r}).")
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
    state = load_weights(path, steps[-1], weights) if steps else load_file(exported)
    model.net.load_state_dict(state)
    model = model.to(pick_device(device)).eval().requires_grad_(False)
    step = steps[-1] if steps else 0
    return Run(path, model.sde, model, spec, saved["config"], step, saved["data_std"])


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
        for name in ("checkpoints", "tensorboard", "progress", "samples"):
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
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> Run:
    """Train (or go on with) a run as the config says; returns it loaded, with averaged weights.

    Raises RunError for a used or missing directory, ConfigError and DataError for bad settings.
    """
    workdir, chosen = Path(workdir), pick_device(device)
    build.check_sections(config)
    settings, objective = build.build_training(config), build.build_objective(config)
    sampling = build.build_sampling(config)  # a misspelt sampler is found now, not at step 5000
    _check_workdir(workdir, resume, overwrite)
    data = build.build_data(config)
    for note in data.notes:
        print(note)
    spec, seed = data.spec, int(config.get("seed", 0))
    if spec.classes:
        print(f"{len(spec.classes)} classes found; this model is unconditional and ignores them.")
    if len(data) < settings.batch_size:
        print(f"{len(data)} items < batch {settings.batch_size}: items repeat within a batch.")
    if resume:
        _check_same_model(_read_config(workdir)["config"], config, workdir)
    torch.manual_seed(seed)
    model = build.build_model(config, spec).to(chosen)
    make_workdir(workdir, overwrite)  # all that can be wrong with the config has been found
    data_std = float(data.reference(1000).std())
    saved = {"config": _plain(config), "data_spec": spec.to_dict(), "data_std": data_std}
    saved |= {"version": __version__}
    (workdir / "config.json").write_text(json.dumps(saved, indent=1) + "\n")
    trainer = Trainer(model, objective, settings, seed, data_std)
    if resume:
        checkpoint = load_checkpoint(workdir)
        if checkpoint is None:
            raise RunError(f"Nothing to resume in {workdir}: no checkpoint there can be read.")
        if not checkpoint.training:
            raise RunError(f"{workdir} was imported without its optimiser: it cannot be resumed.")
        trainer.restore(checkpoint)
        print(f"resumed {workdir} at step {trainer.step}")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"training {type(model.net).__name__} ({parameters:,} parameters) under {model.sde} "
          f"on {chosen}, into {workdir}")  # fmt: skip
    logger = Logger(workdir, settings.tensorboard)

    averaged = model.with_net(trainer.ema.net)
    last_saved = trainer.step if resume else -1

    def save() -> None:
        nonlocal last_saved
        if last_saved != trainer.step:
            save_checkpoint(workdir, trainer.step, trainer.checkpoint(), settings.keep)
            last_saved = trainer.step

    def draw() -> None:
        run = Run(
            workdir, averaged.sde, averaged, spec, _plain(config), trainer.step, data_std
        )  # fmt: skip
        count = settings.sample_images if spec.is_image else 20 * sampling.batch_size
        cheap: dict[str, Any] = {"method": "dpmpp_2m", "nfe": settings.sample_nfe}
        samples = run.sample(count, **(cheap if settings.sample_nfe else {}))
        picture = picture_of(samples.x, spec)
        if picture is not None:
            save_png(picture, workdir / "progress" / f"step_{trainer.step:08d}.png")
            logger.image(trainer.step, "samples", picture)

    try:
        trainer.run(data, chosen, logger, save, draw)
        save()
        draw()
    except KeyboardInterrupt:
        save()
        print(f"\nstopped; step {trainer.step} is saved. Go on with --resume.")
        raise
    finally:
        logger.close()
    print(f"done: step {trainer.step} in {trainer.seconds:.0f} s; everything is in {workdir}")
    return load(workdir, device=device)


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
    run = load(workdir, weights, device)
    result = run.sample(num_samples, first_seed, progress=True, **changes)
    print(result)
    name = f"{result.settings['method']}_{result.nfe}_evaluations"
    folder = Path(out) if out else Path(workdir) / "samples" / name
    _empty_sample_folder(folder)
    _write_samples(folder, result.x, run.data_spec, range(first_seed, first_seed + num_samples))
    facts = {"num_samples": num_samples, "first_seed": first_seed, "weights": weights}
    facts |= {"step": run.step, "nfe": result.nfe, "seconds": result.seconds, **result.settings}
    (folder / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{num_samples} samples are in {folder}")
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
