r"""An average of any length, chosen after training (2312.02696, section 3 and appendix C).

Power-function averages with profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] are
stored now and then for two values of gamma. Any other profile is close to a sum of stored ones:
the coefficients c solve the least-squares problem A c = b of their inner products,

    <p_a, p_b> = (g_a + 1)(g_b + 1) / (g_a + g_b + 1) min(t_a, t_b)^(g_a + g_b + 1)
                 / (t_a^(g_a + 1) t_b^(g_b + 1)).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from score_sde.checks import read_json, reading, require
from score_sde.training.checkpoints import (
    CheckpointError,
    State,
    TensorSum,
    load_tensors,
    save_tensors,
)
from score_sde.training.ema import EMA, power_of
from score_sde.training.steps import Meta

WIDTHS = (0.05, 0.1)  # sigma_rel of the averages that are stored, as in the paper
MOST_MISFIT = 0.35  # of a profile that is made of stored ones; beyond, it is another average


def snapshot_state(averages: dict[float, EMA]) -> State:
    """What a snapshot holds: each average's weights by width, and the buffers once."""
    state: State = {}
    for width, ema in averages.items():
        state |= {f"{width:g}/{name}": value for name, value in ema.net.named_parameters()}
        state |= {f"buffer/{name}": value for name, value in ema.net.named_buffers()}
    return state


def snapshot_path(snapshots: Path, step: int) -> Path:
    """Where the snapshot of a step is, in a folder of them."""
    return snapshots / f"step_{step:08d}.safetensors"


def snapshot_steps(snapshots: Path) -> list[int]:
    """Steps of the snapshots in a folder, ascending."""
    names = (re.fullmatch(r"step_(\d{8,})\.safetensors", path.name)
             for path in snapshots.glob("step_*"))  # fmt: skip
    return sorted(int(name[1]) for name in names if name)


def _inner(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray, g_b: np.ndarray) -> np.ndarray:
    """<p_a, p_b> of two profiles, broadcast."""
    ratio = np.where(t_a < t_b, (t_a / t_b) ** g_b, (t_b / t_a) ** g_a)
    return (g_a + 1) * (g_b + 1) * ratio / ((g_a + g_b + 1) * np.maximum(t_a, t_b))


def coefficients(
    steps: list[int], widths: tuple[float, ...], target_step: int, sigma_rel: float
) -> np.ndarray:
    """Weights (len(steps), len(widths)) of the stored averages in the one asked for; sum 1."""
    return _solve(steps, widths, target_step, sigma_rel)[0]


def misfit(
    steps: list[int], widths: tuple[float, ...], target_step: int, sigma_rel: float
) -> float:
    """How far the best sum of stored profiles is from the one asked for, relative to its norm."""
    return _solve(steps, widths, target_step, sigma_rel)[1]


def _solve(
    steps: list[int], widths: tuple[float, ...], target_step: int, sigma_rel: float
) -> tuple[np.ndarray, float]:
    times = np.repeat(np.asarray(steps, np.float64), len(widths))
    gammas = np.tile([power_of(width) for width in widths], len(steps))
    at, gamma = np.array(target_step, np.float64), np.array(power_of(sigma_rel))
    matrix = _inner(times[:, None], gammas[:, None], times, gammas)
    wanted, whole = _inner(times, gammas, at, gamma), float(_inner(at, gamma, at, gamma))
    solution = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    solution /= solution.sum()
    rest = whole - 2 * solution @ wanted + solution @ matrix @ solution
    return solution.reshape(len(steps), len(widths)), float(np.sqrt(max(rest / whole, 0.0)))


def _check_width(steps: list[int], step: int, sigma_rel: float) -> None:
    """Raise CheckpointError for a width that is out of reach of these snapshots."""
    missed = misfit(steps, WIDTHS, step, sigma_rel)
    if missed > MOST_MISFIT:
        widths = np.geomspace(1e-3, 0.279, 200)
        near = [w for w in widths if misfit(steps, WIDTHS, step, float(w)) <= MOST_MISFIT]
        raise CheckpointError(
            f"sigma_rel={sigma_rel:g} is out of reach of {len(steps)} snapshots up to step {step}: "
            f"their best sum misses its profile by {missed:.0%}. Choose from {near[0]:.3g} to "
            f"{near[-1]:.3g}."
        )


def reconstruct(snapshots: Path, sigma_rel: float, step: int | None = None) -> tuple[int, State]:
    """The power-function average of relative width sigma_rel at a step, from a folder of snapshots.

    step: of a snapshot, the last when None. Raises CheckpointError if there are too few, if one is
    damaged, and for a width that they cannot make.
    """
    there = snapshot_steps(snapshots)
    if len(there) < 2:
        raise CheckpointError(
            f"{snapshots} has {len(there)} snapshots and two are needed. Train with "
            "training.ema_snapshot_every above 0 (a tenth of the run, say)."
        )
    step = there[-1] if step is None else step
    if step not in there:
        raise CheckpointError(f"{snapshots} has no snapshot of step {step}; choose from {there}.")
    steps = [s for s in there if s <= step]
    _check_width(steps, step, sigma_rel)
    result: dict[str, Tensor] = {}
    for at, row in zip(steps, coefficients(steps, WIDTHS, step, sigma_rel), strict=True):
        path = snapshot_path(snapshots, at)
        what = "a whole snapshot; delete it to go without"
        with reading(path, what, CheckpointError), safe_open(path, "pt") as file:
            total, expected = TensorSum(), (file.metadata() or {}).get("checksum")
            for key in sorted(file.keys()):  # noqa: SIM118 (not a dict)
                kind, _, name = key.partition("/")
                stored = file.get_tensor(key)
                total.add(key, stored)
                if kind == "buffer":
                    result[name] = stored
                    continue
                weight = float(row[[f"{w:g}" for w in WIDTHS].index(kind)])
                value = stored.to(torch.float64) * weight
                result[name] = result[name] + value if name in result else value
            require(expected in (None, total.text), "its checksum differs")
    single = {k: v.float() if v.dtype == torch.float64 else v for k, v in result.items()}
    return step, single


def save_average(averages: Path, name: str, step: int, state: State) -> None:
    """Keep a reconstructed average in a folder by a name, for ``weights``."""
    save_tensors(averages / f"{name}.safetensors", state)
    (averages / f"{name}.json").write_text(json.dumps({"step": step}) + "\n")


def load_average(averages: Path, name: str) -> tuple[int, State] | None:
    """The step and weights of an average that `save_average` has kept; None if there is none."""
    path = averages / f"{name}.safetensors"
    if not path.is_file():
        return None
    about = read_json(path.with_suffix(".json"), Meta, "that of an average", CheckpointError)
    return about["step"], load_tensors(path)


def kept_averages(averages: Path) -> list[str]:
    """The names of the averages that `save_average` has kept, in order."""
    return sorted(path.stem for path in averages.glob("*.safetensors"))
