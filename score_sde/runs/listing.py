"""What is in a folder of runs: `python -m score_sde.runs runs/`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return {key: float(v) for key, v in found.items() if _is_number(v)}
    return {}


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e18  # type: ignore[arg-type]


def _marked(root: Path) -> Iterator[Path]:
    """Folders with a config.json, down from root; those that cannot be read are passed over."""
    for folder, _, files in os.walk(root):
        if "config.json" in files:
            yield Path(folder)


def find_runs(root: Path) -> list[RunSummary]:
    """The runs in a folder (and the folder itself, if it is one), last changed last."""
    found = []
    for path in sorted(_marked(root)):
        log, steps = path / "log.jsonl", steps_of(path)
        last = _last_line(log)
        pictures = sorted(path.glob("progress/step_*.png"))
        averaged = [p for p in pictures if not p.stem.endswith("_raw")]
        found.append(
            RunSummary(
                path,
                steps[-1] if steps else None,
                None if "step" not in last else int(last["step"]),
                last.get("loss_smooth", last.get("loss")),
                last.get("seconds"),
                averaged[-1] if averaged else None,
                (log if log.is_file() else path / "config.json").stat().st_mtime,
            )
        )
    return sorted(found, key=lambda run: run.changed)


def table(runs: Sequence[RunSummary]) -> str:
    """One line a run."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [("run", "step", "saved", "loss", "minutes", "last change", "picture")]
    for run in runs:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
        minutes = None if run.seconds is None else run.seconds / 60
        rows.append(
            (
                str(run.path), shown(run.step, "d"), shown(run.saved_step, "d"),
                shown(run.loss, ".4f"), shown(minutes, ".1f"), when,
                "-" if run.picture is None else str(run.picture),
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{c:{w}s}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


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
