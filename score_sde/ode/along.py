r"""The change of log p along any path, by what is known at its nodes.

Along a path z(u) through a flow dz/du = f that changes log p at the rate q = -tr(df/dz),

    d log p(z(u)) / du = q + (dz/du - f) . grad log p(z(u)),

whatever the path is: a solver's states need not lie on one solution of the flow for their density
to be known, where the gradient is, as it is of a score. A step over h of a solver therefore adds

    int q + (dz - int f) . (1/h) int grad log p,

its integrals by the polynomial through the values at nodes on both sides of it, which the solver
itself, going from step to step, did not have. The second term is the step's defect times what it
costs: the error of the solver taken back (as by an adjoint, Pierce and Giles 2000,
doi 10.1137/S0036144598349423, which here needs no solution of its own), but for what is smaller by
the square of the step, and for the error of the integrals.

For a network whose score is not quite the gradient of its flow's density, that term is wrong by as
much as they differ, times a defect that is small; without it, all of it would be missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.ode.multistep import combine, weights

NEAR, LESS = 6, 4  # nodes that an integral over one step is made of


class Node(NamedTuple):
    """A state z (B, D) of a path, with f and the gradient of log p there, and q (B, K)."""

    state: Tensor
    flow: Tensor
    gradient: Tensor
    rate: Tensor


class Along:
    """The change of log p over the nodes u (N + 1,) of a path that is walked once.

    near: how many nodes each integral is made of; no more are kept.
    """

    def __init__(self, nodes: Tensor, near: int = NEAR):
        self.steps = len(nodes) - 1
        self.near = min(near, self.steps + 1)
        first = torch.arange(self.steps) - (self.near - 2) // 2
        first = first.clamp(0, self.steps + 1 - self.near)
        around = first[:, None] + torch.arange(self.near)
        self.first: list[int] = first.tolist()
        self.weights: list[list[float]] = weights(nodes[:-1], nodes[1:], nodes[around]).tolist()
        self.held: deque[Node] = deque(maxlen=self.near)
        self.walked, self.done = 0, 0
        self.change = torch.zeros(())

    def visit(self, node: Node) -> None:
        """The path has come to its next node."""
        self.held.append(node)
        self.walked += 1
        oldest = self.walked - self.near
        while self.done < self.steps and self.first[self.done] == oldest:
            self.change = self.change + self._step(self.done - oldest, self.weights[self.done])
            self.done += 1

    def _step(self, at: int, w: Sequence[float]) -> Tensor:
        """What the step from the node held at a place to the next one adds, (B, K)."""
        _, *columns = zip(*self.held, strict=True)
        flow, gradient, rate = (
            combine(torch.zeros_like(values[0]), values, w) for values in columns
        )
        defect = self.held[at + 1].state - self.held[at].state - flow
        return rate + (defect * gradient).sum(1, keepdim=True) / sum(w)
