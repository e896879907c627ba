r"""Adams' methods: order p for one evaluation a step, by remembering the earlier ones.

For an integral z_s = z_t + int P kernel, known at nodes in a variable v, the weights

    w_j = int_t^s l_j(v) kernel du,    l_j the polynomial that is 1 at node j, 0 at the others

are exact for every P that is a polynomial in v through the nodes. A step then is

    predict    z' = z + sum_j w_j P_j    with the last p values    (Adams-Bashforth)
    evaluate   P at z'
    correct    z <- z + sum_j w_j P_j    with these p + 1 values   (Adams-Moulton)

("PEC"; Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, III.1): one
evaluation a step, and order p + 1. The first steps have few values to go by. They are therefore
not added up: each goes again from the start, by the polynomial through all values so far, which
costs no evaluation and keeps the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(32))
Function = Callable[[Tensor], Tensor]
"""A function of the time of integration u, elementwise."""


def weights(
    start: Tensor,
    end: Tensor,
    nodes: Tensor,
    kernel: Function = torch.ones_like,
    variable: Function = torch.clone,
) -> Tensor:
    """w_j = int_start^end l_j(v(u)) kernel(u) du for start, end (N,) and nodes (N, n), all in u.

    Gauss-Legendre of 32 points; float64 (N, n).
    """
    half = 0.5 * (end - start)[:, None]
    u = 0.5 * (end + start)[:, None] + half * _NODES
    measure = half * _WEIGHTS * kernel(u)
    v, at = variable(u), variable(nodes)
    columns = []
    for j in range(nodes.shape[1]):
        basis = torch.ones_like(v)
        for m in range(nodes.shape[1]):
            if m != j:
                basis = basis * (v - at[:, m : m + 1]) / (at[:, j : j + 1] - at[:, m : m + 1])
        columns.append((measure * basis).sum(1))
    return torch.stack(columns, 1)


class StepWeights(NamedTuple):
    """Of one step, on the values at its nodes, newest first.

    ahead: of the predictor. back: of the corrector, whose first value is that at the step's end;
    None without one. begins_anew: whether the next step begins where this one began.
    """

    ahead: list[float]
    back: list[float] | None
    begins_anew: bool


Integral = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Weights (N, n) of the steps (N,) from start (N,) to end (N,), all given by their index of u."""


def step_weights(
    steps: int, order: int, corrector: bool, from_start: int, integral: Integral
) -> list[StepWeights]:
    """The weights of all steps of a method of this order, given the integrals between nodes.

    from_start: how many steps begin at the very start, see the module. integral: called with
    integer tensors: index of the step (N,), of its start, of its end, and of its nodes (N, n).
    """

    def table(newest: int, points: int) -> list[list[float]]:
        """Weights of step i on the values at nodes i + newest, i + newest - 1, ..."""
        rows: list[list[float]] = [[] for _ in range(steps)]
        for count in range(1, points + 1):
            # Early steps have fewer nodes behind them; all later ones use every point.
            first, last = count - 1 - newest, steps if count == points else count - newest
            index = torch.arange(steps)[max(first, 0) : last]
            if not len(index):
                continue
            nodes = torch.stack([index + newest - j for j in range(count)], 1)
            start = torch.where(index < from_start, 0, index)
            for i, row in zip(
                index.tolist(), integral(index, start, index + 1, nodes), strict=True
            ):
                rows[i] = row.tolist()
        return rows

    ahead = table(0, order)
    back = table(1, order + 1) if corrector else [None] * steps
    return [StepWeights(ahead[i], back[i], begins_anew=i < from_start - 1) for i in range(steps)]


def combine(start: Tensor, values: Sequence[Tensor], w: Sequence[float]) -> Tensor:
    """start + sum_j w_j values_j, a new tensor."""
    x = torch.add(start, values[0], alpha=w[0])
    for value, weight in zip(values[1:], w[1:], strict=False):
        if weight != 0:
            x.add_(value, alpha=weight)
    return x


@dataclass
class History:
    """What a multistep method remembers: earlier values, and how its last step was made.

    values: newest first. base, last: where the last step began, and its weights; None at the start
    and after somebody else has replaced the state, which that step then no longer leads to.
    """

    values: list[Tensor] = field(default_factory=list)
    base: Tensor | None = None
    last: StepWeights | None = None

    def interrupt(self) -> None:
        """The state was replaced: the last step cannot be corrected any more."""
        self.base = self.last = None

    def evaluated(self, x: Tensor, value: Tensor, most: int) -> Tensor:
        """The state x once P there is known: that of the corrector, or x itself."""
        self.values = [value, *self.values[: most - 1]]
        if self.base is None or self.last is None or self.last.back is None:
            return x
        return combine(self.base, self.values, self.last.back)

    def begin(self, x: Tensor) -> Tensor:
        """Where the next step begins: at x, or where the last one did."""
        if self.base is not None and self.last is not None and self.last.begins_anew:
            return self.base
        return x

    def predict(self, base: Tensor, step: StepWeights) -> Tensor:
        """The state at the end of a step that begins at ``base``, in its frame."""
        self.base, self.last = base, step
        return combine(base, self.values, step.ahead)


def integrate(
    slope: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    nodes: Tensor,
    order: int = 3,
    first: Tensor | None = None,
    again: int = 0,
    visit: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The state at the last node of dy/du = slope(y, u) that is ``state`` at the first.

    nodes: (N + 1,) float64, rising or falling. N + 1 evaluations, the last at the end itself; one
    less if the ``first`` slope is known, and one more for each of the first nodes (of the order, at
    most) that are evaluated ``again`` once they are corrected. visit: called with the u, state and
    slope of every node, as they were evaluated.
    """
    steps = len(nodes) - 1

    def integral(index: Tensor, start: Tensor, end: Tensor, at: Tensor) -> Tensor:
        return weights(nodes[start], nodes[end], nodes[at])

    table = step_weights(steps, order, True, order, integral)
    history = History()
    for i, u in enumerate(nodes.unbind()):
        value = first if i == 0 and first is not None else slope(state, u)
        asked, state = state, history.evaluated(state, value, most=order + 1)
        if 0 < i <= again:
            asked, value = state, slope(state, u)
            history.values.pop(0)
            state = history.evaluated(state, value, most=order + 1)
        if visit is not None:
            visit(u, asked, value)
        if i < steps:
            state = history.predict(history.begin(state), table[i])
    return state
