"""A second run that enlarges what the first one draws: a cascade (2106.15282, 2104.07636).

The second network is told the small picture, with a little noise whose level it is told too: it
then does not trust the small picture's mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.noise import SeededNoise
from score_sde.runs.directory import RunError
from score_sde.sampling import SampleResult

if TYPE_CHECKING:
    from score_sde.runs.run import Run

_STREAM = 0x2C9277B5  # of the noise in the picture, apart from that of the samples


def check_upscaler(run: Run, small: DataSpec) -> None:
    """RunError unless the run enlarges pictures like these."""
    channels, *size = run.data_spec.shape
    if not getattr(run.score.net, "picture", 0):
        raise RunError(
            f"{run.path} does not enlarge pictures: its network was told none (net.picture). Train "
            "one with configs/sr_emoji.py."
        )
    factors = [big / little for big, little in zip(size, small.shape[1:], strict=True)]
    if len(small.shape) != 3 or channels != small.shape[0] or factors != [factors[0]] * 2:
        raise RunError(
            f"{run.path} makes pictures {run.data_spec.shape} and cannot enlarge {small.shape}."
        )
    told = int((run.config.get("conditioning") or {}).get("picture") or 0)
    if told and factors[0] != told:
        raise RunError(
            f"{run.path} enlarges {told} times; from {small.shape} to {run.data_spec.shape} is "
            f"{factors[0]:g} times."
        )
    if run.data_spec.name != small.name:
        raise RunError(f"{run.path} enlarges {run.data_spec.name}, these are {small.name}.")


def enlarge(
    run: Run, x: Tensor, small: DataSpec, first_seed: int, level: float = 0.1, **changes: Any
) -> SampleResult:
    """Pictures x (B, C, h, w), in the range of ``small``, at the size of the run's own.

    level: of the noise put into x, as the network is told. changes: of `Run.sample`.
    """
    check_upscaler(run, small)
    seeds: Sequence[int] = range(first_seed, first_seed + len(x))
    picture = run.data_spec.to_model(small.to_raw(x))
    drawn = SeededNoise([seed ^ _STREAM for seed in seeds], tuple(x.shape[1:]), device=x.device)
    condition = {
        "picture": picture + level * drawn.draw().to(picture),
        "picture_level": torch.full((len(x),), level, device=x.device),
    }
    return run.sample(len(x), first_seed, condition=condition, **changes)
