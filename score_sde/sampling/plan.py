"""What a call of `sample` comes to, settled and checked before anything is computed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import UserError, check_alone, check_size, named
from score_sde.noise import BrownianNoise, NoiseFactory, PhiloxNoise, SeededNoise, check_seeds
from score_sde.processes.sdes import SDE
from score_sde.sampling.catalogue import make_sampler
from score_sde.sampling.grids import make_grid
from score_sde.sampling.method import Predictor, prepared
from score_sde.sampling.options import settings_of
from score_sde.sampling.recipe import Recipe

# alpha/sigma at t_max, below which x_0 cannot be read off the score: by the digits of the state.
LEAST_ALPHA = {torch.float64: 1e-10}
LEAST_ALPHA_ELSE = 1e-5


@dataclass(frozen=True)
class Plan:
    """A method on a grid for so many samples, and where they start from.

    numbers: what the method prepared, one entry a step. nfe: the most evaluations a sample may
    take, if that was asked for. score_dtype: of the states as the score sees them; arithmetic in
    float16 and bfloat16 is done in float32. grid: its name.
    """

    sde: SDE
    method: Predictor[Any]
    name: str
    grid: str
    times: Tensor
    numbers: Sequence[Any]
    nfe: int | None
    denoise: bool
    shape: tuple[int, ...]
    x_T: Tensor | None
    seeds: list[int]
    noise: NoiseFactory
    noise_scale: float
    batch_size: int
    score_dtype: torch.dtype
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return torch.promote_types(self.score_dtype, torch.float32)

    @property
    def steps(self) -> int:
        """Intervals of the grid."""
        return len(self.times) - 1

    def settings(self) -> dict[str, Any]:
        """Everything that the samples depend on beside score, process and seeds."""
        first, last = float(self.times[0]), float(self.times[-1])
        found = {"method": self.name, "steps": self.steps} | settings_of(self.method)
        found |= {"grid": self.grid, "t": f"{first:g}..{last:g}", "denoise": self.denoise}
        return found if self.noise_scale == 1 else found | {"noise_scale": self.noise_scale}


def make_plan(
    sde: SDE,
    shape: Sequence[int] | None,
    x_T: Tensor | None,
    method: str | Predictor[Any] | None,
    steps: int | None,
    nfe: int | None,
    grid: Any,
    seeds: Sequence[int] | None,
    denoise: bool,
    noise: str | NoiseFactory,
    noise_scale: float,
    batch_size: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    options: Mapping[str, Any],
) -> Plan:
    """The plan of a call of `sample`, whose arguments these are; UserError if they make none."""
    recipe = grid if isinstance(grid, Recipe) else None
    if recipe is not None:
        check_recipe(recipe, sde, method)
        options = {"data_std": recipe.data_std, "order": recipe.order, **options}
        grid = recipe.times
    if method is None:
        method = "adams" if "data_std" in options else "ancestral"
    name = method if isinstance(method, str) else type(method).__name__
    made = make_sampler(method, **options)
    denoise = denoise and not made.ends_at_data
    sizes = check_shape(shape, x_T)
    grid = made.default_grid or sde.natural_grid if grid is None else grid
    named = isinstance(grid, str)
    count = count_steps(made, steps, nfe, denoise) if named or steps else None
    times = make_grid(sde, grid, count, getattr(made, "data_std", None))
    score_dtype = check_dtype(dtype or (torch.float32 if x_T is None else x_T.dtype))
    check_ends(sde, times, score_dtype)
    if not named and nfe is not None:
        needed = (len(times) - 1) * made.evaluations + denoise
        if needed > nfe:
            raise UserError(f"the grid needs {needed} evaluations, more than nfe={nfe}.")
    return Plan(
        sde=sde,
        method=made,
        name=name,
        grid=grid if named else "recipe" if recipe else "explicit",
        times=times,
        numbers=prepared(made, sde, times),
        nfe=nfe,
        denoise=denoise,
        shape=sizes,
        x_T=x_T,
        seeds=check_seeds(seeds, sizes[0]),
        noise=noise_factory(noise, sde),
        noise_scale=noise_scale,
        batch_size=batch_size or sizes[0],
        score_dtype=score_dtype,
        device=torch.device(device or ("cpu" if x_T is None else x_T.device)),
    )


def check_recipe(recipe: Recipe, sde: SDE, method: str | Predictor[Any] | None) -> None:
    """UserError unless a recipe is for this process, and no other method than its own is named."""
    recipe.check(sde)
    if method not in (None, "adams"):
        raise UserError(
            f"a recipe is a grid for adams, and the method is {method}: leave that out, or "
            "give the recipe's times as the grid."
        )


def check_shape(shape: Sequence[int] | None, x_T: Tensor | None) -> tuple[int, ...]:
    """The shape of the samples; UserError unless exactly one of both gives a usable one."""
    if (shape is None) == (x_T is None):
        raise UserError("give exactly one of shape and x_T.")
    if x_T is not None and (x_T.layout != torch.strided or x_T.is_meta):
        raise UserError("x_T must be a dense tensor with values: not sparse, and not of meta.")
    given = x_T.shape if x_T is not None else shape
    sizes = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    whole = all(isinstance(n, numbers.Integral) and n >= 1 for n in sizes)
    if len(sizes) < 2 or not whole:
        raise UserError(
            "shape must be (B, ...) with B >= 1 and at least two axes, whole numbers; "
            f"got {sizes or shape}."
        )
    check_size(math.prod(sizes) * 4 + sizes[0] * 32, "samples of this shape, and their seeds,")
    return tuple(int(n) for n in sizes)


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the states; UserError unless it is of real numbers."""
    if not dtype.is_floating_point:
        raise UserError(
            f"states are {dtype}: give floating-point values, x_T.float(), or dtype=torch.float32."
        )
    return dtype


