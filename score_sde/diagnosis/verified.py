"""What `verify` found of a sampler: a row a number of steps, the orders, as a table and JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

from score_sde.diagnosis.ends import Ends


@dataclass(frozen=True)
class VerifyRow:
    """What one number of steps gives; None where a figure does not apply.

    error_rms, error_median: endpoint error over samples and coordinates, and the median of the
    samples' own rms, in units of the data's std. w2: W_2 of the law around its mean, that is of
    data with mean 0. mean_bias: |m - mu| of data with its mean, so that W_2 in full is
    hypot(w2, mean_bias); both relative to sqrt(sum_d target variance). std_bias: sum of the stds
    over that of the target, less 1; negative when samples are too narrow. w2_stderr: 0 for a
    propagated law, the standard error of a Monte Carlo one.
    """

    steps: int
    nfe: int
    error_rms: float | None
    error_median: float | None
    w2: float | None
    mean_bias: float | None
    std_bias: float | None
    w2_stderr: float | None


@dataclass(frozen=True)
class VerifyReport:
    """Accuracy of one method on one process; `print` it, or take `to_dict()`.

    claimed_order: what the method says of itself. observed_order: slope of log error_rms over
    log steps (deterministic methods). weak_order: the same of w2 (stochastic ones), down to the
    floor that the prior's mismatch leaves. law: how the law of the result was found. ends: what
    stopping at t_min and the prior at t_max make of the law, of which no solver knows; the rows'
    w2 holds the prior's part, and that of t_min if samples were denoised.
    """

    process: str
    method: str
    settings: dict[str, Any]
    claimed_order: float | None
    observed_order: float | None
    weak_order: float | None
    law: str
    ends: Ends
    rows: tuple[VerifyRow, ...]

    @property
    def passed(self) -> bool | None:
        """Is the observed order at least the claimed one, less 0.15? None: nothing to compare."""
        if self.claimed_order is None or self.observed_order is None:
            return None
        return self.observed_order >= self.claimed_order - 0.15

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        names = [f.name for f in dataclasses.fields(VerifyRow)]
        table = [names] + [[_text(getattr(row, name)) for name in names] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.rjust, cells, widths)) for cells in table]
        verdict = {True: "as claimed", False: "BELOW ITS CLAIM", None: "no claim tested"}
        orders = (self.claimed_order, self.observed_order, self.weak_order)
        claimed, observed, weak = (_text(order) for order in orders)
        return "\n".join(
            [
                f"{self.method} on {self.process}: {settings}",
                f"order claimed {claimed}, observed {observed}, weak {weak}: "
                f"{verdict[self.passed]}; law: {self.law}",
                str(self.ends),
                *lines,
            ]
        )

    def curve(self, name: str = "error_rms") -> tuple[list[int], list[float]]:
        """(evaluations, figures) of the rows that have this figure, for `plot_convergence`."""
        known = [(row.nfe, getattr(row, name)) for row in self.rows if getattr(row, name)]
        return [nfe for nfe, _ in known], [value for _, value in known]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dictionaries; "nan" and "inf" as strings, for strict JSON."""
        found = dataclasses.asdict(self) | {"ends": self.ends._asdict(), "passed": self.passed}
        return cast(dict[str, Any], _plain(found))


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
