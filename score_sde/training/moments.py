r"""The end of a map's training: samples of one to a few steps get the moments of the data.

A map that is told to follow a flow point by point, and is too small or too young to do so, says the
mean of where it may lead: its samples are blurred. They can still be right in law. Here the last
share of the training looks at whole batches of samples, in features phi of the teacher's network,
and brings their means m and covariances C to those of the data, m' and C' (1904.02762), by

    L = |m - m'|^2 + tr C + tr C' - 2 tr (C'^1/2 C C'^1/2)^1/2,

the Frechet distance of 1706.08500 in features that nobody judges by. The last trace is the
nuclear norm of (phi - m) C'^1/2 / sqrt(n - 1), whose gradient is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from score_sde.losses import LossTerms
from score_sde.models import FlowMap, ScoreModel, angle, time_of_angle

LEVEL = 0.3  # sigma / (alpha data_std) at which the teacher looks: shapes and texture, no noise
Features = Callable[[Tensor], list[Tensor]]


class BlockFeatures:
    """`features(x)`: of each block of a U-Net, means and deviations over the pixels, (B, 2 C).

    score: whose network looks at x (B, ...), taken for samples at a low noise level. Gradients go
    through to x.
    """

    def __init__(self, score: ScoreModel):
        self.score, sde = score, score.sde
        level = torch.tensor(LEVEL * score.data_std, dtype=torch.float64)
        self.t = sde.time_of_log_snr(-2 * level.log()).clamp(sde.t_min, sde.t_max)

    def __call__(self, x: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        net: Any = self.score.net
        hooks = [
            block.register_forward_hook(lambda module, given, out: seen.append(out))
            for _, block in net.modulated()
        ]
        try:
            self.score.output(float(self.score.sde.alpha(self.t)) * x, self.t.to(x.device))
        finally:
            for hook in hooks:
                hook.remove()
        flat = (h.float().flatten(2) for h in seen)
        return [torch.cat([h.mean(2), h.std(2)], 1) for h in flat]


@dataclass(frozen=True)
class Law:
    """Mean (D,), square root of the covariance (D, D) and its trace, of real features."""

    mean: Tensor
    root: Tensor
    trace: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Law:
        """Of features (N, D), N above D, in float64."""
        features = features.double()
        covariance = torch.cov(features.T)
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return cls(features.mean(0), root, covariance.trace().clamp(min=1e-12))

    def distance(self, features: Tensor) -> Tensor:
        """The Frechet distance of features (n, D) in units of the trace, (); 1 if all are m'."""
        features = features.double()
        off = features - features.mean(0)
        scaled = off / math.sqrt(len(off) - 1)
        overlap = torch.linalg.matrix_norm(scaled @ self.root, "nuc")
        away = (features.mean(0) - self.mean).square().sum()
        return (away + scaled.square().sum() + self.trace - 2 * overlap) / self.trace


@dataclass(frozen=True)
class MomentMatching:
    """An objective of a `FlowMap` for the end of its training, see the module.

    features: of samples. laws: of the data in each of them. counts: steps of the samples, one of
    these an update. batch: samples an update, of every process.
    """

    measures: ClassVar[str] = "rate"
    features: Features
    laws: tuple[Law, ...]
    counts: tuple[int, ...] = (1, 1, 2, 4)
    batch: int = 512

    @classmethod
    def towards(
        cls, features: Features, real: Iterable[Tensor], counts: tuple[int, ...], batch: int
    ) -> MomentMatching:
        """Towards the law of real items, given in batches (B, ...)."""
        with torch.no_grad():
            found = zip(*(features(x) for x in real), strict=True)
            laws = tuple(Law.of(torch.cat(parts).cpu()) for parts in found)
        return cls(features, laws, counts, batch)

    def trivial(self, model: FlowMap, t: Tensor, data_std: float) -> Tensor:
        """Of samples that are all alike, like t."""
        return torch.ones_like(t)

    def draw_times(self, model: FlowMap, n: int, device: torch.device | str) -> Tensor:
        """n times (n,): samples begin as noise."""
        return torch.full((n,), float(model.sde.t_max), device=device)

    def __call__(
        self, model: FlowMap, x0: Tensor, t: Tensor, eps: Tensor, **condition: Any
    ) -> LossTerms:
        """The distance of a batch of samples, the same for each x0 (B, ...), whose rows alone tell
        how many of a batch these are, and what the network is told."""
        count = self.counts[int(torch.randint(len(self.counts), ()))]
        rows = torch.arange(self.batch, device=x0.device) % len(x0)
        told = {name: value[rows] for name, value in condition.items()}
        features = self.features(self._sample(model, x0, count, told))
        pairs = zip(self.laws, features, strict=True)
        distances = torch.stack([law.distance(part.cpu()) for law, part in pairs])
        loss = distances.mean().to(x0.device, x0.dtype).expand(len(x0))
        return LossTerms(loss, t, loss.detach())

    def _sample(self, model: FlowMap, x0: Tensor, count: int, told: dict[str, Any]) -> Tensor:
        """Samples of so many steps, with the gradient of the last one."""
        sde, std = model.sde, model.data_std
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
        first, last = angle(sde, ends, std)
        thetas = first + (last - first) * torch.arange(count, 0, -1) / count
        times = time_of_angle(sde, thetas, std).clamp(max=sde.t_max).to(x0.device)
        x = torch.randn(self.batch, *x0.shape[1:], device=x0.device, dtype=x0.dtype)
        x = x * sde.prior_std()
        with torch.no_grad():
            for t, s in zip(times[:-1], times[1:], strict=True):
                x = model.jump(x, t, s, **told)
        return model.jump(x, times[-1], torch.zeros_like(times[-1]), **told)
