r"""Methods that remember earlier evaluations: order p for one evaluation a step.

One class, `Multistep`, in the coordinates of `frames`: predict with the last p evaluations
(Adams-Bashforth), and, when it corrects, redo the last step once its end has been evaluated
(Adams-Moulton through one point more, with the evaluation at the predicted point, "PEC": still one
evaluation a step, and one order more). The named methods below are settings of it:

    DPM-Solver++(pM)   x0 in lambda (2211.01095)     UniPC-p    the same, corrected (2302.04867)
    DPM-Solver-p       eps in lambda (2206.00927)    LMS        eps in sigma
    DEIS (tAB-p)       eps in t (2204.13902)         iPNDM      LMS with constant weights
    Adams              F in theta, corrected

Weights are exact integrals of the interpolating polynomial, so order 3 is third order (the
published DPM-Solver++(3M) lacks a factor 2 in its last term and is second). The first steps have
few values to go by. From order 3 on (without noise) they are therefore not added up: each goes
again from the start, by the polynomial through all values so far, which costs no evaluation and
keeps the order.

**Adams.** The flow of Gaussian data with standard deviation sd is z = const in the F frame, and
dz/dtheta = -F for any data, with theta from pi/2 (noise) to 0 (data). F is bounded, and close to
constant in theta both where noise and where data dominate, so a polynomial through few values
carries far. Its grid is uniform in log((s + k)/(1 + s/c)) with c = 5 sd and k = sd/100:
uniform in log s around the data's scale, and saturating on both sides, where little happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from score_sde.checks import NonNegative, Positive, UserError, validated
from score_sde.ode import frames
from score_sde.ode.multistep import StepWeights, step_weights
from score_sde.processes.sdes import SDE
from score_sde.sampling.method import Predictor, Trajectory

# Adams-Bashforth of orders 1 to 4 for equal steps, latest value first.
EQUAL_STEPS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class MultistepNumbers(NamedTuple):
    """Of one step: base = ratio x + noise z, P = on_x x + on_score score, x_s = base + sum w P."""

    ratio: float
    noise: float
    on_x: float
    on_score: float
    weights: StepWeights


Order = Annotated[int, Field(ge=0, le=6)]
"""1 to 6, or 0 for automatic."""


@validated("sampling.options")
@dataclass(frozen=True)
class Multistep(Predictor[MultistepNumbers]):
    """Exponential Adams methods in any frame.

    prediction, variable: see `frames`. order: of the predictor, the evaluations it uses, 1 to 6.
    corrector: redo each step with the evaluation at its end, which adds one to the order.
    eta: strength of the noise, for x0 only. data_std: standard deviation of x_0, for F only.
    """

    prediction: frames.Prediction = "x0"
    variable: frames.Variable = "lambda"
    order: Order = 2  # type: ignore[misc]
    corrector: bool = False
    eta: NonNegative = 0.0
    data_std: Positive | None = None
    stochastic: ClassVar[bool] = False
    default_steps: ClassVar[int] = 25
    default_grid: ClassVar[str | None] = "logsnr"

    def __post_init__(self) -> None:
        if self.eta > 0 and self.prediction != "x0":
            raise UserError(f"eta > 0 needs prediction=x0 (got {self.prediction}).")

    @property
    def claimed_order(self) -> int:
        return (self.order or 4) + self.corrector

    def _order(self, steps: int) -> int:
        return self.order or (4 if steps >= 30 else 3)

    def _starting_steps(self, order: int) -> int:
        """How many steps begin at the start, not at the one before."""
        return order if order > 2 and self.eta == 0 else 0

    def prepare(self, sde: SDE, times: Tensor) -> list[MultistepNumbers]:
        needs_std = self.prediction == "F" or self.variable == "theta"
        sd = frames.check_positive("data_std", self.data_std) if needs_std else 1.0
        lam, steps = frames.half_log_snr(sde, times), len(times) - 1
        scale = frames.scale(sde, times, self.prediction, sd)
        kept, noise = frames.noise_std(sde, times[:-1], times[1:], self.eta)
        on_x, on_score = frames.predict(sde, times[:-1], self.prediction, sd)
        columns = (scale[1:] / scale[:-1] * kept, noise, on_x, on_score)

        def integral(index: Tensor, start: Tensor, end: Tensor, nodes: Tensor) -> Tensor:
            w = frames.weights(
                sde, lam[start], lam[end], lam[nodes], self.prediction, self.variable, sd, self.eta
            )
            return w * scale[end, None]

        order = self._order(steps)
        weights = step_weights(steps, order, self.corrector, self._starting_steps(order), integral)
        return [
            MultistepNumbers(*row)
            for row in zip(*(column.tolist() for column in columns), weights, strict=True)
        ]

    def step(
        self, run: Trajectory, x: Tensor, t: Tensor, s: Tensor, numbers: MultistepNumbers
    ) -> Tensor:
        score, history = run.score(x, t), run.history
        on_x, on_score = numbers.on_x, numbers.on_score
        value = score.mul(on_score) if on_x == 0 else torch.add(x * on_x, score, alpha=on_score)
        x = history.evaluated(x, value, most=self._order(30) + 1)
        base = history.begin(x) * numbers.ratio
        if numbers.noise > 0:
            base = base.add_(run.noise(), alpha=numbers.noise)
        return history.predict(base, numbers.weights)


@validated("sampling.options")
@dataclass(frozen=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++(2M): x0 in lambda, second order (2211.01095)."""

    default_grid: ClassVar[str | None] = "karras"


