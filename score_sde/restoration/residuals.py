r"""What a network really leaves unknown: the residuals x_0 - D(x, nu), measured on data.

For Gaussian data Cov[x_0 | x_t] = C_nu, of variances lambda nu^2/(lambda + nu^2) along the axes of
C. Pictures are far better known from x_t than that: on Fashion-MNIST a fourth of it is left where
nu is a quarter of the data's spread, and not the same share along all axes. `Residuals` are these
shares, mean squares of x_0 - D along the axes over those of the Gaussian; with them the reference
of `means` is that of the network, and its kernel leaves no grain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from score_sde.checks import Count, checked, reading, require
from score_sde.exact import Gaussian
from score_sde.noise import SeededNoise
from score_sde.processes.sdes import SDE
from score_sde.restoration.denoiser import Denoiser
from score_sde.restoration.levels import starting_level
from score_sde.restoration.reference import SmoothGaussian
from score_sde.scores import ScoreFn
from score_sde.writing import whole_file

LEAST = 1e-3
"""The smallest share that is believed."""


@dataclass(frozen=True)
class Residuals:
    """Shares (L, D) of lambda nu^2/(lambda + nu^2) along the axes, at rising levels nu (L,)."""

    levels: Tensor
    shares: Tensor

    def __post_init__(self) -> None:
        levels, shares = self.levels, self.shares
        rising = levels.ndim == 1 and len(levels) > 1 and bool((levels.diff() > 0).all())
        require(
            rising and 0 < float(levels[0]) and float(levels[-1]) < math.inf,
            f"residuals need two levels or more, rising from above 0 (got {levels.tolist()}).",
        )
        require(
            shares.ndim == 2 and len(shares) == len(levels) and bool((shares > 0).all())
            and bool(shares.isfinite().all()),
            f"residuals need positive shares ({len(levels)}, D), one row a level; got "
            f"{tuple(shares.shape)} from {float(shares.min()):g} to {float(shares.max()):g}.",
        )  # fmt: skip

    def share(self, nu: float) -> Tensor:
        """The shares at a level (D,), linear in log nu between levels, constant beyond."""
        logs = self.levels.log()
        u = min(max(math.log(nu), float(logs[0])), float(logs[-1]))
        above = int(torch.searchsorted(logs, torch.tensor(u, dtype=logs.dtype)))
        above = min(max(above, 1), len(logs) - 1)
        weight = (u - float(logs[above - 1])) / float(logs[above] - logs[above - 1])
        return torch.lerp(self.shares[above - 1], self.shares[above], weight)


@torch.no_grad()
@checked
def measure_residuals(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    gaussian: Gaussian | SmoothGaussian,
    levels: Count = 16,
    seed: int = 0,
) -> Residuals:
    """The `Residuals` of a score on data x (N, *shape) in the model's range.

    N = 500 give shares within some 6 %; costs N evaluations a level. Items that the network was
    trained on are a little better known than others. UserError for data of another shape.
    """
    shape = tuple(gaussian.shape)
    require(
        tuple(x.shape[1:]) == shape and len(x) > 1 and levels > 1,
        f"residuals need two items {shape} and two levels; got {tuple(x.shape)} and {levels}.",
    )
    denoiser = Denoiser(sde, score, shape, dtype=torch.float32)
    lam = gaussian.axis_variances.to(x.device, torch.float64)
    low, high = denoiser.range
    high = starting_level(float(lam.max().sqrt()), high)
    flat = x.flatten(1).double()
    noise = SeededNoise(range(seed, seed + len(x)), (flat.shape[1],), torch.float64, x.device)
    nus, shares = np.geomspace(low, high, levels), []
    for nu in nus.tolist():
        off = gaussian.to_axes(flat - denoiser(flat + nu * noise.draw(), nu)).square().mean(0)
        shares.append((off * (1 / nu**2 + 1 / lam)).clamp(LEAST, 1.0))
    return Residuals(torch.from_numpy(nus), torch.stack(shares).cpu())


def save_residuals(residuals: Residuals, path: Path, of: str) -> None:
    """A file of the residuals; of: of which weights they are."""
    tensors = {"levels": residuals.levels, "shares": residuals.shares.float().contiguous()}
    with whole_file(path) as partial:
        save_file(tensors, partial, {"of": of})


def load_residuals(path: Path, of: str) -> Residuals | None:
    """Those of a file of `save_residuals`; None if there are none, or those of other weights."""
    if not path.is_file():
        return None
    with reading(path, "a file of residuals; delete it, it is made again"):
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("of") != of:
                return None
        found = load_file(path)
        return Residuals(found["levels"].double(), found["shares"].double())
