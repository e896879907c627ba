"""Which weights of a run directory, or of an exported folder, and of which checkpoint."""

from __future__ import annotations

from pathlib import Path

from score_sde.checks import check_names
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.narrow import widened
from score_sde.training import CheckpointError
from score_sde.training.checkpoints import (
    State,
    averages_of,
    chosen_steps,
    load_tensors,
    load_weights,
    steps_of,
)
from score_sde.training.posthoc import kept_averages, load_average


def find_weights(path: Path, weights: str, step: int | str | None = None) -> tuple[int, State]:
    """The named weights of a run or exported folder and their step; RunError without any.

    step: of which checkpoint, see `chosen_steps`; None for the newest that is whole.
    """
    run = RunDirectory(path)
    steps = steps_of(run.checkpoints)
    if not steps and not run.exported.is_file():
        raise RunError(f"{path} has no checkpoint yet. Train it with --mode train.")
    if step is not None and not steps:
        raise RunError(f"{path} was exported without its checkpoints; leave out step={step!r}.")
    return _find_weights(run, weights, step) if steps else _exported(run, weights)


def weights_of(path: Path) -> list[str]:
    """Names of the weights that a run keeps, for `load`: of its newest checkpoint, and averages."""
    run = RunDirectory(path)
    steps = steps_of(run.checkpoints)
    if not steps:
        return ["ema"]
    return averages_of(run.checkpoints, steps[-1]) + kept_averages(run.averages)


def _exported(run: RunDirectory, weights: str) -> tuple[int, State]:
    """The weights of an exported folder, which has one set of them."""
    if weights not in ("ema", "model"):
        raise RunError(f"{run.path} has one set of weights; leave out weights={weights!r}.")
    return 0, widened(load_tensors(run.exported))


def _find_weights(run: RunDirectory, weights: str, wanted: int | str | None) -> tuple[int, State]:
    """The named weights of the wanted, or the newest whole, checkpoint, and their step."""
    steps = chosen_steps(run.checkpoints, wanted)
    if (average := load_average(run.averages, weights)) is not None:
        if wanted is not None and average[0] != steps[0]:
            raise RunError(
                f"the average {weights!r} is of step {average[0]}, not {steps[0]}: leave out step, "
                "or make another by --mode ema."
            )
        return average
    for step in reversed(steps):
        there = averages_of(run.checkpoints, step)
        if weights not in there and {"ema", "model"} <= set(there):
            check_names([weights], there + kept_averages(run.averages), "weights", RunError)
        try:
            return step, load_weights(run.checkpoints, step, weights)
        except CheckpointError as error:
            if wanted is not None:
                raise
            print(f"{error} Trying the one before.")
    raise RunError(f"No checkpoint of {run.path} can be read.")
