"""Time grids: float64 tensors (steps + 1,), strictly decreasing from t_max to t_min."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_sde.sdes import SDE


def uniform(sde: SDE, steps: int) -> Tensor:
    """Equal steps in t: Song's grid."""
    return torch.linspace(sde.t_max, sde.t_min, steps + 1, dtype=torch.float64)


def _sigma_range(sde: SDE) -> Tensor:
    """sigma/alpha at t_max and t_min."""
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    return torch.exp(-0.5 * sde.log_snr(ends))


def logsnr(sde: SDE, steps: int) -> Tensor:
    """Equal steps in the log signal-to-noise ratio (2206.00927)."""
    high, low = _sigma_range(sde).log()
    sigmas = torch.linspace(float(high), float(low), steps + 1, dtype=torch.float64).exp()
    return _at_sigmas(sde, sigmas)


def karras(sde: SDE, steps: int, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho) (2206.00364, eq. 5)."""
    high, low = _sigma_range(sde) ** (1 / rho)
    sigmas = torch.linspace(float(high), float(low), steps + 1, dtype=torch.float64) ** rho
    return _at_sigmas(sde, sigmas)


def _at_sigmas(sde: SDE, sigmas: Tensor) -> Tensor:
    times = sde.time_of_log_snr(-2 * sigmas.log())
    # The ends are known exactly; the inversion gives them to rounding only.
    times[0], times[-1] = sde.t_max, sde.t_min
    return times


GRIDS: dict[str, Callable[[SDE, int], Tensor]] = {
    "uniform": uniform,
    "logsnr": logsnr,
    "karras": karras,
}


def make_grid(sde: SDE, grid: str | Sequence[float] | Tensor, steps: int | None) -> Tensor:
    """A grid by name for so many steps, or explicit times checked; float64 (steps + 1,)."""
    if isinstance(grid, str):
        if grid not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}; choose from {list(GRIDS)} or give times.")
        if steps is None:
            raise ValueError(f"grid {grid!r} needs a number of steps.")
        times = GRIDS[grid](sde, steps)
    else:
        times = torch.as_tensor(grid, dtype=torch.float64)
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(f"a grid is a list of at least two times; got {times.tolist()}.")
        if steps is not None and steps != len(times) - 1:
            raise ValueError(f"the grid has {len(times) - 1} steps but steps={steps}; drop steps.")
    inside = bool((times > 0).all()) and float(times[0]) <= sde.t_max * (1 + 1e-12)
    if not bool((times.diff() < 0).all()) or not inside:
        raise ValueError(
            f"grid times must fall strictly, within (0, {sde.t_max}]; got {times.tolist()[:8]}..."
        )
    return times
