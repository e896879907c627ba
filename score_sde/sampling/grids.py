"""Time grids: float64 tensors (steps + 1,), strictly decreasing from t_max to t_min."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_sde.checks import UserError, check_names
from score_sde.ode.clock import Clock
from score_sde.ode.frames import check_positive
from score_sde.processes.sdes import SDE


def uniform(sde: SDE, steps: int, data_std: float | None = None) -> Tensor:
    """Equal steps in t: Song's grid."""
    return torch.linspace(sde.t_max, sde.t_min, steps + 1, dtype=torch.float64)


def discrete(sde: SDE, steps: int, data_std: float | None = None) -> Tensor:
    """DDPM's indices: a subset of 1000 equally spaced times (more if there are more steps)."""
    n = max(1000, steps + 1)
    index = torch.linspace(n - 1, 0, steps + 1, dtype=torch.float64).round()
    return sde.t_min + index / (n - 1) * (sde.t_max - sde.t_min)


def noise_range(sde: SDE) -> tuple[float, float]:
    """sigma/alpha at t_max and at t_min."""
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    high, low = torch.exp(-0.5 * sde.log_snr(ends)).tolist()
    return high, low


def logsnr(sde: SDE, steps: int, data_std: float | None = None) -> Tensor:
    """Equal steps in the log signal-to-noise ratio (2206.00927)."""
    high, low = (math.log(end) for end in noise_range(sde))
    return at_noise_levels(sde, torch.linspace(high, low, steps + 1, dtype=torch.float64).exp())


def karras(sde: SDE, steps: int, data_std: float | None = None, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho) (2206.00364, eq. 5)."""
    high, low = (end ** (1 / rho) for end in noise_range(sde))
    return at_noise_levels(sde, torch.linspace(high, low, steps + 1, dtype=torch.float64) ** rho)


def saturating(sde: SDE, steps: int, data_std: float | None = None) -> Tensor:
    """Equal steps in log((s + k)/(1 + s/c)), s = sigma/alpha, c = 5 and k = 0.01 times data_std.

    Uniform in log s around the data's scale; far above it and far below it, where the flow hardly
    turns, steps grow.
    """
    sd = check_positive("data_std", data_std)
    clock = Clock(k=0.01 * sd, c=5 * sd)
    high, low = (clock.u(end) for end in noise_range(sde))
    return at_noise_levels(
        sde, clock.level(torch.linspace(high, low, steps + 1, dtype=torch.float64))
    )


def angle(sde: SDE, steps: int, data_std: float | None = None) -> Tensor:
    """Equal steps in theta = arctan(sigma / (alpha data_std)), by which the flow turns."""
    sd = check_positive("data_std", data_std)
    high, low = (math.atan(end / sd) for end in noise_range(sde))
    turns = torch.linspace(high, low, steps + 1, dtype=torch.float64)
    return at_noise_levels(sde, sd * torch.tan(turns))


def at_noise_levels(sde: SDE, levels: Tensor) -> Tensor:
    """Times at which sigma/alpha takes these falling values, from t_max to t_min exactly."""
    times = sde.time_of_log_snr(-2 * levels.log())
    # The ends are known exactly; the inversion gives them to rounding only.
    times[0], times[-1] = sde.t_max, sde.t_min
    return times


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "discrete": discrete,
    "logsnr": logsnr,
    "karras": karras,
    "saturating": saturating,
    "angle": angle,
}


def make_grid(
    sde: SDE,
    grid: str | Sequence[float] | Tensor,
    steps: int | None,
    data_std: float | None = None,
) -> Tensor:
    """A grid by name for so many steps, or explicit times checked; float64 (steps + 1,)."""
    if isinstance(grid, str):
        check_names([grid], GRIDS, "grid", also=", or give times or a recipe")
        if steps is None:
            raise UserError(f"grid {grid!r} needs a number of steps.")
        times = GRIDS[grid](sde, steps, data_std)
    else:
        try:
            times = torch.as_tensor(grid, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"a grid is a name or a list of times; got {grid!r:.80}.") from error
        if times.ndim != 1 or len(times) < 2:
            raise UserError(f"a grid is a list of at least two times; got {times.tolist()}.")
        if steps is not None and steps != len(times) - 1:
            raise UserError(f"the grid has {len(times) - 1} steps but steps={steps}; drop steps.")
    inside = bool((times > 0).all()) and float(times[0]) <= sde.t_max * (1 + 1e-12)
    if not bool((times.diff() < 0).all()) or not inside:
        raise UserError(
            f"grid times must fall strictly, within (0, {sde.t_max}]; got {times.tolist()[:8]}..."
        )
    return times
