"""The law of what a sampler makes of Gaussian data: by impulses exactly, else by many samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from score_sde.exact import Gaussian, GaussianMixture
from score_sde.noise import generator_of
from score_sde.processes.sdes import SDE
from score_sde.sampling import ODEError, Predictor, make_sampler, sample

F64 = torch.float64


class Impulses:
    """Noise source for 2 + n samples: 0 draws zeros, 1 + j ones in draw j alone, the last noise.

    The last sample tests that the method is affine: it must be what the impulses add up to.
    """

    def __init__(self, seed: int):
        self._generator = generator_of(seed)
        self.probes: list[Tensor] = []  # what the last sample drew, (*shape) each

    @property
    def draws(self) -> int:
        return len(self.probes)

    def __call__(self, seeds: Sequence[int], shape: Sequence[int], dtype: Any, device: Any) -> Any:
        self._size, self._like = (len(seeds), *shape), {"dtype": dtype, "device": device}
        return self

    def draw(self, t: Any = None, s: Any = None, which: Tensor | None = None) -> Tensor:
        z = torch.zeros(self._size, **self._like)
        if self.draws + 2 < len(z):
            z[1 + self.draws] = 1
        z[-1] = torch.randn(z[-1].shape, generator=self._generator, dtype=F64).to(z)
        self.probes.append(z[-1].clone())  # a method may work in place on what it drew
        return z


class Normals(Impulses):
    """Noise source of ordinary independent normals, for Monte Carlo."""

    def draw(self, t: Any = None, s: Any = None, which: Tensor | None = None) -> Tensor:
        size = self._size if which is None else (len(which), *self._size[1:])
        z = torch.randn(size, generator=self._generator, dtype=F64).to(**self._like)
        self.probes.append(z[-1].clone())  # a method may work in place on what it drew
        return z


@dataclass(frozen=True)
class Setup:
    """One method on one process, and what its results should be."""

    sde: SDE
    method: str | Predictor
    options: dict[str, Any]
    grid: Any
    denoise: bool

    def predictor(self, data: GaussianMixture | None = None) -> Predictor:
        """The method with its options, and the data's std where it wants one and has none."""
        method = make_sampler(self.method, **self.options)
        if data is None or getattr(method, "data_std", 0.0) is not None:
            return method
        return dataclasses.replace(cast(Any, method), data_std=data.std())

    def ends(self) -> Tensor:
        """(2,) the times where the grid starts and stops."""
        if self.grid is None or isinstance(self.grid, str):
            return torch.tensor([self.sde.t_max, self.sde.t_min], dtype=F64)
        return torch.as_tensor(getattr(self.grid, "times", self.grid), dtype=F64)[[0, -1]]

    def ratio(self) -> float:
        """r = sigma/alpha left in the results."""
        end = self.ends()[1]
        return 0.0 if self.denoise else float(self.sde.sigma(end) / self.sde.alpha(end))

    def run(
        self,
        data: GaussianMixture,
        source: Callable,
        steps: int | None,
        size: int,
        x_T: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """(x / alpha (size, *shape), evaluations) with the exact score of the data, float64."""
        score, calls = data.score(self.sde), 0
        # A recipe of `calibrate` sets options of its method, which `sample` takes by name only.
        recipe = hasattr(self.grid, "data_std")
        method: Any = self.method if recipe else self.predictor(data)
        options: dict[str, Any] = self.options if recipe else {}

        def counted(x: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return score(x, t)

        try:
            x = sample(
                self.sde,
                counted,
                (size, *data.shape) if x_T is None else None,
                x_T=x_T,
                method=method,
                steps=steps,
                grid=self.grid,
                seeds=range(size),  # unused, but without them the global generator would move
                denoise=self.denoise,
                noise=source,
                dtype=F64,
                **options,
            )
        except ODEError:  # not finite, or an adaptive method gave up: a result, not an accident
            x = torch.full((size, *data.shape), math.nan, dtype=F64)
        return x if self.denoise else x / self.sde.alpha(self.ends()[1]), calls

    def endpoint(self, data: GaussianMixture, x_T: Tensor) -> Tensor:
        """Where the probability flow carries x_T, as x / alpha or denoised (B, *shape)."""
        start, end = self.ends()
        x = data.flow(self.sde, x_T, start, end)
        return data.score(self.sde).denoise(x, end) if self.denoise else x / self.sde.alpha(end)


def endpoint_error(setup: Setup, data: GaussianMixture, steps: int | None, seed: int) -> tuple:
    """(rms, median of the samples' rms, evaluations), in units of the data's std."""
    generator = generator_of(seed)
    x_T = setup.sde.prior_sample((64, *data.shape), generator, dtype=F64)
    x, calls = setup.run(data, Normals(seed), steps, len(x_T), x_T)
    squares = (x - setup.endpoint(data, x_T)).flatten(1).square().mean(1) / data.std() ** 2
    return float(squares.mean().sqrt()), float(squares.median().sqrt()), calls


def propagate(setup: Setup, data: Gaussian, steps: int | None, seed: int) -> tuple:
    """(mean (D,), std (D,), draws, evaluations) of the result; mean is None if it is not affine."""
    guess = 1 + (steps or 1)
    while True:
        source = Impulses(seed)
        x, calls = setup.run(data, source, steps, guess + 2)
        if source.draws <= guess:
            break
        guess = source.draws  # two draws a step, say: once more with an impulse for each
    response = x[1:-1] - x[0]
    # Draws that never came left zeros.
    predicted = x[0] + (torch.stack(source.probes) * response[: source.draws]).sum(0)
    scale = x.abs().max()
    if bool((predicted - x[-1]).abs().max() > 1e-7 * scale):
        return None, None, source.draws, calls
    return x[0], response.square().sum(0).sqrt(), source.draws, calls


def distance(
    mean: Tensor, std: Tensor, want_mean: Tensor, want_std: Tensor, samples: int | None
) -> dict[str, float]:
    """The figures of a law (D,) against the wanted one; of estimates from samples, without bias.

    An estimated mean has variance std^2 / n and an estimated std has std^2 / (2 n): they are taken
    off the squares, and propagated to second order into the standard error of w2.
    """
    scale = want_std.square().sum()
    off_mean, off_std = (mean - want_mean).square(), (std - want_std).square()
    noise = torch.zeros_like(std) if samples is None else std.square() / samples
    # torch's clamp keeps NaN, Python's max does not.
    mean_bias = ((off_mean - noise).sum() / scale).clamp_min(0).sqrt()
    w2 = ((off_std - noise / 2).sum() / scale).clamp_min(0).sqrt()
    error = (2 * off_std * noise + noise**2 / 2).sum().sqrt() / scale  # of w2^2
    return {
        "w2": float(w2),
        "mean_bias": float(mean_bias),
        "std_bias": float(std.sum() / want_std.sum() - 1),
        "w2_stderr": float(torch.minimum(error.sqrt(), error / (2 * w2))) if samples else 0.0,
    }
