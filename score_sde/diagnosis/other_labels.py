"""What else a network may be told of time in training: other scales, times, inputs, processes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch

from score_sde.diagnosis.asked import Asked, Reading, linear_errors
from score_sde.diagnosis.denoising import denoised, times_of
from score_sde.diagnosis.ratios import errors_of
from score_sde.models import TIME_SCALES, ScoreModel
from score_sde.processes import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, FlowSDE, SubVPSDE

SCALES = (1e-3, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.4, 2.0, 3.0, 4.0, 10.0, 1e3)
"""Factors between the scales of noise labels that people use."""
INPUTS: tuple[Literal["time", "log_sigma"], ...] = ("time", "log_sigma")
PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "cosine": CosineSDE(), "flow": FlowSDE(),
    "edm": EDMSDE(),
}  # fmt: skip
"""As people have them without saying more."""
WITHIN = 0.2  # of log SNR, that another process must have as well


def other_scales(asked: Asked) -> list[Reading]:
    """Noise labels times a factor."""
    return [_told(asked, f"{scale:g}", _scaled(asked.model, scale)) for scale in SCALES]


def other_inputs(asked: Asked) -> list[Reading]:
    """Labels of another kind, or that run from t_max to 0."""
    model, found = asked.model, []
    for name in INPUTS:
        if name != model.time_input:
            other = copy.copy(model)
            other.time_input, other.time_scale, other.time_shift = name, TIME_SCALES[name], 0.0
            found.append(_told(asked, name, other))
    if model.time_input == "time":
        other = copy.copy(model)
        other.time_shift = model.time_shift + model.time_scale * model.sde.t_max
        other.time_scale = -model.time_scale
        found.append(_told(asked, "t_max - t", other))
    return found


def other_processes(asked: Asked) -> list[Reading]:
    """The same items and noise at the same SNR, put together and told as by another process."""
    found = []
    for name, sde in PROCESSES.items():
        model = copy.copy(asked.model)
        if sde == model.sde or (model.learned_variance and name != "vp"):
            continue
        model.sde = sde
        shown = []
        for seen in asked.levels:
            wanted = 2 * torch.tensor(seen.alpha / seen.sigma, dtype=torch.float64).log()
            t = sde.time_of_log_snr(wanted).clamp(sde.t_min, sde.t_max)
            if abs(float(sde.log_snr(t) - wanted)) > WITHIN:
                break
            alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
            noise = (seen.x - seen.alpha * seen.x0) / seen.sigma
            x = alpha * seen.x0 + sigma * noise
            shown.append(seen._replace(x=x, t=float(t), alpha=alpha, sigma=sigma))
        if len(shown) == len(asked.levels):
            usual = [linear_errors(asked.linear, seen) for seen in shown]
            guesses = [denoised(model, seen).double() for seen in shown]
            found.append(asked.reading(name, guesses, usual))
    return found


def other_times(asked: Asked) -> Reading:
    """Told, at each level, whichever other time suits it best, one after the other in order.

    The times told must rise with the noise, as those of another process would.
    """
    model, times = asked.model, [float(t) for t in times_of(asked.model)]
    labels = [
        model.time_scale * float(model._time(torch.tensor(t, dtype=torch.float64)))
        + model.time_shift
        for t in times
    ]
    said: list[str] = []
    guesses, lowest = [], 0
    for seen in asked.levels:
        tried = []
        for label in labels[lowest:]:
            other = copy.copy(model)
            other.time_scale, other.time_shift = 0.0, label
            tried.append(denoised(other, seen).double())
        errors = [float(errors_of(seen.x0, guess).mean()) for guess in tried]
        best = errors.index(min(errors))
        lowest += best
        said.append(f"{seen.sigma / seen.alpha:.2g} as t = {times[lowest]:.2g}")
        guesses.append(tried[best])
    return asked.reading(", ".join(said), guesses)


def _told(asked: Asked, name: str, model: ScoreModel) -> Reading:
    return asked.reading(name, [denoised(model, seen).double() for seen in asked.levels])


def _scaled(model: ScoreModel, scale: float) -> ScoreModel:
    other = copy.copy(model)
    other.time_scale = scale * model.time_scale
    return other


def by_kind(asked: Asked) -> dict[str, Sequence[Reading]]:
    """All of them; none of networks that know discrete levels only."""
    if asked.model.time_table is not None:
        return {}
    return {
        "label scale": other_scales(asked),
        "time": [other_times(asked)],
        "time_input": other_inputs(asked),
        "process": other_processes(asked),
    }
