"""A run of a few steps made of a trained one: `--mode distill --teacher runs/x`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from score_sde.checks import Positive, Size, checked, trusting, trusts_files
from score_sde.conditioning.told import Conditioning
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.pretrained import find, is_ours
from score_sde.runs.reading import read_facts
from score_sde.runs.run import Run
from score_sde.runs.signature import is_signed
from score_sde.runs.train import train
from score_sde.training import TrainingSettings
from score_sde.training.map_matching import MapMatching

SMALL = 2**15  # numbers of a layer, of one sample


def student_config(teacher: str | Path) -> dict[str, Any]:
    """The config of a student: its teacher's, with what a map needs in place of the loss.

    It trains for as long as its teacher did, by Adam. The student of a small U-Net that is told
    nothing ends with the moments of the data.
    """
    facts = read_facts(find(teacher))
    config: dict[str, Any] = dict(facts.config)
    config.pop("loss", None)
    objective = MapMatching()
    config["flow_map"] = {f.name: getattr(objective, f.name) for f in fields(objective) if f.init}
    if _can_see_moments(config, facts.data_spec.shape):
        config["flow_map"]["moments"] = 0.4
    config["teacher"] = {"path": str(teacher), "guidance": 1.0, "steps": 1}
    training = asdict(TrainingSettings()) | dict(config.get("training") or {})
    training |= {"optimizer": "adam", "lr": 5e-4, "betas": (0.9, 0.99), "sample_nfe": 0}
    config["training"] = training
    batch = dict(config.get("sampling") or {}).get("batch_size", 128)
    config["sampling"] = {"method": "flow_map", "steps": objective.steps, "batch_size": batch}
    return config


def _can_see_moments(config: Mapping[str, Any], shape: Sequence[int]) -> bool:
    """Whether a teacher is a U-Net that is told nothing, small enough for hundreds of samples."""
    told = Conditioning(**dict(config.get("conditioning") or {}))
    is_told = (told.classes, told.text, told.picture, told.embedding, told.others)
    net = dict(config.get("net") or {})
    places = math.prod(side // net.get("patch", 1) for side in shape[1:])
    is_unet = net.get("name", "unet") == "unet" and len(shape) > 1
    return is_unet and not any(is_told) and net.get("width", 128) * places <= SMALL


def default_workdir(teacher: str | Path) -> str:
    """Where a student goes that is given no workdir."""
    return str(Path("runs") / f"{Path(teacher).name}_map")


def is_trusted(path: Path) -> bool:
    """Whether a run is this user's own, or ships with the package."""
    config = RunDirectory(path).config
    return is_signed(config) or is_ours(config)


@checked
def distill(
    teacher: str | Path | None = None,
    workdir: str | Path | None = None,
    steps: Size | None = None,
    guidance: Positive | None = None,
    resume: str = "no",
    resume_changed: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Train a map of the probability flow of a run, for samples in a few evaluations.

    teacher: the run. steps: the most that the map is for, 4 unless given. guidance: of the teacher,
    which the map then has for good. changes: of the student's config (`student_config`), by
    dotted names. A student is resumed by its workdir alone. Raises RunError for a teacher that is
    none.
    """
    changes = dict(changes or {})
    if teacher is None:
        if resume == "no" or workdir is None or not RunDirectory(Path(workdir)).is_run:
            raise RunError("--mode distill needs --teacher: the run whose flow is to be mapped.")
        if steps is not None or guidance is not None:
            raise RunError("a student is resumed with its own steps and guidance: drop these.")
        config: dict[str, Any] | None = None
    else:
        config = student_config(teacher)
        if steps is not None:
            changes |= {"flow_map.steps": steps, "sampling.steps": steps}
        if guidance is not None:
            changes["teacher.guidance"] = guidance
        workdir = workdir or default_workdir(teacher)
    assert workdir is not None
    again: bool | str = resume != "no" if resume != "auto" else "auto"
    # What a teacher's config names is the user's word only if the teacher is.
    own = teacher is None or trusts_files() or is_trusted(find(teacher))
    with nullcontext() if own else trusting(False):
        made = train(config, workdir, again, overwrite, device, resume_changed, **changes)
    assert isinstance(made, Run)
    return made
