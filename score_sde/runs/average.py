"""An average of the weights of any length, made of a run's snapshots: `--mode ema`."""

from __future__ import annotations

from pathlib import Path

from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.load import load
from score_sde.runs.run import Run
from score_sde.training.posthoc import load_average, reconstruct, save_average


def make_average(
    workdir: str | Path, sigma_rel: float, step: int | str | None = None, device: str = "auto"
) -> Run:
    """An average of relative width sigma_rel from a run's snapshots (2312.02696), kept in the run.

    It is then the weights "sigma_rel_<width>" of `load` and of --weights, or
    "sigma_rel_<width>_step_<step>" where there is one of another step. step: of the snapshot it
    ends at, the last when None. Raises CheckpointError for a run without snapshots.
    """
    workdir = Path(workdir)
    if step is not None and not str(step).isdecimal():
        raise RunError(f"step is that of a snapshot, a number (got {step!r}).")
    run = RunDirectory(workdir)
    at, state = reconstruct(run.snapshots, sigma_rel, None if step is None else int(step))
    name = f"sigma_rel_{sigma_rel:g}"
    there = load_average(run.averages, name)
    if there is not None and there[0] != at:  # an average of another step is not replaced
        name = f"{name}_step_{at}"
    save_average(run.averages, name, at, state)
    print(f"the average of relative width {sigma_rel:g} at step {at}; use it with --weights {name}")
    return load(workdir, name, device)
