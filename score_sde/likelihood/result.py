"""What `log_likelihood` returns: numbers, their errors and units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from score_sde.checks import UserError, checked


@dataclass(frozen=True, repr=False)
class Likelihood:
    """Log-likelihoods, what they are worth, and how they were found.

    nats: log p(x), (B,) float64. stderr: their standard error over probes, (B,); 0 for the exact
    divergence, nan for one probe. latent: x_T, like x. nfe: evaluations of the score per sample.
    solver_error, truncation_error: estimates in nats, (B,), of what the solver and the start at
    t_min make of it; see `log_likelihood`. advice: a t_min that does better, where this one does
    not do. levels, scale: of the data, where they are discrete. settings: everything that the
    numbers depend on. told_by: how many samples told the size of the errors by finer solutions.
    """

    nats: Tensor
    stderr: Tensor
    latent: Tensor
    nfe: int
    solver_error: Tensor
    truncation_error: Tensor
    settings: dict[str, Any]
    advice: str | None = None
    levels: int | None = None
    scale: float = 1.0
    told_by: int = 0

    @property
    def error(self) -> Tensor:
        """What is not noise: solver and truncation together, (B,), in nats."""
        return (self.solver_error.square() + self.truncation_error.square()).sqrt()

    @property
    def offset(self) -> float:
        """Bits per dimension between the density of x and the probability of its level.

        A level is scale/levels wide: log2(levels) - log2(scale), 8 for 256 levels on [0, 1] and 7
        on [-1, 1].
        """
        if self.levels is None:
            raise UserError(
                "bits/dim needs discrete levels; this data has none (levels is None). Use .nats."
            )
        return math.log2(self.levels / self.scale)

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 p(x) / D + offset, (B,). UserError for data without levels."""
        return -self.nats / (math.log(2) * self.latent[0].numel()) + self.offset

    @property
    def mean(self) -> float:
        """Mean of nats over the samples."""
        return float(self.nats.mean())

    @checked
    def interval(self, level: Annotated[float, Field(gt=0, lt=1)] = 0.95) -> tuple[Tensor, Tensor]:
        """Interval of nats that should hold log p(x) with this probability.

        Of solver and truncation by Student's t of 1 + n/2 degrees, n being how many samples told
        their size: errors have heavier tails than a normal's, so that each tells less of the
        others. Of the noise of the probes by one of probes - 1, and up to half as many again from
        other samples. Where a sample's own error is small by chance (four probes of two signs
        agree in one of eight in the plane) those of the others count as much.
        """
        from scipy.stats import t as student

        each = self.solver_error.square()
        known = (0.5 * (each + each.nanmean()) + self.truncation_error.square()).sqrt()
        degrees = 1 + max(self.told_by, 2) / 2
        half = float(student.ppf(0.5 + level / 2, degrees)) * known
        probes = self.settings["probes"]
        if probes is not None:
            if probes < 2:
                raise UserError("one probe has no interval; take probes >= 2.")
            own = self.stderr.square()
            degrees = (probes - 1) * (1.5 - 0.5 / len(own))
            factor = float(student.ppf(0.5 + level / 2, degrees))
            half = (half.square() + factor**2 * 0.5 * (own + own.mean())).sqrt()
        return self.nats - half, self.nats + half

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        unit, values = "nats", self.nats
        if self.levels is not None:
            unit, values = "bits/dim", self.bits_per_dim
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        error = ""  # one sample says nothing of the spread of others
        if len(values) > 1:
            error = f" +- {float(values.std() / math.sqrt(len(values))):.4f}"
        return (
            f"{float(values.mean()):.4f}{error} {unit} over {len(values)} "
            f"sample{'s'[: len(values) != 1]}; NFE {self.nfe}, solver error "
            f"{float(self.solver_error.nanmean()):.1g} and truncation error "
            f"{float(self.truncation_error.nanmean()):.1g} nats; {settings}"
            + (f"\n{self.advice}" if self.advice else "")
        )
