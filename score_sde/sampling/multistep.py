r"""Methods that remember earlier evaluations: order p for one evaluation a step.

One class, `Multistep`, in the coordinates of `frames`: predict with the last p evaluations
(Adams-Bashforth), and, when it corrects, redo the last step once its end has been evaluated
(Adams-Moulton through one point more, with the evaluation at the predicted point, "PEC": still one
evaluation a step, and one order more). The named methods below are settings of it:

    DPM-Solver++(pM)   x0 in lambda (2211.01095)     UniPC-p    the same, corrected (2302.04867)
    DPM-Solver-p       eps in lambda (2206.00927)    LMS        eps in sigma
    DEIS (tAB-p)       eps in t (2204.13902)         Adams      F in theta, corrected

Weights are exact integrals of the interpolating polynomial, so order 3 is third order (the
published DPM-Solver++(3M) lacks a factor 2 in its last term and is second).

**Adams.** The flow of Gaussian data with standard deviation sd is z = const in the F frame, and
dz/dtheta = -F for any data, with theta from pi/2 (noise) to 0 (data). F is bounded, and close to
constant in theta both where noise and where data dominate, so a polynomial through few values
carries far. Its grid is uniform in log(s/(1 + s/c)) with c = 5 sd: uniform in log s near the
data and saturating above it, where nothing happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.sampling import frames
from score_sde.sampling.predictors import Predictor, check_choice, check_eta, rows


@dataclass(frozen=True)
class Multistep(Predictor):
    """Exponential Adams methods in any frame.

    prediction, variable: see `frames`. order: of the predictor, the evaluations it uses, 1 to 6.
    corrector: redo each step with the evaluation at its end, which adds one to the order.
    eta: strength of the noise, for x0 only. data_std: standard deviation of x_0, for F only.
    """

    prediction: str = "x0"
    variable: str = "lambda"
    order: int = 2  # type: ignore[misc]
    corrector: bool = False
    eta: float = 0.0
    data_std: float | None = None
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 25
    default_grid: ClassVar[str | None] = "logsnr"

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, frames.PREDICTIONS)
        check_choice("variable", self.variable, frames.VARIABLES)
        check_eta(self.eta)
        if not 0 <= self.order <= 6:
            raise ValueError(f"order must lie in 1..6, or 0 for automatic (got {self.order}).")
        if self.eta > 0 and self.prediction != "x0":
            raise ValueError(f"eta > 0 needs prediction=x0 (got {self.prediction}).")

    @property
    def claimed_order(self) -> int:
        return (self.order or 3) + self.corrector

    def _order(self, steps: int) -> int:
        return self.order or (4 if steps >= 30 else 3)

    def prepare(self, sde, times):
        needs_std = self.prediction == "F" or self.variable == "theta"
        sd = frames.check_positive("data_std", self.data_std) if needs_std else 1.0
        lam = frames.half_log_snr(sde, times)
        t, s = times[:-1], times[1:]
        n = len(t)
        kept, noise = frames.noise_std(sde, t, s, self.eta)
        scale = frames.scale(sde, times, self.prediction, sd)
        p, q = frames.predict(sde, t, self.prediction, sd)
        ratio = scale[1:] / scale[:-1] * kept
        numbers = rows(ratio, p, q, noise)
        order = self._order(n)

        def all_weights(ahead: int, points: int) -> list[list[float]]:
            """Weights of step i on the values at nodes i + ahead, i + ahead - 1, ..."""
            table: list[list[float]] = [[] for _ in range(n)]
            for count in range(1, points + 1):
                # Early steps have fewer nodes behind them; all later ones use every point.
                first, last = count - 1 - ahead, n if count == points else count - ahead
                index = torch.arange(n)[max(first, 0) : last]
                if not len(index):
                    continue
                nodes = torch.stack([lam[index + ahead - j] for j in range(count)], 1)
                w = frames.weights(
                    sde, lam[index], lam[index + 1], nodes, self.prediction, self.variable, sd,
                    self.eta,
                )  # fmt: skip
                for i, row in zip(index.tolist(), w * scale[index + 1, None], strict=True):
                    table[i] = row.tolist()
            return table

        ahead = all_weights(0, order)
        back = all_weights(1, order + 1) if self.corrector else [None] * n
        return [(*row, ahead[i], back[i]) for i, row in enumerate(numbers)]

    def step(self, run, x, t, s, ratio, p, q, noise, ahead, back):
        memory = run.memory
        score = run.score(x, t)
        value = score.mul(q) if p == 0 else torch.add(x * p, score, alpha=q)
        values: list[Tensor] = [value, *memory.get("values", ())]
        if memory.get("back") is not None and x is memory["x"]:
            x = _combine(memory["start"], values, memory["back"])
            if memory["drawn"] is not None:
                x = x + memory["drawn"]
        start = x * ratio
        x = _combine(start, values, ahead)
        drawn = run.noise() * noise if noise > 0 else None
        if drawn is not None:
            x = x.add_(drawn)
        memory.update(values=values[: self._order(30)], start=start, back=back, drawn=drawn, x=x)
        return x


def _combine(start: Tensor, values: list[Tensor], weights: list[float]) -> Tensor:
    """start + sum_j weights[j] values[j], a new tensor."""
    x = torch.add(start, values[0], alpha=weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=False):
        x.add_(value, alpha=weight)
    return x


@dataclass(frozen=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++(2M): x0 in lambda, second order (2211.01095)."""

    default_grid: ClassVar[str | None] = "karras"


