r"""Where in noise a sample is decided, and how near a model is to the best guess of its data.

A sampler goes from large noise to small. What x_0 will be of any kind is settled when the guess
E[x_0 | x_t], shown to a classifier, keeps its class from there on.

For data x_1..x_N the guess of least error is known, the mean weighed by how likely each item is,

    D*(x, t) = sum_i w_i x_i,    w ~ exp(-|x - alpha x_i|^2 / 2 sigma^2).

A model that met it everywhere would only give the items back (2310.02664): at large noise it should
be near, at small noise it must not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import Count, UserError, checked
from score_sde.diagnosis.closed_forms import posterior_mean
from score_sde.noise import SeededNoise
from score_sde.processes.expand import as_time
from score_sde.processes.sdes import SDE
from score_sde.sampling import ScoreFn, sample


@dataclass(frozen=True)
class Decisions:
    """Falling times (K,), the class probabilities (K, B, C) of the guesses there, and log-SNR (K,).

    The last row is of the samples themselves.
    """

    times: Tensor
    probabilities: Tensor
    log_snr: Tensor

    @property
    def classes(self) -> Tensor:
        """Of the samples in the end, (B,)."""
        return self.probabilities[-1].argmax(-1)

    @property
    def decided(self) -> Tensor:
        """The log-SNR (B,) from which on each guess is of the class of its sample."""
        same = self.probabilities.argmax(-1) == self.classes
        stays = same.flip(0).cummin(0).values.flip(0)
        return self.log_snr[stays.int().argmax(0)]

    @property
    def confidence(self) -> Tensor:
        """Mean probability (K,) of the class that each sample has in the end."""
        own = self.classes.expand(len(self.times), -1)[..., None]
        return self.probabilities.gather(-1, own)[..., 0].mean(1)


@checked
@torch.no_grad()
def decisions(
    sde: SDE, score: ScoreFn, classify: Callable[[Tensor], Tensor], shape: Sequence[int],
    seeds: Sequence[int] | None = None, **settings: Any,
) -> Decisions:  # fmt: skip
    """The classes of E[x_0 | x_t] along the ways of a sampler.

    classify: states like x_0 (B, ...) to class probabilities (B, C). shape (B, ...), seeds and
    settings (method, steps, grid, ...) are those of `sample`. One evaluation more a step.
    """
    times: list[float] = []
    found: list[Tensor] = []

    def look(x: Tensor, t: Tensor) -> None:
        times.append(float(t))
        found.append(classify(sde.denoise(x, t, score)))

    seeds = range(shape[0]) if seeds is None else seeds
    end = sample(sde, score, shape=tuple(shape), seeds=seeds, hook=look, **settings)
    probabilities = torch.stack([*found, classify(end)]).double().cpu()
    if probabilities.ndim != 3 or not torch.allclose(
        probabilities.sum(-1), torch.ones(()).double(), atol=1e-3
    ):
        raise UserError(
            "classify must give probabilities (B, C) that sum to one for each sample (softmax of "
            f"logits); it gave {tuple(probabilities.shape[1:])}."
        )
    at = torch.tensor([*times, times[-1]], dtype=torch.float64)
    return Decisions(at, probabilities, sde.log_snr(at))


@dataclass(frozen=True)
class Closeness:
    """At each time (K,), root mean squares over samples and coordinates.

    log_snr: of the times. apart: of the model's guess from the best one. model, best: the errors of
    the two guesses on the data; best is what no model can go below on these items, and far below
    what is possible on others when noise is small.
    """

    times: Tensor
    log_snr: Tensor
    apart: Tensor
    model: Tensor
    best: Tensor


@checked
def optimal_denoiser(sde: SDE, data: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
    """D*(x, t), the mean of items (N, ...) weighed by how likely they are given x (B, ...)."""
    time = as_time(t).double().reshape(-1)[0]  # in float64: distances over sigma^2 are large
    items, points = data.flatten(1).to(x.device).double(), x.flatten(1).double()
    guess = posterior_mean(items, points, float(sde.alpha(time)), float(sde.sigma(time)))
    return guess.reshape(x.shape).to(x)


@checked
@torch.no_grad()
def closeness(
    sde: SDE, score: ScoreFn, data: Tensor, times: Sequence[float] | None = None, n: Count = 64,
    seed: int = 0,
) -> Closeness:  # fmt: skip
    """How far the model's guess is from the best one of these data (N, ...), over noise.

    times: 12 of equal steps in log-SNR when None. n: items that are noised, from the first on.
    """
    if times is None:
        ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
        levels = torch.linspace(float(ends[0]), float(ends[1]), 12, dtype=torch.float64)
        times = sde.time_of_log_snr(levels).tolist()
    x0 = data[:n]
    seeds = range(seed, seed + len(x0))
    eps = SeededNoise(seeds, tuple(x0.shape[1:]), x0.dtype, x0.device).draw()
    rows = []
    for t in times:
        mean, std = sde.marginal(x0, as_time(t))
        x = mean + std * eps
        best, guess = optimal_denoiser(sde, data, x, t), sde.denoise(x, as_time(t), score)
        rows.append([_rms(guess - best), _rms(guess - x0), _rms(best - x0)])
    at, columns = torch.tensor(times, dtype=torch.float64), torch.tensor(rows).double().T
    return Closeness(at, sde.log_snr(at), *columns)


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean()))
