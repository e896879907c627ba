"""What a method of sampling is: a `Predictor` with a step, moving along a `Trajectory`.

A predictor of yours needs a `step` and nothing else; nothing is registered.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from score_sde.checks import UserError, require
from score_sde.ode.multistep import History
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, check_like

Numbers = TypeVar("Numbers")
"""What a method prepares for one step: a named tuple, or None."""


@dataclass
class Trajectory:
    """One run of the loop over one batch, as a method sees it.

    noise: `noise()` is a fresh standard normal state (B, ...) for the step that the loop is at,
        reproducible by seed; `noise(which)` is one for the samples in these places (n,), who draw
        from streams of their own. A method whose samples go their own ways takes the score of
        some of them by `scores.take`.
    history: what a multistep method remembers of earlier steps. The loop tells it when a hook has
        replaced the state.
    """

    sde: SDE
    score: ScoreFn
    noise: Callable[..., Tensor]
    history: History = field(default_factory=History)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], like x."""
        return self.sde.denoise(x, t, self.score)


class Predictor(abc.ABC, Generic[Numbers]):
    """A method that carries a state from time t to an earlier time s.

    evaluations: of the score, per step; 0 if they adapt. A budget ``nfe`` is divided by it.
    order: of convergence, None if it is not an ODE method. linear: whether a linear score makes its
    result linear in start and noise. default_steps, default_grid: when none are given; a grid of
    None is the process's own. ends_at_data: the last step ends at x_0: nothing is left to denoise.
    """

    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    order: ClassVar[int | None] = None
    linear: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    default_grid: ClassVar[str | None] = None
    ends_at_data: ClassVar[bool] = False

    @property
    def claimed_order(self) -> int | None:
        """The order of convergence that `verify` measures, as configured."""
        return self.order

    def prepare(self, sde: SDE, times: Tensor) -> Sequence[Numbers]:
        """What each step needs of process and grid, once for all of them and in float64.

        One entry for each interval of ``times`` (N + 1,). A method that prepares nothing has a
        ``step`` without the last argument.
        """
        return [None] * (len(times) - 1)  # type: ignore[list-item]

    @abc.abstractmethod
    def step(self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor, numbers: Numbers) -> Tensor:
        """x_s from x_t (B, ...); s < t are float64 tensors of shape ()."""


def prepared(method: Predictor[Any], sde: SDE, times: Tensor) -> list[Any]:
    """What a method prepares for each step; UserError unless its `step` can be called with it."""
    name, found = type(method).__name__, method.prepare(sde, times)
    try:
        rows = list(found)
    except TypeError:
        rows = []
    steps = len(times) - 1
    require(
        len(rows) == steps,
        f"{name}.prepare must return an entry for each of {steps} steps (got {len(rows)}).",
    )
    words = ["run", "x", "t", "s"] + ["numbers"] * any(row is not None for row in rows[:1])
    try:
        inspect.signature(method.step).bind(*words)
    except TypeError as error:
        what = "nothing is prepared" if len(words) == 4 else "prepare returns the last of these"
        raise UserError(
            f"{name}.step is called as step({', '.join(words)}), as {what}: {error}."
        ) from None
    return rows


def advance(
    method: Predictor[Any], run: Trajectory, x: Tensor, t: Tensor, s: Tensor, numbers: Any
) -> Tensor:
    """One step, with what was prepared for it if anything was; UserError if it is not like x."""
    more = () if numbers is None else (numbers,)
    moved = method.step(run, x, t, s, *more)
    check_like(moved, x, f"what {type(method).__name__}.step returns", dtype=False)
    return moved
