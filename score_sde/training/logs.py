"""Scalars and pictures of a run: log.jsonl always, TensorBoard beside it, a line on the console."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde import distributed
from score_sde.checks import library
from score_sde.writing import replacing

EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # noise levels sigma/alpha that separate the bins
BIN_NAMES = (
    f"below_{EDGES[0]:g}",
    *(f"{low:g}_to_{high:g}" for low, high in zip(EDGES, EDGES[1:], strict=False)),
    f"above_{EDGES[-1]:g}",
)


def _which_bin(noise_level: Tensor) -> np.ndarray:
    return np.digitize(noise_level.detach().cpu().double().numpy(), EDGES, right=True)


def bin_names(noise_level: Tensor) -> list[str]:
    """Names of the bins that noise levels (n,) fall into, each once, ascending."""
    return [BIN_NAMES[i] for i in np.unique(_which_bin(noise_level))]


def logged_errors(
    lines: Sequence[Mapping[str, Any]], measures: str = "eps_error"
) -> list[tuple[float, float, float, float]]:
    """Each bin's lowest and highest noise level, its error, the mean over lines of a log, and that
    mean's standard error over it, by how the lines differ."""
    found = []
    bounds = zip((0.0, *EDGES), (*EDGES, math.inf), BIN_NAMES, strict=True)
    for low, high, name in bounds:
        logged = [line.get(f"{measures}/{name}", math.nan) for line in lines]
        values = [v for v in logged if isinstance(v, float) and math.isfinite(v)]
        if values:
            mean, n = sum(values) / len(values), len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(n * (n - 1), 1))
            found.append((low, high, mean, spread / max(mean, 1e-12)))
    return found


def peak_memory(device: torch.device) -> float:
    """The most memory used so far, in GB: of the GPU, or of the process; NaN where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return math.nan
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e9 if sys.platform == "darwin" else used * 1024 / 1e9


class NoiseBins:
    """Mean error in bins of the noise level, beside that of the trivial predictor.

    measures: what the error is called; of scores it is that of eps.
    """

    def __init__(self, measures: str = "eps_error") -> None:
        self.measures = measures
        self._sums = np.zeros((3, len(BIN_NAMES)))
        self._here: Tensor | None = None  # sums on the device

    @torch.no_grad()
    def add(self, noise_level: Tensor, error: Tensor, trivial: Tensor) -> None:
        """One batch; each (B,). Values that are not finite are left out. Added up on the device."""
        wide = torch.float32 if error.device.type == "mps" else torch.float64
        values = torch.stack([torch.ones_like(error), error, trivial]).to(wide)  # (3, B)
        values = torch.where(torch.isfinite(values).all(0), values, 0.0)
        above = [noise_level.to(wide) > edge for edge in EDGES]
        bounds = [torch.ones_like(above[0]), *above, torch.zeros_like(above[0])]
        inside = [a & ~b for a, b in zip(bounds, bounds[1:], strict=False)]
        added = values @ torch.stack(inside, 1).to(wide)  # (3, bins)
        self._here = added if self._here is None else self._here + added

    def sums(self) -> list[float]:
        """What was added since the last `pop`, over all processes, for a checkpoint."""
        if self._here is not None:
            self._sums += self._here.cpu().double().numpy()
            self._here = None
        return distributed.total(self._sums.ravel().tolist())

    def restore(self, sums: list[float]) -> None:
        """Go on from the sums of a checkpoint; one process takes them."""
        if distributed.is_writer():
            self._sums[:] = np.reshape(sums, self._sums.shape)

    def pop(self) -> dict[str, float]:
        """Means since the last call, {"eps_error/0.1_to_0.3": ..., "trivial/...": ...}.

        Of all processes, which must all call it.
        """
        count, error, trivial = np.reshape(self.sums(), self._sums.shape)
        result = {}
        for i in np.flatnonzero(count):
            result[f"{self.measures}/{BIN_NAMES[i]}"] = float(error[i] / count[i])
            result[f"trivial/{BIN_NAMES[i]}"] = float(trivial[i] / count[i])
        self._sums[:] = 0
        return result


class Logger:
    """Appends to a file of lines of JSON, to TensorBoard and to Weights & Biases.

    log: the file. board: TensorBoard's folder, None without. wandb_id: a file that keeps which run
    this is on Weights & Biases, which shows it by its folder's name; None without.
    resumed_at: drop what an earlier run has logged after this step; it will be logged again.
    settings: shown beside the curves on Weights & Biases.
    """

    def __init__(
        self,
        log: Path,
        board: Path | None = None,
        wandb_id: Path | None = None,
        resumed_at: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        resumed = resumed_at is not None
        self._wandb = _start_wandb(wandb_id, dict(settings or {}), resumed) if wandb_id else None
        if resumed_at is not None:
            _cut_log(log, resumed_at)
        self._file = log.open("a", buffering=1)
        self._board = None
        if board is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, so only here

            purge = None if resumed_at is None else resumed_at + 1
            self._board = SummaryWriter(str(board), purge_step=purge)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """One line of numbers at a step; NaN and inf become null in the JSON."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (H, W) or (H, W, 3), uint8, for TensorBoard and Weights & Biases."""
        if self._board is not None:
            layout = "HW" if pixels.ndim == 2 else "HWC"
            self._board.add_image(name, pixels, step, dataformats=layout)
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(path: Path, settings: dict[str, Any], resumed: bool) -> Any:
    wandb = library("wandb", "wandb", "training.wandb=True needs Weights & Biases,")
    if not (resumed and path.is_file()):
        path.write_text(secrets.token_hex(4))
    return wandb.init(
        project="score_sde",
        name=path.parent.name,
        dir=str(path.parent),
        config=settings,
        id=path.read_text().strip(),
        resume="allow",
    )


def _cut_log(path: Path, step: int) -> None:
    """Keep the lines up to a step; a last line that a crash has cut off goes too.

    Lines before it that are none of ours go as well, and are named.
    """
    if not path.is_file():
        return
    kept, odd, lines = [], [], path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            odd.append(number)
    if odd and odd != [len(lines)]:
        print(f"{path}: lines {odd[:5]} are not of a log and are left out")
    with replacing(path) as file:
        file.write("".join(kept).encode())
