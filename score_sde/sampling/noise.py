"""The one source of randomness of sampling: what sample i draws depends on seed i alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 4096  # numbers drawn per generator call; small states would pay the call, not the numbers


class SeededNoise:
    """A stream of standard normal states (B, *shape), one generator a sample.

    Sample i is the same for any batch it is drawn in, on any device and in any order, because its
    numbers come from a CPU generator seeded with seed i, in chunks that depend on ``shape`` alone.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._shape, self._dtype, self._device = tuple(shape), dtype, device
        self._chunk = max(1, _CHUNK // max(math.prod(shape), 1))
        self._fill(1)  # the start x_T; deterministic methods need no more

    def _fill(self, count: int) -> None:
        size = (count, *self._shape)
        self._buffer = torch.stack([torch.randn(size, generator=g) for g in self._generators])
        self._next = 0

    def draw(self) -> Tensor:
        """The next standard normal state (B, *shape)."""
        if self._next == self._buffer.shape[1]:
            self._fill(self._chunk)
        self._next += 1
        return self._buffer[:, self._next - 1].to(dtype=self._dtype, device=self._device)


def fresh_seeds(n: int) -> list[int]:
    """n seeds from torch's global generator, so that `torch.manual_seed` governs them."""
    return torch.randint(0, 2**62, (n,)).tolist()
