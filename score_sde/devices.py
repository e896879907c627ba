"""Devices: how values come to them without waiting.

A GPU works through a queue; whoever asks it for a number, or sends it one from memory that the
system may move, waits until the queue is empty, and the next kernels start late. So the loops of
sampling and training do neither (`tests/test_waiting.py` counts).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
