"""Scalars and pictures of a run: log.jsonl always, TensorBoard beside it, a line on the console."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # noise levels sigma/alpha that separate the bins
BIN_NAMES = (
    f"below_{EDGES[0]:g}",
    *(f"{low:g}_to_{high:g}" for low, high in zip(EDGES, EDGES[1:], strict=False)),
    f"above_{EDGES[-1]:g}",
)


class NoiseBins:
    """Mean error of eps in bins of the noise level, beside that of the trivial predictor."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, len(BIN_NAMES)))

    def add(self, noise_level: Tensor, error: Tensor, trivial: Tensor) -> None:
        """One batch; each (B,)."""
        edges = torch.tensor(EDGES, dtype=torch.float64)
        which = torch.bucketize(noise_level.detach().cpu().double(), edges).numpy()
        rows = (torch.ones_like(error), error, trivial)
        for row, values in zip(self._sums, rows, strict=True):
            row += np.bincount(which, values.detach().cpu().double().numpy(), len(BIN_NAMES))

    def pop(self) -> dict[str, float]:
        """Means since the last call, {"eps_error/0.1_to_0.3": ..., "trivial/...": ...}."""
        count, error, trivial = self._sums
        result = {}
        for i in np.flatnonzero(count):
            result[f"eps_error/{BIN_NAMES[i]}"] = float(error[i] / count[i])
            result[f"trivial/{BIN_NAMES[i]}"] = float(trivial[i] / count[i])
        self._sums[:] = 0
        return result


class Logger:
    """Appends to log.jsonl and TensorBoard in a run directory."""

    def __init__(self, run: Path, tensorboard: bool = True):
        run.mkdir(parents=True, exist_ok=True)
        self._file = (run / "log.jsonl").open("a", buffering=1)
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, so only here

            self._board = SummaryWriter(str(run / "tensorboard"))

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """One line of numbers at a step; NaN and inf become null in the JSON."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (H, W) or (H, W, 3), uint8, for TensorBoard."""
        if self._board is not None:
            layout = "HW" if pixels.ndim == 2 else "HWC"
            self._board.add_image(name, pixels, step, dataformats=layout)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()
