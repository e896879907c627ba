"""What is in a folder of runs: `python -m score_sde.runs runs/`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_sde.checks import json_lines, objects
from score_sde.runs.directory import RunDirectory
from score_sde.training.checkpoints import steps_of


@dataclass(frozen=True)
class RunSummary:
    """One run: its newest checkpoint, the last line of its log, its last picture.

    step and loss are None before the first line; changed is seconds since the epoch.
    """

    path: Path
    saved_step: int | None
    step: int | None
    loss: float | None
    seconds: float | None
    picture: Path | None
    changed: float


def _last_line(log: Path) -> dict[str, float]:
    """The numbers of the last whole line; {} if there is none. Reads the end of the file only."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - (1 << 16)))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    return next((n for found in objects(reversed(lines)) if (n := _numbers(found))), {})


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of one line of a log."""
    return {key: float(value) for key, value in found.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e18  # type: ignore[arg-type]


def _marked(root: Path) -> Iterator[Path]:
    """Folders with a config.json, down from root; those that cannot be read are passed over."""
    for folder, _, files in os.walk(root):
        if RunDirectory(Path(folder)).config.name in files:
            yield Path(folder)


def find_runs(root: Path) -> list[RunSummary]:
    """The runs in a folder (and the folder itself, if it is one), last changed last."""
    found = []
    for path in sorted(_marked(root)):
        run = RunDirectory(path)
        log, steps = run.log, steps_of(run.checkpoints)
        last = _last_line(log)
        averaged = run.pictures()
        found.append(
            RunSummary(
                path,
                steps[-1] if steps else None,
                None if "step" not in last else int(last["step"]),
                last.get("loss_smooth", last.get("loss")),
                last.get("seconds"),
                averaged[-1] if averaged else None,
                (log if log.is_file() else run.config).stat().st_mtime,
            )
        )
    return sorted(found, key=lambda run: run.changed)


HEAD = ("run", "step", "saved", "loss", "minutes", "last change", "picture")


def rows(runs: Sequence[RunSummary]) -> list[list[str]]:
    """What is known of each run, as text under `HEAD`."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        [
            str(run.path),
            shown(run.step, "d"),
            shown(run.saved_step, "d"),
            shown(run.loss, ".4f"),
            shown(None if run.seconds is None else run.seconds / 60, ".1f"),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
            "-" if run.picture is None else str(run.picture),
        ]
        for run in runs
    ]


def table(runs: Sequence[RunSummary]) -> str:
    """One line a run."""
    lines = [list(HEAD), *rows(runs)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    padded = ("  ".join(f"{c:{w}s}" for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def curve(run: Path) -> tuple[list[float], list[float]]:
    """Steps and smoothed losses of a run's log; lines that cannot be read are passed over."""
    steps, losses = [], []
    for line in json_lines(RunDirectory(run).log):
        found = _numbers(line)
        if "step" in found and ("loss_smooth" in found or "loss" in found):
            steps.append(found["step"])
            losses.append(found.get("loss_smooth", found.get("loss", 0.0)))
    return steps, losses


def differences(runs: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """Fields of the configs in which some of the runs differ, with each one's value as text."""
    configs = [dict(_fields(RunDirectory(run).read_config().get("config") or {})) for run in runs]
    names = sorted(set().union(*configs))
    found = [(name, [config.get(name, "-") for config in configs]) for name in names]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def _fields(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as text."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _fields(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 for a folder without runs."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) > 1 or any(a.startswith("-") for a in given):
        print("usage: python -m score_sde.runs [folder of runs]", file=sys.stderr)
        return 2
    root = Path(given[0] if given else "runs")
    runs = find_runs(root) if root.is_dir() else []
    if not runs:
        what = "holds no run (no config.json)" if root.is_dir() else "does not exist"
        print(f"error: {root} {what}. A run is made by --mode train.", file=sys.stderr)
        return 2
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
