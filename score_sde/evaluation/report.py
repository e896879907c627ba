"""`evaluate`: every distance of samples to a reference, with its error and its protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.data.spec import DataError
from score_sde.evaluation import c2st, distances, moments, neighbours
from score_sde.evaluation.features import (
    FEATURES,
    Features,
    checksum,
    default_features,
    extract,
    facts_of,
    name_of,
)
from score_sde.evaluation.jackknife import Estimate, block_of
from score_sde.evaluation.memorisation import Memorisation, memorisation
from score_sde.evaluation.moments import Moments

MOST = 10_000  # items of each set in distances that compare all pairs
OF_IMAGES = ("frechet", "kid", "inception_score", "precision", "recall", "density", "coverage")
OF_VECTORS = (
    "frechet", "sliced_w2", "mmd", "energy", "c2st", "precision", "recall", "density", "coverage",
)  # fmt: skip
BEST = {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0, "c2st": 0.5}


@dataclass(frozen=True)
class Measure:
    """One number and all that it depends on.

    stderr: over fresh samples, the reference being what it is (block jackknife).
    corrected: without the bias of few samples; None where a number has no limit to correct to.
    real: the same number of real items against others, n_real of each; None where there are none.
    """

    name: str
    label: str
    value: float
    stderr: float
    corrected: float | None
    real: float | None
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.label} {self.value:.4g} +- {self.stderr:.2g}"
        if self.corrected is not None and self.corrected != self.value:
            text += f" (without the bias of few samples {self.corrected:.4g})"
        if self.real is not None:
            text += f", of real items {self.real:.4g} at n = {self.protocol['n_real']}"
        return text


@dataclass(frozen=True)
class Report:
    """What `evaluate` found: `report.frechet`, `report.kid`, ... are each a `Measure`.

    measures: all of them by name. memorisation: None where no training items were given.
    protocol: what all depend on. notes: what a reader should know before believing them.
    """

    measures: Mapping[str, Measure]
    protocol: Mapping[str, Any]
    memorisation: Memorisation | None = None
    notes: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Measure:
        measures = self.__dict__.get("measures", {})
        if name in measures:
            return measures[name]
        raise AttributeError(f"this report has no {name!r}; it has {', '.join(measures)}.")

    @property
    def sentence(self) -> str:
        """The first number with its protocol."""
        first = next(iter(self.measures.values()))
        p = self.protocol
        text = f"{first}; {p['n']} samples"
        text += f" ({p['samples']})" if p.get("samples") else ""
        text += f" against {p['n_reference']} of {p.get('reference') or 'the reference'}"
        text += f" [{p['reference_checksum']}], features {p['extractor']}"
        text += f" [{p['checksum']}]" if p.get("checksum") else ""
        for key in ("weights", "step", "method", "nfe", "guidance", "first_seed"):
            text += f", {key} {p[key]}" if p.get(key) is not None else ""
        return text + "."

    def table(self) -> str:
        """All numbers in rows."""
        rows = [("", "value", "+-", "corrected", "real", "n real")]
        for m in self.measures.values():
            corrected = "-" if m.corrected is None else f"{m.corrected:.5g}"
            real = "-" if m.real is None else f"{m.real:.5g}"
            n_real = str(m.protocol.get("n_real", "-"))
            rows.append((m.label, f"{m.value:.5g}", f"{m.stderr:.2g}", corrected, real, n_real))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        parts = [self.table(), self.sentence]
        if self.memorisation is not None:
            parts.append(f"memorisation: {self.memorisation.sentence()}.")
        return "\n".join([*parts, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "sentence": self.sentence,
            "measures": {name: _plain(vars(m)) for name, m in self.measures.items()},
            "memorisation": None if self.memorisation is None else self.memorisation.to_dict(),
            "protocol": _plain(self.protocol),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """As text; a value that is not finite is null."""
        return json.dumps(self.to_dict(), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, eq=False)
class Statistics:
    """A reference known by its moments alone, as published ones are; see `statistics`.

    facts: of the extractor that they were made with, and of the data.
    """

    moments: Moments
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Featured:
    """A set of items as features see it: (n, d) float64."""

    features: Tensor
    logits: Tensor | None
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.features)

    def some(self, n: int, seed: int) -> Tensor:
        """At most n of them, at random."""
        if n >= len(self.features):
            return self.features
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(seed))
        return self.features[order[:n]]


def as_items(values: Tensor | np.ndarray, what: str) -> Tensor:
    """uint8 images (n, C, H, W), or vectors (n, D) in float64; DataError says what is wrong.

    Images are uint8, or floats between 0 and 1, which are rounded to 8 bits as files would be.
    """
    x = torch.as_tensor(values)
    if x.ndim < 2 or len(x) == 0:
        raise DataError(f"{what} have shape {tuple(x.shape)}; give (n, D), or images (n, C, H, W).")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise DataError(f"{what} hold values that are not finite.")
    if x.ndim != 4:
        return x.flatten(1).double()
    if x.dtype != torch.uint8:
        low, high = float(x.min()), float(x.max())
        if low < 0 or high > 1:
            raise DataError(
                f"{what} are float images from {low:.4g} to {high:.4g}; give uint8, or floats "
                "between 0 and 1. Of a run, run.data_spec.to_uint8(x) makes them."
            )
        x = (x * 255).round().to(torch.uint8)
    if x.shape[1] > 4 and x.shape[3] in (1, 3, 4):
        x = x.permute(0, 3, 1, 2)
    return x


def evaluate(
    samples: Tensor | np.ndarray,
    reference: Tensor | np.ndarray | Statistics,
    features: str | Features | None = None,
    *,
    train: Tensor | np.ndarray | None = None,
    held_out: Tensor | np.ndarray | None = None,
    measures: Sequence[str] | None = None,
    blocks: int = 10,
    seed: int = 0,
    few: bool = False,
    protocol: Mapping[str, Any] | None = None,
) -> Report:
    """How far samples are from a reference: distances with errors, and what they depend on.

    samples, reference: images, uint8 (n, C, H, W) or floats on 0..1, or vectors (n, D); or
        `Statistics` of a reference, for the Frechet distance alone.
    features: a name of `FEATURES`, a dotted path or a callable; a default by the images' shape.
    train, held_out: training items, and items that were not trained on, for `memorisation`.
    measures: which ones, of `OF_IMAGES` or `OF_VECTORS`; all that apply when None.
    blocks, seed: of the jackknife, and of the choice of subsets. few: compute a Frechet distance of
        no more samples than the features have dimensions, which is of little worth.
    protocol: more facts to go with the numbers (sampler, NFE, weights).

    Raises DataError for sets that cannot be compared, and for too few samples.
    """
    x = as_items(samples, "samples")
    y = None if isinstance(reference, Statistics) else as_items(reference, "the reference's items")
    if y is not None:
        check_comparable(x, y)
    extractor = find_features(features, x)
    notes: list[str] = []
    facts = {"n": len(x), "samples_checksum": checksum(x), "blocks": blocks, "seed": seed}
    facts |= facts_of(extractor) | dict(protocol or {})
    if isinstance(reference, Statistics):
        check_statistics(reference, facts)
        mine = _featured(extractor, x)
        facts |= {"n_reference": reference.moments.n}
        facts |= {"reference_checksum": reference.facts.get("data_checksum", "published")}
        target: Featured | Statistics = reference
    else:
        assert y is not None
        facts |= {"n_reference": len(y), "reference_checksum": checksum(y)}
        if facts["reference_checksum"] == facts["samples_checksum"]:
            notes.append("the samples and the reference are the same set, item for item.")
        mine, target = _featured(extractor, x), _featured(extractor, y)
    found = compare(mine, target, name_of(extractor), measures, blocks, seed, few,
                    _label(extractor), x.dtype == torch.uint8)  # fmt: skip
    copies = None
    if train is not None:
        other = None if held_out is None else as_items(held_out, "the held-out items")
        copies = memorisation(x[:MOST], as_items(train, "the training items"), other, seed)
    return Report(found, facts, copies, tuple(notes))


def find_features(features: str | Features | None, items: Tensor) -> Features:
    """An extractor by its name, its dotted path or itself; a default for the items when None."""
    name = default_features(items) if features is None else features
    if not isinstance(name, str):
        return name
    return FEATURES[name]() if name in FEATURES else _by_path(name)


def _by_path(name: str) -> Features:
    import importlib

    module, _, attribute = name.rpartition(".")
    if not module:
        raise DataError(
            f"features {name!r} are unknown; choose from {', '.join(FEATURES)}, or give a dotted "
            "path of yours."
        )
    found = getattr(importlib.import_module(module), attribute)
    return found() if isinstance(found, type) else found


def check_comparable(x: Tensor, y: Tensor) -> None:
    """Raises DataError if two sets are not of one kind of items."""
    if x.shape[1:] != y.shape[1:]:
        if x.ndim == y.ndim == 4:
            raise DataError(
                f"samples are of shape {tuple(x.shape[1:])} (C, H, W), the reference of "
                f"{tuple(y.shape[1:])}: a distance would be one of sizes. Resize one of them first "
                "(data.size, data.resize, data.convert; --size)."
            )
        raise DataError(
            f"samples have shape {tuple(x.shape[1:])} and the reference {tuple(y.shape[1:])}."
        )


def check_statistics(reference: Statistics, facts: Mapping[str, Any]) -> None:
    """Raises DataError if statistics are of another extractor than the samples are seen by."""
    for key in ("extractor", "checksum", "resize"):
        theirs, ours = reference.facts.get(key), facts.get(key)
        if theirs is not None and theirs != ours:
            raise DataError(
                f"the reference statistics were made with {key} {theirs}, the samples' features "
                f"with {ours}: make them again with these features, or choose theirs."
            )


def _featured(extractor: Features, items: Tensor) -> Featured:
    found = extract(extractor, items)
    logits = getattr(extractor, "logits", None)
    return Featured(found, None if logits is None else logits(found), facts_of(extractor))


def _label(extractor: Features) -> str:
    return getattr(extractor, "frechet_name", None) or (
        "Frechet distance" if name_of(extractor) == "none" else f"FD-{name_of(extractor)}"
    )


def compare(
    mine: Featured,
    target: Featured | Statistics,
    name: str,
    measures: Sequence[str] | None = None,
    blocks: int = 10,
    seed: int = 0,
    few: bool = False,
    label: str = "Frechet distance",
    images: bool = True,
) -> dict[str, Measure]:
    """The measures of features that have been extracted, by name."""
    known = OF_IMAGES if images else OF_VECTORS
    wanted = known if measures is None else tuple(measures)
    for measure in wanted:
        if measure not in {*OF_IMAGES, *OF_VECTORS, "cmmd"}:
            raise DataError(f"measure {measure!r} is unknown; choose from {', '.join(known)}.")
    if "frechet" in wanted:
        check_enough(len(mine), mine.features.shape[1], few)
    n, blocks = len(mine), min(blocks, len(mine))
    values = _estimates(mine, target, wanted, blocks, seed)
    real, n_real = _of_real(target, n, wanted, blocks, seed)
    labels = {"frechet": label, "kid": f"KID-{name}", "inception_score": f"IS-{name}",
              "cmmd": "CMMD"}  # fmt: skip
    if label == "FID":
        labels |= {"kid": "KID", "inception_score": "IS"}
    found = {}
    for key, estimate in values.items():
        protocol = {"n": min(n, MOST) if key not in ("frechet", "inception_score") else n}
        protocol |= {"n_real": n_real} if key in real else {}
        protocol |= {"blocks": len(estimate.without)} | PROTOCOLS.get(key, {})
        found[key] = Measure(
            key, labels.get(key, key), estimate.value, estimate.stderr, estimate.corrected,
            real.get(key), protocol,
        )  # fmt: skip
    return found


PROTOCOLS: dict[str, dict[str, Any]] = {
    "frechet": {"covariance": "n - 1", "trace": "nuclear norm, float64"},
    "kid": {"kernel": "(x.y/d + 1)^3", "estimator": "unbiased, all pairs"},
    "cmmd": {"kernel": "Gaussian, sigma 10", "estimator": "biased, x 1000"},
    "inception_score": {"splits": "the blocks", "corrected": "one split, without its bias"},
    "precision": {"k": 3},
    "recall": {"k": 3},
    "density": {"k": 5},
    "coverage": {"k": 5},
    "sliced_w2": {"directions": 200},
    "mmd": {"kernel": "Gaussians of 1/4, 1/2, 1, 2, 4 times the median distance", "squared": True},
    "energy": {"kernel": "-|x - y|", "squared": True},
    "c2st": {"folds": 5, "classifier": "two layers 10 d wide"},
}


def check_enough(n: int, d: int, few: bool) -> None:
    """Raises DataError for a Frechet distance whose covariance would be singular."""
    if n <= d and not few:
        raise DataError(
            f"{n} samples are too few for a Frechet distance of {d} features: the covariance is "
            f"singular, and the distance of a sample to its own law is about d^2/(4 n) = "
            f"{d * d / 4 / n:.3g} of the variances' scale. Give more than {d}, choose other "
            "measures (kid has no bias), or say few=True (--few)."
        )


def _of_real(
    target: Featured | Statistics, n: int, wanted: Sequence[str], blocks: int, seed: int
) -> tuple[dict[str, float], int]:
    """The measures of n real items (or half of them) against the others, and how many they are."""
    if isinstance(target, Statistics):
        return {}, 0
    count = min(n, len(target) // 2)
    if count < max(blocks, 20):
        return {}, 0
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed + 1))
    first, rest = (
        Featured(target.features[rows], None if target.logits is None else target.logits[rows], {})
        for rows in (order[:count], order[count:])
    )
    values = _estimates(first, rest, wanted, blocks, seed, errors=False)
    return {key: estimate.value for key, estimate in values.items()}, count


def _estimates(
    mine: Featured,
    target: Featured | Statistics,
    wanted: Sequence[str],
    blocks: int,
    seed: int,
    errors: bool = True,
) -> dict[str, Estimate]:
    """The measures that can be had of these two, in the order asked for."""
    block = block_of(len(mine), blocks, seed)
    found: dict[str, Estimate] = {}
    if "frechet" in wanted:
        found["frechet"] = _frechet(mine, block, target, errors)
    if "inception_score" in wanted and mine.logits is not None:
        found["inception_score"] = distances.inception_score(mine.logits, block)
    if isinstance(target, Statistics):
        return found
    x, y = mine.features[:MOST], target.some(MOST, seed)
    block = block[:MOST]
    makers: dict[str, Callable[[], Estimate]] = {
        "kid": lambda: distances.kernel_distance(distances.cubic, x, block, y),
        "cmmd": lambda: _scaled(distances.kernel_distance(
            distances.gaussian(10.0), x, block, y, unbiased=False), 1000),
        "sliced_w2": lambda: distances.sliced_w2(x, block, y, seed=seed),
        "mmd": lambda: distances.kernel_distance(median_kernel(x, y), x, block, y),
        "energy": lambda: distances.kernel_distance(distances.negative_distance, x, block, y),
        "c2st": lambda: c2st.two_sample_accuracy(x, y, seed=seed),
    }  # fmt: skip
    covers = {"precision", "recall", "density", "coverage"} & set(wanted)
    if covers and min(len(x), len(y)) > 10:
        cover = neighbours.cover(x, block, y)
        found |= {key: getattr(cover, key) for key in covers}
    found |= {key: make() for key, make in makers.items() if key in wanted}
    return {key: found[key] for key in wanted if key in found}


def _frechet(
    mine: Featured, block: Tensor, target: Featured | Statistics, errors: bool
) -> Estimate:
    if isinstance(target, Statistics):
        return distances.frechet(mine.features, block, target.moments)
    reference = Moments.of(target.features)
    if not errors:
        return Estimate(moments.frechet(Moments.of(mine.features), reference))
    return distances.frechet(mine.features, block, reference, target.features)


def _scaled(estimate: Estimate, by: float) -> Estimate:
    corrected = None if estimate.corrected is None else by * estimate.corrected
    return Estimate(by * estimate.value, tuple(by * w for w in estimate.without), corrected)


def median_kernel(x: Tensor, y: Tensor) -> distances.Kernel:
    """Gaussians of 1/4, 1/2, 1, 2 and 4 times the median distance."""
    median = distances.median_distance(x, y)
    return distances.gaussian(*(median * 2.0**k for k in range(-2, 3)))
