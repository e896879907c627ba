"""The teacher of a map of the flow: a trained run, whose probability flow the student maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.conditioning.guidance import guide
from score_sde.data import Data, DataSpec
from score_sde.models import FlowMap, ScoreModel
from score_sde.nets import packed
from score_sde.runs.codecs import RunCodec
from score_sde.runs.directory import RunError
from score_sde.runs.load import load
from score_sde.runs.run import Run
from score_sde.runs.watching import MOST_REAL, spread_items
from score_sde.runs.wish import trained_without
from score_sde.sampling import ScoreFn
from score_sde.training.checkpoints import tensor_sum
from score_sde.training.map_matching import MapMatching, TeacherSettings
from score_sde.training.moments import BlockFeatures, MomentMatching
from score_sde.training.objective import Ending

COUNTS = (1, 1, 2, 4)  # of steps whose samples get the moments of the data: one is hardest


@dataclass(frozen=True)
class Teacher:
    """`teacher(**condition)` is its score, told this of each row, and guided if it is to be."""

    run: Run
    score: ScoreModel
    guidance: float
    checksum: str

    def __call__(self, **condition: Tensor) -> ScoreFn:
        told = self.score.bind(**condition)
        return told if self.guidance == 1 else guide(told, self.score.bind(), self.guidance)

    def facts(self) -> dict[str, Any]:
        """What config.json of a student says of it."""
        return {"path": str(self.run.path), "step": self.run.step, "checksum": self.checksum}

    def begin(self, student: FlowMap) -> None:
        """Give a student the weights of its teacher: it starts as the flow's own direction."""
        theirs, ours = self.run.score.net.state_dict(), student.net.state_dict()
        told = {name for name in ours if "second" in name}  # of the second time, which starts at 0
        if {n: v.shape for n, v in theirs.items()} != {
            n: v.shape for n, v in ours.items() if n not in told
        }:
            raise RunError(
                f"the student's network is not that of {self.run.path}, from which it starts: "
                "leave net as the teacher has it."
            )
        student.net.load_state_dict(theirs, strict=False)

    def ending(self, objective: MapMatching, data: Data) -> Ending | None:
        """What the end of a student's training minimises, where ``flow_map.moments`` asks for it.

        Raises RunError where the data's moments are not what the student is to have, or the
        teacher has no features to see them in.
        """
        if not objective.moments:
            return None
        asked, net = f"flow_map.moments={objective.moments:g}", self.score.net
        if not hasattr(net, "modulated"):
            raise RunError(
                f"{asked} looks at samples through the blocks of a U-Net, and {self.run.path} is a "
                f"{type(net).__name__}: set it to 0."
            )
        if self.guidance != 1:
            raise RunError(
                f"{asked} gives samples the moments of the data, which a guided teacher's do not "
                "have: set it to 0, or leave teacher.guidance at 1."
            )
        device = next(net.parameters()).device
        real = (x.to(device) for x, _ in spread_items(data, MOST_REAL))
        counts = tuple(n for n in COUNTS if n <= (objective.steps or max(COUNTS)))
        made = MomentMatching.towards(
            BlockFeatures(self.score), real, counts, objective.moment_batch
        )
        return Ending(made, objective.moments)


def open_teacher(
    settings: TeacherSettings,
    model: FlowMap,
    spec: DataSpec,
    conditioning: Mapping[str, Any],
    codec: RunCodec | None,
    saved: Mapping[str, Any],
    device: torch.device,
) -> Teacher:
    """The teacher that a config names, for a student with this model, data and conditions.

    saved: what config.json of a student that is resumed says of its teacher. Raises RunError for
    one that is not there, has changed since, or is of another process or other data.
    """
    run = load(settings.path, device=str(device))
    where = f"the teacher {run.path}"
    if isinstance(run.score, FlowMap):
        raise RunError(f"{where} is a map of the flow itself: give the run that it was made of.")
    if run.sde != model.sde:
        raise RunError(f"{where} is of {run.sde}, the student of {model.sde}: leave sde as it is.")
    check_data(where, run.data_spec, spec)
    if (run.codec and run.codec.checksum) != (codec and codec.checksum):
        raise RunError(f"{where} is of the latents of another autoencoder than the student.")
    ours, theirs = dict(conditioning), dict(run.config.get("conditioning") or {})
    if any(ours.get(key) != theirs.get(key) for key in ("classes", "text", "picture")):
        raise RunError(f"{where} is told other conditions than the student: leave conditioning.")
    if settings.guidance != 1 and not trained_without(run):
        raise RunError(
            f"teacher.guidance={settings.guidance:g} needs a teacher that was trained without its "
            f"condition at times (conditioning.dropout=0.1); {run.path} never was."
        )
    checksum = tensor_sum(run.score.net.state_dict())
    if saved.get("checksum") not in (None, checksum):
        raise RunError(
            f"{where} is not as it was when the student began (step {run.step}, then "
            f"{saved.get('step')}): give it back its weights, or begin another student."
        )
    return Teacher(run, packed(run.score), settings.guidance, checksum)


def check_data(where: str, theirs: DataSpec, ours: DataSpec) -> None:
    """RunError unless both specs are of the same data in the same range."""
    alike = all(
        math.isclose(getattr(ours, name), getattr(theirs, name), rel_tol=1e-3, abs_tol=1e-3)
        for name in ("shift", "scale")
    )
    if theirs.shape != ours.shape or theirs.name != ours.name or not alike:
        raise RunError(
            f"{where} knows {theirs.name} {theirs.shape}, scaled by {theirs.scale:g}; the student "
            f"is of {ours.name} {ours.shape}, scaled by {ours.scale:g}: leave data as they are."
        )
