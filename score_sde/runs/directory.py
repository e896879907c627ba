"""A run directory: its paths, its mark, who trains in it, and what of it may be replaced.

runs/vp_fashion/
    run.json         the mark: this folder is a run, and which one
    config.json      the resolved config, the data's spec and fingerprint, the version
    config.sig       says that this user wrote it here, see signature
    train.lock       who is training here now
    checkpoints/     see training.checkpoints
    log.jsonl, tensorboard/
    progress/        grids of the same noise as training goes on, by averaged and by raw weights
    samples/         what `--mode sample` writes
    gaussian.safetensors  mean and covariance of the training data, when something asked for them
    residuals.safetensors  what the network leaves unknown of them, made in the same way
    codec.safetensors  of a run of latents, and of one that has trained an autoencoder (`codecs`)
    embedding.safetensors  the codec whose latents of pictures the network is told
    snapshots/       what `--mode ema` makes averages/ from
    .replaced/       the run that was here before, until the new one has its first checkpoint

Nothing is touched that does not have the name of a file that is written here (`OURS`), and no
folder that is not marked as a run.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.checks import UserError, check_alone, read_json, try_json
from score_sde.plotting.pictures import save_png
from score_sde.runs.facts import FORMAT, Mark, Said
from score_sde.runs.lock import Lock, LockedError
from score_sde.runs.signature import is_signed, sign
from score_sde.training.checkpoints import CheckpointError, steps_of
from score_sde.writing import replacing

CODEC = "codec.safetensors"
EMBEDDING = "embedding.safetensors"  # the codec whose latents a network is told
_STEP = r"step_\d{8,}"
OURS = re.compile(
    "|".join(
        (
            r"run\.json|config\.(?:json|sig)|log\.jsonl|wandb_id\.txt",
            rf"checkpoints/(?:{_STEP}|\.partial_\d+)/(?:meta\.json|training\.pt|"
            r"[\w.]+\.safetensors|__\d+_\d+\.distcp|\.metadata(?:\.tmp)?)",
            r"tensorboard/events\.out\.tfevents\.[\w.-]+",
            rf"progress/{_STEP}(?:_raw)?\.png",
            rf"snapshots/{_STEP}\.safetensors",
            r"averages/sigma_rel_[\w.-]+\.(?:safetensors|json)",
            r"(?:gaussian|residuals|codec|embedding)\.safetensors",
            r"(?:\w+/)?\.[\w.-]+\.[0-9a-f]{24}\.partial",
        )
    )
)


class RunError(UserError):
    """A run directory that cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Making one touches nothing."""

    path: Path

    @property
    def mark(self) -> Path:
        """Says that this is a run, and which one."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """What the run was made with."""
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        """A line of numbers every so many updates."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of its curves."""
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """Which run this is on Weights & Biases."""
        return self.path / "wandb_id.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of `training.checkpoints`."""
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots of averages, see `training.posthoc`."""
        return self.path / "snapshots"

    @property
    def averages(self) -> Path:
        """The folder of averages made of the snapshots."""
        return self.path / "averages"

    @property
    def exported(self) -> Path:
        """The weights of a folder that was exported, which has no checkpoints."""
        return self.path / "model.safetensors"

    @property
    def gaussian(self) -> Path:
        """Mean and covariance of the training data."""
        return self.path / "gaussian.safetensors"

    def codec(self, name: str = CODEC) -> Path:
        """The autoencoder that it has trained or whose latents it is of; of EMBEDDING, is told."""
        return self.path / name

    @property
    def evaluation(self) -> Path:
        """The folder of what was found out about its samples."""
        return self.path / "evaluation"

    def recipe(self, nfe: int) -> Path:
        """A time grid fitted to it."""
        return self.path / f"recipe_{nfe}.json"

    @property
    def lock(self) -> Lock:
        """Held by the process that trains here."""
        return Lock(self.path / "train.lock")

    def save_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a grid (H, W[, 3]), uint8, that was drawn while training."""
        save_png(picture, self.path / "progress" / f"step_{step:08d}{name}.png")

    def pictures(self) -> list[Path]:
        """The grids of averaged weights that were drawn while training, the newest last."""
        drawn = (self.path / "progress").glob("step_*.png")
        return sorted(path for path in drawn if not path.stem.endswith("_raw"))

    def read_config(self) -> dict[str, Any]:
        """What config.json holds; RunError if it cannot be read or is not of a run."""
        return dict(read_json(self.config, Said, "the config of a run", RunError))

    @property
    def is_run(self) -> bool:
        """Whether it carries the mark, or, as runs of before the mark, a config of a run."""
        return self.identity is not None or _holds(self.config, {"config", "data_spec"})

    @property
    def identity(self) -> str | None:
        """Which run it is; None without a mark."""
        found = try_json(self.mark, Mark)
        return found and found["id"]

    def ours(self) -> list[Path]:
        """Files here that have names of ours, relative to the directory. Links are not followed."""
        found = []
        for folder, _, names in os.walk(self.path):
            for name in names:
                relative = (Path(folder) / name).relative_to(self.path)
                if OURS.fullmatch(relative.as_posix()):
                    found.append(relative)
        return sorted([*found, *self._samples()])

    def _samples(self) -> Iterator[Path]:
        """What `--mode sample` has written here, in folders that its settings.json marks."""
        for settings in self.path.glob("samples/*/settings.json"):
            if not settings.parent.is_symlink() and _holds(settings, {"num_samples", "first_seed"}):
                for file in settings.parent.iterdir():
                    if re.fullmatch(
                        r"\d{6,}\.png|grid\.png|samples\.npz|settings\.json", file.name
                    ):
                        yield file.relative_to(self.path)

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse a directory that is used otherwise than it is; nothing is changed.

        Raises RunError: for a run unless it is resumed or overwritten, for files that a run would
        replace in a folder that is none, for nothing to resume.
        """
        steps, path = steps_of(self.checkpoints), self.path
        check_alone({"--resume": resume, "--overwrite": overwrite}, RunError)
        if resume and not steps:
            raise RunError(f"Nothing to resume in {path} (no checkpoint).")
        if path.exists() and not path.is_dir():
            raise RunError(f"workdir {path} cannot be made: it is a file.")
        there = self.ours()
        if there and not self.is_run:
            names = ", ".join(map(str, there[:3])) + ", ..." * (len(there) > 3)
            raise RunError(
                f"{path} holds {names}, which a run would replace, and is no run of this toolkit. "
                "Use another --workdir."
            )
        if (self.is_run or steps) and not (resume or overwrite):
            where = f"a run at step {steps[-1]}" if steps else "a run without a checkpoint"
            raise RunError(f"{path} holds {where}. Use --resume, --overwrite or another --workdir.")

    def begin(self, facts: Mapping[str, Any], own: bool = True) -> None:
        """Make it a new run with these facts. A run that is here is set aside, not deleted.

        It goes when the new one has its first checkpoint (`drop_replaced`). own: whether the names
        in the facts are this user's words, and may run code when the run is loaded (`signature`).
        """
        self._set_aside()
        self.write_config(facts, own)

    def write_config(self, facts: Mapping[str, Any], own: bool = True) -> None:
        """Replace config.json where it says something else; a run without the mark is marked."""
        if self.identity is None:
            _write_json(self.mark, {"format": FORMAT, "layout": 1, "id": secrets.token_hex(8)})
        if try_json(self.config, dict[str, Any]) != json.loads(json.dumps(facts)):
            _write_json(self.config, facts)
        if own and not is_signed(self.config):
            sign(self.config)

    def _set_aside(self) -> None:
        there = self.ours()
        if not there:
            return
        links = [p.name for p in self.path.iterdir() if p.is_symlink() and p.is_dir()]
        if links:
            raise RunError(
                f"{self.path} has links to folders ({', '.join(links)}), whose files are not "
                "replaced. Remove them, or use another --workdir."
            )
        aside = self.path / ".replaced"
        number = 1
        while aside.exists():
            number += 1
            aside = self.path / f".replaced_{number}"
        for file in there:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            (self.path / file).rename(aside / file)
        _remove_empty(self.path, keep=self.path)

    def drop_replaced(self) -> None:
        """Delete what `begin` has set aside, and nothing else; the mark goes last."""
        for aside in self.path.glob(".replaced*"):
            run, ours = RunDirectory(aside), re.fullmatch(r"\.replaced(_\d+)?", aside.name)
            if ours and not aside.is_symlink() and run.is_run:
                for file in sorted(run.ours(), key=lambda file: aside / file == run.mark):
                    (aside / file).unlink(missing_ok=True)
                _remove_empty(aside, keep=self.path)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Make the directory and hold its lock; RunError says who else trains here."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"workdir {self.path} cannot be made ({error.strerror}).") from error
        try:
            with self.lock.held():
                yield
        except LockedError as error:
            raise RunError(f"{self.path} {error} Use another --workdir.") from error

    def check_mine(self) -> None:
        """Raise CheckpointError if it was deleted or taken over while this process trained."""
        if not self.lock.is_mine:
            raise CheckpointError(
                f"{self.path} was deleted, renamed or taken over while it was trained: nothing "
                "can be saved there any more."
            )


def _holds(path: Path, keys: set[str]) -> bool:
    return keys <= (try_json(path, dict[str, Any]) or {}).keys()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """All or nothing: written beside and renamed."""
    with replacing(path) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


def _remove_empty(folder: Path, keep: Path) -> None:
    """Folders that became empty, from the innermost; ``keep`` stays."""
    for name, _, _ in os.walk(folder, topdown=False):
        if Path(name) != keep and not os.listdir(name):
            Path(name).rmdir()