@validated("sampling.options")
@dataclass(frozen=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++(3M) with the exact third order."""

    order: Order = 3  # type: ignore[misc]


@validated("sampling.options")
@dataclass(frozen=True)
class SDEDPMSolverPP2M(Multistep):
    """SDE-DPM-Solver++(2M): the same for the reverse SDE (2211.01095, section 5).

    data_std: if given, the grid is saturating, which is the more accurate.
    """

    eta: NonNegative = 1.0
    stochastic: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50

    @property
    def default_grid(self) -> str:  # type: ignore[override]
        return "saturating" if self.data_std else "logsnr"


@validated("sampling.options")
@dataclass(frozen=True)
class SDEDPMSolverPP3M(SDEDPMSolverPP2M):
    """SDE-DPM-Solver++(3M): with three evaluations."""

    order: Order = 3  # type: ignore[misc]


@validated("sampling.options")
@dataclass(frozen=True)
class ExponentialSDE(SDEDPMSolverPP2M):
    """The exponential (Ito) integrator: x0 held constant over a step of the reverse SDE."""

    order: Order = 1  # type: ignore[misc]


@validated("sampling.options")
@dataclass(frozen=True)
class DPMSolverM(Multistep):
    """DPM-Solver, multistep: eps in lambda (2206.00927)."""

    prediction: frames.Prediction = "eps"
    order: Order = 3  # type: ignore[misc]


@validated("sampling.options")
@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC: x0 in lambda with the corrector (2302.04867).

    variant: "exact" weights, or "bh1" (B(h) = h) or "bh2" (B(h) = e^h - 1) as published: from
        three nodes on B(h) cancels, with two the slope counts B(h)/2.
    """

    order: Order = 3  # type: ignore[misc]
    corrector: bool = True
    variant: Literal["exact", "bh1", "bh2"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant != "exact" and (self.prediction, self.variable) != ("x0", "lambda"):
            raise UserError(f"variant={self.variant} is for prediction=x0 in variable=lambda.")

    def _starting_steps(self, order: int) -> int:
        return super()._starting_steps(order) if self.variant == "exact" else 0

    def prepare(self, sde: SDE, times: Tensor) -> list[MultistepNumbers]:
        numbers = super().prepare(sde, times)
        if self.variant == "exact":
            return numbers
        h = frames.half_log_snr(sde, times).diff()
        half = 0.5 * sde.alpha(times[1:]) * (h if self.variant == "bh1" else -torch.expm1(-h))
        ahead = (half * h / torch.cat([h[:1], h[:-1]])).tolist()
        return [
            row._replace(weights=self._published(row.weights, slope, behind))
            for row, slope, behind in zip(numbers, ahead, half.tolist(), strict=True)
        ]

    def _published(self, w: StepWeights, ahead: float, back: float) -> StepWeights:
        """The weights with B(h)/2 on the slope where there are two nodes, else as they are."""
        if len(w.ahead) == 2:
            total = sum(w.ahead)
            w = w._replace(ahead=[total + ahead, total - (total + ahead)])
        if w.back is not None and len(w.back) == 2:
            w = w._replace(back=[back, sum(w.back) - back])
        return w


@validated("sampling.options")
@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep: eps in sigma, Adams-Bashforth of order 4 with exact weights."""

    prediction: frames.Prediction = "eps"
    variable: frames.Variable = "sigma"
    order: Order = 4  # type: ignore[misc]


@validated("sampling.options")
@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM: eps in sigma, Adams-Bashforth with the weights of equal steps (2204.13902, app. B).

    On a smooth grid whose steps are not equal it is second order, whatever its `order`.
    """

    prediction: frames.Prediction = "eps"
    variable: frames.Variable = "sigma"
    order: Order = 4  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.order <= 4 or self.corrector:
            raise UserError(f"order must lie in 1..4, without corrector (got {self.order}).")

    @property
    def claimed_order(self) -> int:
        return min(self.order, 2)

    def prepare(self, sde: SDE, times: Tensor) -> list[MultistepNumbers]:
        numbers = super().prepare(sde, times)
        level = sde.sigma(times) / sde.alpha(times)
        steps = (sde.alpha(times[1:]) * level.diff()).tolist()
        return [
            row._replace(weights=StepWeights(self._equal(len(row.weights.ahead), h), None, False))
            for row, h in zip(numbers, steps, strict=True)
        ]

    def _equal(self, points: int, h: float) -> list[float]:
        """The weights of equal steps h."""
        return [h * weight for weight in EQUAL_STEPS[points]]


@validated("sampling.options")
@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS (tAB): eps in t, with exact weights (2204.13902)."""

    prediction: frames.Prediction = "eps"
    variable: frames.Variable = "time"
    order: Order = 3  # type: ignore[misc]


@validated("sampling.options")
@dataclass(frozen=True)
class Adams(Multistep):
    """Ours: F in theta with the corrector, for few evaluations (see the module).

    order: 0 is 3, or 4 from 30 steps on. data_std: standard deviation of x_0; a run knows it.
    """

    prediction: frames.Prediction = "F"
    variable: frames.Variable = "theta"
    order: Order = 0  # type: ignore[misc]
    corrector: bool = True
    default_steps: ClassVar[int] = 20
    default_grid: ClassVar[str | None] = "saturating"
