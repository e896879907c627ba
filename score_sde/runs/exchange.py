"""Other people's checkpoints become runs, and runs become folders for other people's tools."""

from __future__ import annotations

import inspect
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from score_sde import build
from score_sde.checks import checked
from score_sde.convert import ConversionError, Foreign, diffusers_export, read
from score_sde.convert.files import check_finite
from score_sde.data import DataSpec
from score_sde.models import FlowMap
from score_sde.nets import UNet
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.load import load
from score_sde.runs.narrow import narrowed
from score_sde.runs.run import Run
from score_sde.runs.signature import sign
from score_sde.training.checkpoints import Checkpoint, State, save_checkpoint, tensor_sum
from score_sde.version import __version__
from score_sde.writing import new_folder

Layout = Literal["diffusers", "safetensors"]
LAYOUTS = get_args(Layout)
Dtype = Literal["float32", "bfloat16", "int8"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@checked
def import_checkpoint(
    path: str | Path,
    workdir: str | Path,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> Run:
    """A checkpoint of another toolkit as a run in ``workdir``; returns it loaded.

    path: a file or folder of score_sde_pytorch, EDM, diffusers (or a hub id), guided-diffusion,
        improved-diffusion, or a PyTorch version of Ho's DDPM. Nothing in it is executed.
    options: what such files do not say, for instance {"size": 64} or {"process": "subvp"}; what
        was assumed instead is printed.

    The directory is written whole or not at all. Raises ConversionError for what cannot be read,
    RunError for a directory in use.
    """
    workdir = Path(workdir)
    directory = RunDirectory(workdir)
    used = workdir.exists() and (workdir.is_file() or any(workdir.iterdir()))
    is_run = directory.is_run
    if used and not (overwrite and is_run):
        advice = "Use --overwrite or another --workdir." if is_run else "Use another --workdir."
        raise RunError(f"{workdir} is in use. {advice}")
    foreign = read(path, options or {})
    config = _config(foreign)
    model = build.build_model(config, foreign.spec)
    model.net.load_state_dict(foreign.averaged)
    partial = workdir.with_name(f".{workdir.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        meta = {"seconds": 0.0, "imported": foreign.layout}
        checkpoint = Checkpoint(foreign.trained, foreign.averaged, {}, meta)
        written = RunDirectory(partial).checkpoints
        save_checkpoint(written, foreign.step, checkpoint)
        with directory.training():
            directory.begin(_facts(config, foreign.spec, foreign.data_std))
            directory.checkpoints.mkdir(exist_ok=True)
            for checkpoint_folder in written.iterdir():
                checkpoint_folder.rename(directory.checkpoints / checkpoint_folder.name)
            directory.drop_replaced()
    except OSError as error:
        raise RunError(f"workdir {workdir} cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _report(foreign, sum(p.numel() for p in model.parameters()), workdir)
    return load(workdir, device=device)


def _config(foreign: Foreign) -> dict[str, Any]:
    """The config of a run that such a checkpoint could have come from."""
    unit = foreign.spec.shift == 0
    config = {
        "data": {"name": "imported", "scaling": "unit" if unit else "symmetric"},
        "sde": foreign.sde,
        "net": {"name": "unet", **foreign.net},
        "model": foreign.model,
        "sampling": {"method": "adams", "nfe": 20},
        "seed": 0,
    }
    return json.loads(json.dumps(config))


def _facts(config: Mapping[str, Any], spec: DataSpec, data_std: float) -> dict[str, Any]:
    """What config.json holds."""
    saved = {"config": config, "data_spec": spec.to_dict(), "data_std": data_std}
    return saved | {"version": __version__}


def _report(foreign: Foreign, parameters: int, workdir: Path) -> None:
    channels, height, width = foreign.spec.shape
    unit = "[0, 1]" if foreign.spec.shift == 0 else "[-1, 1]"
    classes = len(foreign.spec.classes)
    print(f"found {foreign.layout}: {parameters:,} parameters, step {foreign.step}")
    print(
        f"images {channels} x {height} x {width} in {unit}" + f", {classes} classes" * (classes > 0)
    )
    target = foreign.model["target"]
    # A table of a thousand betas says nothing to a reader.
    short = {key: value for key, value in foreign.sde.items() if not isinstance(value, list)}
    variances = " and variances (sampler ancestral uses them)"
    learned = variances * bool(foreign.model.get("learned_variance"))
    print(f"process {short}, network predicts {target}{learned}")
    for note in foreign.notes:
        print(f"assumed: {note}")
    if classes:
        without = "none" if foreign.net.get("class_dropout") else "one drawn by its seed"
        print(f"a sample's class is given by --class_labels; without, it has {without}")
    print(f"wrote {workdir}; sample it with --workdir {workdir} --mode sample")


@checked
def export_run(
    workdir: str | Path,
    out: str | Path | None = None,
    layout: Layout = "safetensors",
    weights: str = "ema",
    step: int | str | None = None,
    dtype: Dtype = "float32",
) -> Path:
    """A run's weights in a folder of their own: ``out``, or export_<layout> in the run.

    "safetensors" holds model.safetensors and config.json, which `load` reads; of a run of latents
    its codec too. "diffusers" is what
    UNet2DModel.from_pretrained reads; ConversionError names what it has no network for.
    dtype: "float32"; "bfloat16" for half of the size (2e-3 of each weight is lost); or "int8" for a
        quarter, see `narrow`, which only `load` of this toolkit reads.
    """
    if dtype == "int8" and layout == "diffusers":
        raise RunError("diffusers reads no int8: use bfloat16, or --format safetensors.")
    run = load(workdir, weights, device="cpu", step=step)
    folder = Path(out) if out else run.home / f"export_{layout}"
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise RunError(f"{folder} holds files; give an empty or new folder as --out.")
    state = {key: value.contiguous() for key, value in run.score.net.state_dict().items()}
    check_finite(state, str(workdir))
    files: dict[str, Any] = {}
    name = RunDirectory(folder).exported.name
    if layout == "diffusers":
        files, notes = _for_diffusers(run)
        name = "diffusion_pytorch_model.safetensors"
        state = diffusers_export.to_theirs(run.score.net)  # type: ignore[arg-type]
        for note in notes:
            print(note)
    state = _in_dtype(state, DTYPES[dtype])
    try:
        with new_folder(folder) as partial:
            if layout == "safetensors":
                facts = _facts(run.config, run.data_spec, run.data_std)
                files["config.json"] = facts | {"step": run.step}
            for codec_name, codec in run.codecs.items():
                codec.save(partial, codec_name)
                files.get("config.json", {})[Path(codec_name).stem] = codec.facts()
            for file, contents in files.items():
                (partial / file).write_text(json.dumps(contents, indent=2) + "\n")
            if layout == "safetensors" and run.trusted:
                sign(RunDirectory(partial).config)
            save_file(state, partial / name, {"format": "pt", "checksum": tensor_sum(state)})
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise RunError(f"{folder} cannot be written ({said}).") from error
    print(f"wrote {folder}")
    return folder


def _in_dtype(state: State, dtype: torch.dtype) -> State:
    """Weights in another precision; what counts or indexes stays as it is."""
    if dtype == torch.int8:
        return narrowed(state)
    return {key: v.to(dtype) if v.is_floating_point() else v for key, v in state.items()}


def _for_diffusers(run: Run) -> tuple[dict[str, Any], list[str]]:
    """config.json and scheduler_config.json by name, and what a user must know."""
    if isinstance(run.score, FlowMap):
        raise ConversionError(
            "diffusers has no pipeline for maps of the flow, which are told of two times: use "
            "--format safetensors, which this toolkit loads."
        )
    if not isinstance(run.score.net, UNet):
        raise ConversionError(
            f"diffusers' UNet2DModel is a U-Net; this run has a {type(run.score.net).__name__}. "
            "Use --format safetensors."
        )
    if run.score.center:
        raise ConversionError(
            "diffusers has no networks that are about what is left of a mean (model.center=True): "
            "use --format safetensors, which this toolkit loads."
        )
    known = inspect.signature(UNet).parameters
    defaults = {key: p.default for key, p in known.items() if p.default is not p.empty}
    net = {key: value for key, value in run.config["net"].items() if key in known}
    shape = {"channels": run.data_spec.shape[0], "size": run.data_spec.shape[1:]}
    said = diffusers_export.settings({**defaults, **net, **shape})
    said["center_input_sample"] = run.score.center_input
    files, notes = {"config.json": said}, []
    scheduler = diffusers_export.scheduler(run.config["sde"], run.config.get("model") or {})
    if scheduler:
        files["scheduler_config.json"] = scheduler
    else:
        notes.append(
            f"no scheduler_config.json: diffusers has no scheduler for {run.sde} with a network "
            f"that predicts {run.score.target} and is told {run.score.time_input}."
        )
    return files, notes