def check_ends(sde: SDE, times: Tensor, dtype: torch.dtype) -> None:
    """UserError unless x_0 can be read off the score, and noise is finite, at the first time."""
    ratio = float(sde.alpha(times[0]) / sde.sigma(times[0]))
    if LEAST_ALPHA.get(dtype, LEAST_ALPHA_ELSE) < ratio < math.inf:
        return
    usable = float(sde.time_of_log_snr(torch.tensor(-14.0, dtype=torch.float64)))
    raise UserError(
        f"alpha/sigma is {ratio:.2g} at t={float(times[0]):g}, where sampling would start: x_0 "
        f"cannot be read off the score there. End the process earlier, at t_max={usable:.4g}, say."
    )


def count_steps(method: Predictor[Any], steps: int | None, nfe: int | None, denoise: bool) -> int:
    """The number of steps asked for by ``steps`` or by a budget of evaluations."""
    check_alone({"steps": steps, "nfe": nfe})
    if nfe is None:
        return method.default_steps if steps is None else steps
    if method.evaluations == 0:
        raise UserError(
            f"{type(method).__name__} adapts its evaluations to rtol and atol; nfe={nfe} "
            "cannot bound them. Use method=heun or set rtol."
        )
    least = method.evaluations + denoise
    if nfe < least:
        raise UserError(f"nfe={nfe} is too few: one step needs {least} evaluations.")
    return (nfe - denoise) // method.evaluations


def check_spent(plan: Plan, steps: int, spent: int) -> None:
    """UserError when a method takes more evaluations for its steps than it says it does."""
    says = plan.method.evaluations
    if plan.nfe is not None and spent > steps * says:
        raise UserError(
            f"{plan.name} took {spent} evaluations for {steps} step{'s'[: steps != 1]}, but its "
            f"class says evaluations = {says}, by which nfe={plan.nfe} was divided. Say there how "
            "many one step takes."
        )


def noise_factory(noise: str | NoiseFactory, sde: SDE) -> NoiseFactory:
    """What makes the source of noise of a batch."""
    if not isinstance(noise, str):
        return noise
    brownian = partial(BrownianNoise, sde=sde)
    sources: dict[str, NoiseFactory] = {
        "seeded": SeededNoise,
        "philox": PhiloxNoise,
        "brownian": brownian,
    }
    return named(sources, noise, "noise")