@dataclass(frozen=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++(3M) with the exact third order."""

    order: int = 3  # type: ignore[misc]


@dataclass(frozen=True)
class SDEDPMSolverPP2M(Multistep):
    """SDE-DPM-Solver++(2M): the same for the reverse SDE (2211.01095, section 5).

    data_std: if given, the grid is saturating, which is the more accurate.
    """

    eta: float = 1.0
    stochastic: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50

    @property
    def default_grid(self) -> str:  # type: ignore[override]
        return "saturating" if self.data_std else "logsnr"


@dataclass(frozen=True)
class SDEDPMSolverPP3M(SDEDPMSolverPP2M):
    """SDE-DPM-Solver++(3M): with three evaluations."""

    order: int = 3  # type: ignore[misc]


@dataclass(frozen=True)
class ExponentialSDE(SDEDPMSolverPP2M):
    """The exponential (Ito) integrator: x0 held constant over a step of the reverse SDE."""

    order: int = 1  # type: ignore[misc]


@dataclass(frozen=True)
class DPMSolverM(Multistep):
    """DPM-Solver, multistep: eps in lambda (2206.00927)."""

    prediction: str = "eps"
    order: int = 3  # type: ignore[misc]


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC: x0 in lambda with the corrector (2302.04867); its B(h) cancel in exact weights."""

    order: int = 3  # type: ignore[misc]
    corrector: bool = True


@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep: eps in sigma, Adams-Bashforth of order 4 with exact weights."""

    prediction: str = "eps"
    variable: str = "sigma"
    order: int = 4  # type: ignore[misc]


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS (tAB): eps in t, with exact weights (2204.13902)."""

    prediction: str = "eps"
    variable: str = "time"
    order: int = 3  # type: ignore[misc]


@dataclass(frozen=True)
class Adams(Multistep):
    """Ours: F in theta with the corrector, for few evaluations (see the module).

    order: 0 is 3, or 4 from 30 steps on. data_std: standard deviation of x_0; a run knows it.
    """

    prediction: str = "F"
    variable: str = "theta"
    order: int = 0  # type: ignore[misc]
    corrector: bool = True
    default_steps: ClassVar[int] = 20
    default_grid: ClassVar[str | None] = "saturating"
