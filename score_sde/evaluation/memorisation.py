r"""Are samples copies of training items? Distances, and what they would be without copying.

ratio       distance to the nearest training item over that to the second nearest. Copies have small
            ones. How small clean samples' get depends on the data, so items that were not copied
            set the bar: every training item against the others, and held-out ones.
nearer      share of samples that are nearer to a training item than to one of as many held-out
            items, with its exact binomial interval; 1/2 is right.
c_t         Mann-Whitney z-score of the distances to training items, samples against held-out items,
            mean over cells by the held-out items in them (2004.05675); far below 0 is copying, far
            above is underfitting.
authentic   share of samples whose nearest training item has a closer neighbour among the training
            items than the sample is (AuthPct, 2102.08921); compare with that of held-out items.

A Frechet distance rewards copying; these do not. They see copies in the space that they are given
(pixels), not of what is shown in them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.evaluation.distances import squared_distances
from score_sde.noise import generator_of

ROWS = 500
FEWEST = 10
MOST_CLEAN = 2000  # training and held-out items that show what is usual
BAR = 0.005  # share of clean items with a ratio below what counts as a copy
HIGHEST = 0.6  # no ratio above is called a copy
SURE = 1e-4  # probability of so many small ratios without copying, below which it is said


class Nearest(NamedTuple):
    """Of each of n items: distances to the two nearest of another set and the place of the first.

    distances (n, 2) float64, places (n,) int64.
    """

    distances: Tensor
    places: Tensor

    @property
    def ratio(self) -> Tensor:
        """(n,); 1 where both distances are 0."""
        first, second = self.distances.unbind(1)
        return torch.where(second > 0, first / second.clamp_min(1e-300), torch.ones_like(first))


def nearest(x: Tensor, others: Tensor, own: Tensor | None = None) -> Nearest:
    """The nearest of others (N, d) to each x (n, d); own: places (n,) of x there, to be skipped.

    Candidates are found in float32 and their distances computed in float64, from differences.
    """
    others = others.float()
    centre = others.mean(0)
    centred = others - centre
    distances, places = [], []
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS].float()
        squared = squared_distances(rows - centre, centred)
        if own is not None:
            squared.scatter_(1, own[start : start + ROWS, None], torch.inf)
        candidates = squared.topk(min(4, len(others) - (own is not None)), largest=False).indices
        exact = (rows[:, None].double() - others[candidates].double()).norm(dim=2)
        exact, order = exact.sort(1)
        distances.append(exact[:, :2])
        places.append(candidates.gather(1, order)[:, 0])
    return Nearest(torch.cat(distances), torch.cat(places))


@dataclass(frozen=True)
class Memorisation:
    """What `memorisation` finds; shares are between 0 and 1, None where no held-out set is given.

    copies: share of samples with a ratio at most ``bar``; ``expected`` of clean items have.
    p_value: of so many without copying. median_ratio: and that of clean items.
    suspects: places of the samples with the smallest ratios, and sources: of their nearest items.
    """

    n: int
    n_train: int
    n_held_out: int
    copies: float
    expected: float
    bar: float
    p_value: float
    median_ratio: float
    clean_median_ratio: float
    duplicates_in_training: int
    authentic: float
    held_out_authentic: float | None
    nearer: float | None
    nearer_interval: tuple[float, float] | None
    c_t: float | None
    suspects: tuple[int, ...]
    sources: tuple[int, ...]

    @property
    def found(self) -> bool:
        """Whether there are more near copies than chance explains."""
        return self.p_value < SURE

    def sentence(self) -> str:
        """The finding with the figures that it rests on."""
        said = f"{self.copies:.1%} of {self.n} samples are copies of training items" if self.found \
            else f"no sign of copying in {self.n} samples"  # fmt: skip
        text = f"{said}: {self.copies:.2%} have a nearest-neighbour ratio of at most "
        text += f"{self.bar:.2f}, of clean items {self.expected:.2%} (p = {self.p_value:.1g})"
        if self.nearer is not None and self.nearer_interval is not None:
            low, high = self.nearer_interval
            text += f"; {self.nearer:.1%} ({low:.1%} to {high:.1%}) are nearer to training than to "
            text += f"held-out items, 50 % being right; C_T {self.c_t:.1f}"
        authentic = f"; {self.authentic:.1%} authentic"
        if self.held_out_authentic is not None:
            authentic += f", held-out items {self.held_out_authentic:.1%}"
        return text + authentic

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"found": self.found}


def _authentic(found: Nearest, train: Tensor) -> float:
    """Share of items that are farther from their nearest training item than it is from others."""
    sources, which = found.places.unique(return_inverse=True)
    closest = nearest(train[sources], train, sources).distances[:, 0]
    return float((closest[which] < found.distances[:, 0]).double().mean())


def memorisation(
    samples: Tensor, train: Tensor, held_out: Tensor | None = None, seed: int = 0
) -> Memorisation:
    """How near samples (n, ...) are to training items (N, ...), beside held-out items (m, ...).

    Raises UserError for fewer than 10 samples or training items.
    """
    if min(len(samples), len(train)) < FEWEST:
        raise UserError(
            f"memorisation needs at least {FEWEST} samples and training items (got {len(samples)}, "
            f"{len(train)})."
        )
    train = train.flatten(1)
    distinct = torch.unique(train, dim=0)
    duplicates, places = len(train) - len(distinct), None
    if duplicates:  # a ratio of 1 would hide copies of them
        places = _first_places(train, distinct)
        train = distinct
    x = samples.flatten(1)
    some = _some(len(train), seed)
    mine, own = nearest(x, train), nearest(train[some], train, some)
    other = None if held_out is None else held_out.flatten(1)
    fresh = None if other is None else other[_some(len(other), seed)]
    unseen = None if fresh is None else nearest(fresh, train)
    clean = own.ratio if unseen is None else torch.cat([own.ratio, unseen.ratio])

    bar = min(float(clean.quantile(BAR)), HIGHEST)
    count, below = int((mine.ratio <= bar).sum()), int((clean <= bar).sum())
    # The bar is an order statistic of the clean ratios: what share of clean items lies below it has
    # a beta distribution, and how many of n do, a beta-binomial one, whatever the data.
    p_value = _beta_binomial_tail(count, len(x), below + 1, len(clean) - below)

    share, interval, c_t = None, None, None
    if other is not None and fresh is not None and unseen is not None:
        share, interval = _nearer(x, train, other, seed)
        c_t = _c_t(x, train, fresh, mine, unseen, seed)
    suspects = mine.ratio.argsort()[:64]
    sources = mine.places[suspects]
    return Memorisation(
        n=len(x),
        n_train=len(train) + duplicates,
        n_held_out=0 if other is None else len(other),
        copies=count / len(x),
        expected=below / len(clean),
        bar=bar,
        p_value=p_value,
        median_ratio=float(mine.ratio.median()),
        clean_median_ratio=float(clean.median()),
        duplicates_in_training=duplicates,
        authentic=_authentic(mine, train),
        held_out_authentic=None if unseen is None else _authentic(unseen, train),
        nearer=share,
        nearer_interval=interval,
        c_t=c_t,
        suspects=tuple(suspects.tolist()),
        sources=tuple((sources if places is None else places[sources]).tolist()),
    )


def _some(n: int, seed: int) -> Tensor:
    """Places of at most MOST_CLEAN of n items, at random."""
    return torch.randperm(n, generator=generator_of(seed))[:MOST_CLEAN]


def _first_places(train: Tensor, distinct: Tensor) -> Tensor:
    """Where each distinct item is first among all, (D,)."""
    _, inverse = torch.unique(train, dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(train), dtype=torch.long)
    return first.scatter_reduce(0, inverse, torch.arange(len(train)), "amin")


def _nearer(
    x: Tensor, train: Tensor, held_out: Tensor, seed: int
) -> tuple[float, tuple[float, float]]:
    """Share of x nearer to as many training as held-out items, and its 95 % interval."""
    n = min(len(train), len(held_out))
    generator = generator_of(seed)
    some = train[torch.randperm(len(train), generator=generator)[:n]]
    other = held_out[torch.randperm(len(held_out), generator=generator)[:n]]
    to_train, to_other = nearest(x, some).distances[:, 0], nearest(x, other).distances[:, 0]
    tied = to_train == to_other
    count = int((to_train < to_other).sum()) + int(tied.sum()) // 2
    return count / len(x), binomial_interval(count, len(x))


def binomial_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share, count of n (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def _beta_binomial_tail(count: int, n: int, a: int, b: int) -> float:
    """P(at least count of n) where the probability of each is drawn from Beta(a, b)."""
    k = torch.arange(count, n + 1, dtype=torch.float64)

    def log_beta(p: Tensor, q: Tensor) -> Tensor:
        return torch.lgamma(p) + torch.lgamma(q) - torch.lgamma(p + q)

    ways = -math.log1p(n) - log_beta(k + 1, n - k + 1)
    whole = log_beta(torch.tensor(float(a)).double(), torch.tensor(float(b)).double())
    return min(1.0, float((ways + log_beta(k + a, n - k + b) - whole).exp().sum()))


def _c_t(
    x: Tensor, train: Tensor, held_out: Tensor, mine: Nearest, unseen: Nearest, seed: int
) -> float:
    """The z-score of 2004.05675 in cells of the training items' first 64 principal components."""
    train = train.float()
    centre = train.mean(0)
    _, _, axes = torch.pca_lowrank(train - centre, q=min(64, *train.shape), center=False)
    centres = _cells((train - centre) @ axes, 3, seed)

    def cell(items: Tensor) -> Tensor:
        return torch.cdist((items.float() - centre) @ axes, centres).argmin(1)

    of_x, of_held_out = cell(x), cell(held_out)
    total, weight = 0.0, 0
    for j in range(len(centres)):
        a = mine.distances[of_x == j, 0]
        b = unseen.distances[of_held_out == j, 0]
        if min(len(a), len(b)) > 20:
            total, weight = total + len(b) * mann_whitney_z(a, b), weight + len(b)
    return total / weight if weight else math.nan


def mann_whitney_z(a: Tensor, b: Tensor) -> float:
    """Of P(a > b), which is 1/2 if the laws are the same; below 0 if a tends to be smaller."""
    n, m = len(a), len(b)
    ordered, a = b.sort().values, a.contiguous()
    below = torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)
    u = float(below.double().sum()) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def _cells(x: Tensor, k: int, seed: int, rounds: int = 30) -> Tensor:
    """Centres (k, d) by Lloyd's k-means from items at random."""
    generator = generator_of(seed)
    centres = x[torch.randperm(len(x), generator=generator)[:k]]
    for _ in range(rounds):
        own = torch.cdist(x, centres).argmin(1)
        centres = torch.stack(
            [x[own == j].mean(0) if bool((own == j).any()) else centres[j] for j in range(k)]
        )
    return centres
