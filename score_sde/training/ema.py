"""Averages of the weights over training: what one samples from."""

from __future__ import annotations

import copy
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from score_sde import distributed
from score_sde.checks import Momentum, Positive, checked
from score_sde.training.sharding import local

Width = Annotated[float, Field(gt=0, lt=0.28)]  # sigma_rel of a power-function average


@checked
def power_of(sigma_rel: Width) -> float:
    """The exponent gamma of a power-function average of this relative width (2312.02696, eq. 126).

    sigma_rel is the standard deviation of the averaged window as a fraction of the run so far.
    """
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(np.max(roots.real))


def _weights(net: nn.Module) -> list[Tensor]:
    """What this process has of them: averages are divided over the processes as the network is."""
    return [local(p) for p in net.parameters()]


class EMA:
    """A running average of a network's weights, in a network of its own (`ema.net`).

    decay: exponential average, warmed up as min(decay, (1 + n)/(10 + n)) after n updates.
    halflife: the same by the number of updates after which a weight counts half.
    sigma_rel: instead, an average over a fixed fraction of the run so far (2312.02696), which
        needs no knowledge of its length.
    The trained weights are read, never written. The average is float32 whatever autocast does.
    """

    @checked("ema")
    def __init__(
        self,
        net: nn.Module,
        decay: Momentum = 0.9999,
        sigma_rel: Width | None = None,
        halflife: Positive | None = None,
    ):
        if halflife is not None:
            decay = 0.5 ** (1 / halflife)
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0
        self.power = None if sigma_rel is None else power_of(sigma_rel)

    def _decay(self) -> float:
        if self.power is not None:
            return (1 - 1 / self.updates) ** (self.power + 1)
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take the weights after one more step of training into the average.

        Raises RuntimeError if, at the first update, a tensor that moved did not move here.
        """
        self.updates += 1
        averaged, live = _weights(self.net), _weights(net)
        before = [p.clone() for p in averaged] if self.updates == 1 else []
        torch._foreach_lerp_(averaged, live, 1 - self._decay())
        for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)
        if before:
            self._check_followed(before, averaged, live)

    def _check_followed(self, old: list[Tensor], new: list[Tensor], live: list[Tensor]) -> None:
        moved = [not torch.equal(a, b) for a, b in zip(old, live, strict=True)]
        followed = [not torch.equal(a, b) for a, b in zip(old, new, strict=True)]
        missed = sum(m and not f for m, f in zip(moved, followed, strict=True))
        if missed:
            raise RuntimeError(
                f"EMA update matched {sum(followed)} of the {sum(moved)} tensors that moved."
            )

    def distance(self, net: nn.Module) -> float:
        """|averaged - live| / |live| over all weights: a lag that grows and grows is a fault.

        All processes call it.
        """
        averaged, live = _weights(self.net), _weights(net)
        with torch.no_grad():
            apart = torch.stack(torch._foreach_norm(torch._foreach_add(averaged, live, alpha=-1)))
            size = torch.stack(torch._foreach_norm(live))
            squares = torch.stack([apart, size]).double().square().sum(1).tolist()
            apart, size = torch.tensor(distributed.total(squares), dtype=torch.float64).sqrt()
            return float(apart / size)
