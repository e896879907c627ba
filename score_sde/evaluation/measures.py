"""The measures of two sets of features: which apply, with what settings, and real ones beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import UserError, check_names
from score_sde.evaluation import c2st, distances, moments, neighbours
from score_sde.evaluation.features import Features, checksum, extract, facts_of
from score_sde.evaluation.jackknife import Estimate, block_of
from score_sde.evaluation.moments import Moments
from score_sde.noise import generator_of

FEWEST = 3  # samples, without one of which two are left
MOST = 10_000  # items of each set in distances that compare all pairs
OF_IMAGES = ("frechet", "kid", "inception_score", "precision", "recall", "density", "coverage")
OF_VECTORS = (
    "frechet", "sliced_w2", "mmd", "energy", "c2st", "precision", "recall", "density", "coverage",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Statistics:
    """A reference known by its moments alone, as published ones are.

    n: items that they are of, None where that is not said. facts: of the extractor that they were
    made with (extractor, checksum, resize), and of the data (data, data_checksum).
    """

    moments: Moments
    n: int | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Featured:
    """A set of items as an extractor sees it.

    features: (n, d) float64. logits: (n, classes) where the extractor has them. checksum: of the
    items. images: whether they are images. facts: of the extractor.
    """

    features: Tensor
    logits: Tensor | None
    checksum: str
    images: bool
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, places: Tensor) -> Featured:
        """Some of them."""
        logits = None if self.logits is None else self.logits[places]
        return Featured(self.features[places], logits, self.checksum, self.images, self.facts)

    def some(self, n: int, seed: int) -> Tensor:
        """The features of at most n of them, at random."""
        if n >= len(self):
            return self.features
        return self.features[shuffled(len(self), seed)[:n]]


def shuffled(n: int, seed: int) -> Tensor:
    """The numbers below n in an order by seed."""
    return torch.randperm(n, generator=generator_of(seed))


def featured(extractor: Features, items: Tensor) -> Featured:
    """Items (n, ...) as an extractor sees them."""
    return with_logits(extractor, extract(extractor, items), checksum(items), items.ndim == 4)


def with_logits(extractor: Features, features: Tensor, checksum: str, images: bool) -> Featured:
    """Features (n, d) that have been extracted, with what the extractor says of their classes."""
    logits = getattr(extractor, "logits", None)
    found = None if logits is None else logits(features)
    return Featured(features, found, checksum, images, facts_of(extractor))


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
    protocol: Mapping[str, Any]

    def __str__(self) -> str:
        text = f"{self.label} {self.value:.4g} +- {self.stderr:.2g}"
        if self.corrected is not None and self.corrected != self.value:
            text += f" (without the bias of few samples {self.corrected:.4g})"
        if self.real is not None:
            text += f", of real items {self.real:.4g} at n = {self.protocol['n_real']}"
        return text


def compare(
    mine: Featured,
    target: Featured | Statistics,
    measures: Sequence[str] | None = None,
    blocks: int = 10,
    seed: int = 0,
    few: bool = False,
) -> dict[str, Measure]:
    """The measures of features that have been extracted, by name."""
    known: tuple[str, ...] = OF_IMAGES if mine.images else OF_VECTORS
    known += ("cmmd",) if str(mine.facts["extractor"]).startswith("clip") else ()
    wanted = known if measures is None else tuple(measures)
    if not wanted:
        raise UserError(f"measures must name one at least; choose from {', '.join(known)}.")
    check_names(wanted, dict.fromkeys((*known, *OF_IMAGES, *OF_VECTORS, "cmmd")), "measure")
    if len(mine) < FEWEST:
        raise UserError(
            f"{len(mine)} samples are too few for a distance with an error: at least 3."
        )
    if "frechet" in wanted:
        check_enough(len(mine), mine.features.shape[1], few)
    n, blocks = len(mine), min(blocks, len(mine))
    values = _estimates(mine, target, wanted, blocks, seed)
    real, n_real = _of_real(target, n, wanted, blocks, seed)
    labels = _labels(mine.facts)
    found = {}
    for key, estimate in values.items():
        protocol: dict[str, Any] = {"n": n}
        if key not in ("frechet", "inception_score") and isinstance(target, Featured):
            protocol = {"n": min(n, MOST), "n_reference": min(len(target), pairs_with(n))}
        protocol |= {"n_real": n_real} if key in real else {}
        protocol |= {"blocks": len(estimate.without)} | PROTOCOLS.get(key, {})
        found[key] = Measure(
            key, labels.get(key, key), estimate.value, estimate.stderr, estimate.corrected,
            real.get(key), protocol,
        )  # fmt: skip
    return found


def check_found(
    found: Mapping[str, Measure], wanted: Sequence[str], mine: Featured, moments: bool
) -> None:
    """Raises UserError if a measure that was asked for is not there; moments: of these alone."""
    for name in (n for n in wanted if n not in found):
        if name == "inception_score":
            why = f"the features {mine.facts['extractor']} tell no classes (fashion and lite0 do)"
        elif moments:
            why = "a file of statistics has moments alone, for frechet; give the items (--data)"
        else:
            why = "it needs more than 10 samples and reference items"
        raise UserError(f"{name} cannot be had here: {why}.")


def _labels(facts: Mapping[str, Any]) -> dict[str, str]:
    """What numbers are called: after their features, and FID only if they are FID's."""
    name = facts["extractor"]
    if facts.get("frechet_name") == "FID":
        return {"frechet": "FID", "kid": "KID", "inception_score": "IS"}
    plain = "Frechet distance" if name.startswith("none") else f"FD-{name}"
    found = {"frechet": facts.get("frechet_name", plain), "cmmd": facts.get("cmmd_name", "MMD-10")}
    return found | {"kid": f"KID-{name}", "inception_score": f"IS-{name}"}


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


def pairs_with(n: int) -> int:
    """How many reference items n samples are compared with pair by pair: as many, at least 2000."""
    return min(MOST, max(n, 2000))


def check_enough(n: int, d: int, few: bool) -> None:
    """Raises UserError for a Frechet distance whose covariance would be singular."""
    if n <= d and not few:
        raise UserError(
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
    order = shuffled(len(target), seed + 1)
    first, rest = target.rows(order[:count]), target.rows(order[count:])
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
    x, y = mine.features[:MOST], target.some(pairs_with(len(mine)), seed)
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
    if min(len(x), len(y)) <= 10:
        makers.pop("c2st")
    elif covers:
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
    """The mean of Gaussians of 1/4, 1/2, 1, 2 and 4 times the median distance."""
    widest = 4 * distances.median_distance(x, y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        value = (distances.squared_distances(a, b) / (-2 * widest**2)).exp_()
        total = value.clone()
        for _ in range(4):
            total += value.square_().square_()  # half the width is the fourth power
        return total / 5

    return kernel


def check_statistics(reference: Statistics, facts: Mapping[str, Any], d: int) -> None:
    """Raises UserError if statistics are of another extractor than the samples are seen by."""
    for key in ("extractor", "checksum", "resize"):
        theirs, ours = reference.facts.get(key), facts.get(key)
        if theirs is not None and theirs != ours:
            raise UserError(
                f"the reference statistics were made with {key} {theirs}, the samples' features "
                f"with {ours}: make them again with these features, or choose theirs."
            )
    theirs, ours = len(reference.moments.mean), d
    if theirs != ours:
        raise UserError(
            f"statistics of {theirs} features are no reference for samples of {ours}: they were "
            "made with others (--features)."
        )
