"""Why a model fails: the causes that its errors show, each with the evidence and the fix.

What is measured is in `denoising`, `readings` and `facts`; each check of `causes` looks at it for
one cause.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from score_sde.diagnosis.as_trained import again
from score_sde.diagnosis.causes import CHECKS, HIDES
from score_sde.diagnosis.classes import class_reading
from score_sde.diagnosis.denoising import EXACT_DIMS, Level, denoised, measure, noisy, times_of
from score_sde.diagnosis.ends import Ends
from score_sde.diagnosis.facts import facts_of
from score_sde.diagnosis.findings import Finding, Measured
from score_sde.diagnosis.ratios import Ratio, Slope, errors_of, mean_ratio, ratio
from score_sde.diagnosis.readings import readings
from score_sde.diagnosis.subject import Subject
from score_sde.noise import generator_of

COLUMNS = ("at", "model", "raw", "held_out", "trivial", "linear", "optimal", "calibration",
           "tweedie", "energy", "curl", "fokker_planck")  # fmt: skip
MOST_MEAN = 256  # items of which the mean of two checkpoints' weights is judged


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found: the findings, worst first, all levels, and what was checked."""

    findings: tuple[Finding, ...]
    levels: tuple[Level, ...]
    facts: Mapping[str, Any]
    checked: tuple[str, ...] = field(default=())

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of the causes, worst first."""
        return tuple(f.cause for f in self.findings)

    def table(self) -> str:
        """Errors by noise level."""
        names = {"at": "sigma/alpha", "fokker_planck": "FP residual"}
        rows = ["  ".join(f"{names.get(n, n):>11s}" for n in COLUMNS)]
        for level in self.levels:
            values = [getattr(level, n) for n in COLUMNS]
            values = [v.value if isinstance(v, Slope) else v for v in values]
            texts = ("-" if v is None or v != v else format(v, ".4g") for v in values)
            rows.append("  ".join(f"{text:>11s}" for text in texts))
        return "\n".join(rows)

    def __str__(self) -> str:
        if self.findings:
            said = "\n".join(f"{f.cause}: {f.evidence}\n  fix: {f.fix}" for f in self.findings)
        else:
            said = f"nothing found; checked were {', '.join(self.checked)}."
        ends = self.facts.get("law_of_ends")
        told = "" if ends is None else f"{ends}\n\n"
        return f"{self.table()}\n\n{told}{said}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "findings": [vars(f) for f in self.findings],
            "levels": [level.to_dict() for level in self.levels],
            "facts": {key: _plain(value) for key, value in self.facts.items()},
            "checked": list(self.checked),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Ratio):
        return {"ratio": value.value, "stderr_of_log": value.stderr}
    if isinstance(value, Ends):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def diagnose_model(subject: Subject, n: int = 512, seed: int = 0) -> Diagnosis:
    """Measure a model and name what is wrong with it.

    n: items at each of nine noise levels between t_min and t_max, evenly spaced in log SNR.
    """
    broken = _not_finite(subject)
    if broken is not None:
        return Diagnosis((broken,), (), {}, ("weights",))
    source = generator_of(seed)
    levels = tuple(measure(subject, float(t), n, source) for t in times_of(subject.model))
    facts = facts_of(subject, source)
    other = readings(subject, n, source)
    classes = class_reading(subject, subject.model.classes, n, source)
    if subject.earlier is not None:
        facts["mean_over_model"] = _mean_over_model(subject, min(n, MOST_MEAN), source)
    facts["readings"] = other.to_dict()
    if classes is not None:
        facts["classes"] = classes._asdict()
    small = subject.train[0].numel() <= EXACT_DIMS
    logged = again(subject, (16 if small else 4) * n, source)
    facts["as_trained"] = [v._asdict() for v in logged]
    measured = Measured(subject, levels, facts, other, classes, logged)
    found = [check(measured) for check in CHECKS.values()]
    findings = tuple(f for f in found if f is not None)
    hidden = {cause for f in findings for cause in HIDES.get(f.cause, ())}
    kept = tuple(f for f in findings if f.cause not in hidden)
    return Diagnosis(kept, levels, facts, tuple(CHECKS))


def _not_finite(subject: Subject) -> Finding | None:
    for name, model in (("averaged", subject.model), ("raw", subject.raw)):
        bad = [k for k, v in model.net.state_dict().items() if not bool(torch.isfinite(v).all())]
        if bad:
            return Finding(
                "weights not finite",
                f"{len(bad)} of the {name} tensors hold NaN or infinity, the first {bad[0]}",
                "go back to an earlier checkpoint (--step); train with a lower training.lr, "
                "training.grad_clip=1 and training fp32",
            )
    return None


def _mean_over_model(subject: Subject, n: int, generator: torch.Generator) -> Ratio:
    """What the mean of two checkpoints' weights errs, over what the averaged weights do."""
    assert subject.earlier is not None
    net = copy.deepcopy(subject.raw.net)
    with torch.no_grad():
        for mine, other in zip(net.parameters(), subject.earlier.net.parameters(), strict=True):
            mine.lerp_(other, 0.5)
    mean, found = subject.model.with_net(net), []
    for t in times_of(subject.model)[2:-2]:
        seen = noisy(subject.model, subject.train, subject.labels, float(t), n, generator)
        of_mean, own = (errors_of(seen.x0, denoised(m, seen)) for m in (mean, subject.model))
        found.append(ratio(of_mean, own))
    return mean_ratio(found)
