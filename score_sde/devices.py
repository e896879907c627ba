"""Devices: how values come to them without waiting.

A GPU works through a queue; whoever asks it for a number, or sends it one from memory that the
system may move, waits until the queue is empty, and the next kernels start late. So the loops of
sampling and training do neither (`tests/test_waiting.py` counts).
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_sde.checks import UserError


def moved(value: Tensor, device: torch.device | str) -> Tensor:
    """A value on a device, sent there without waiting for what the device is doing.

    CUDA takes it from pinned memory, from which alone a copy is not waited for.
    """
    there = torch.device(device)
    if value.device.type != "cpu" or there.type == "cpu":
        return value.to(there)
    if there.type == "cuda" and torch.cuda.is_available():
        value = value.pin_memory()
    return value.to(there, non_blocking=there.type != "mps")


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA, else Apple's MPS, else the CPU; UserError if the one named is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    here = [*(["cuda"] if gpus else []), *mps, "cpu"]
    if name == "auto":
        return torch.device(here[0])
    numbered = [*(f"{kind}:0" for kind in (*mps, "cpu")), *(f"cuda:{i}" for i in range(gpus))]
    if name not in (*here, *numbered):
        there = [*reversed(here), *numbered[1 + len(mps) :]]
        raise UserError(f"device {name!r} is not available here; choose auto or one of {there}.")
    return torch.device(name)
