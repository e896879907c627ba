"""Weights in eight bits: whole numbers from -127 to 127, and a factor for each output channel.

W[o, ...] = factor[o] q[o, ...], factor[o] = max |W[o, ...]| / 127, so no weight is off by more than
half a factor. Vectors (biases, scales of norms) stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_sde.training.checkpoints import State

FACTOR = ":factor"
"""What is added to the name of a weight for that of its factors."""


def narrowed(state: State) -> State:
    """The weights with two axes and more as int8 (O, ...) and factors (O,)."""
    found = {}
    for name, value in state.items():
        if value.is_floating_point() and value.ndim > 1:
            factor = value.flatten(1).abs().amax(1).clamp(min=1e-30) / 127
            found[name] = (value / _beside(factor, value)).round().to(torch.int8)
            found[name + FACTOR] = factor
        else:
            found[name] = value
    return found


def widened(state: State) -> State:
    """What `narrowed` was given, up to its rounding; any other weights as they are."""
    return {
        name: value * _beside(state[name + FACTOR], value) if name + FACTOR in state else value
        for name, value in state.items()
        if not name.endswith(FACTOR)
    }


def _beside(factor: Tensor, value: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (value.ndim - 1))
