r"""Distances of two sets of features (n, d), each with what it is without a block of the first.

frechet           of the Gaussians with their means and covariances (1706.08500)
kernel_distance   E k(x, x') + E k(y, y') - 2 E k(x, y), the squared maximum mean discrepancy:
                  KID with k = (x.y/d + 1)^3 (1801.01401), MMD with Gaussians, CMMD (2401.09603),
                  and the energy distance with k = -|x - y|
sliced_w2         root of the mean over directions of the squared Wasserstein-2 distance on a line
inception_score   exp E KL(p(c|x) || p(c)) of class probabilities (1606.03498)

All arithmetic is float64. ``block``, (n,), is `jackknife.block_of` the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.evaluation import moments
from score_sde.evaluation.jackknife import Estimate, bias, block_of
from score_sde.evaluation.moments import Moments, merged
from score_sde.noise import generator_of

Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 128  # of a matrix of kernel values at a time: a cache holds them


def _leave_one_out(x: Tensor, block: Tensor) -> list[Moments]:
    parts = [Moments.of(x[block == j]) for j in range(int(block.max()) + 1)]
    return [merged(parts[:j] + parts[j + 1 :]) for j in range(len(parts))]


def frechet(
    x: Tensor, block: Tensor, reference: Moments, reference_features: Tensor | None = None
) -> Estimate:
    """The Frechet distance of x (n, d) to a reference, and its value for infinitely many samples.

    reference_features: (N, d), where they are at hand: the bias of a finite reference is then
    corrected too. Otherwise the reference is taken to be exact.
    """
    mine = Moments.of(x)
    value = moments.frechet(mine, reference)
    without = moments.frechet_of_parts(_leave_one_out(x, block), mine, reference)
    corrected = value - bias(value, without)
    if reference_features is not None:
        other = _leave_one_out(reference_features, block_of(len(reference_features), 10))
        corrected -= bias(value, moments.frechet_of_parts(other, reference, mine))
    return Estimate(value, tuple(without), corrected)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x.y/d + 1)^3, KID's kernel."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(*widths: float) -> Kernel:
    """The mean over ``widths`` of exp(-|x - y|^2 / (2 width^2))."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = squared_distances(x, y)
        return sum((-squared / (2 * w * w)).exp() for w in widths) / len(widths)  # type: ignore[return-value]

    return kernel


def negative_distance(x: Tensor, y: Tensor) -> Tensor:
    """-|x - y|, whose kernel distance is the energy distance."""
    return -squared_distances(x, y).sqrt()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (n, m), never negative."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2).clamp_min_(0)


def median_distance(x: Tensor, y: Tensor, most: int = 1000) -> float:
    """Between points of both sets together."""
    both = torch.cat([x[:most], y[:most]]).double()
    return float(torch.nn.functional.pdist(both).median())


def _block_sums(kernel: Kernel, x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of k(x_i, x_j) over pairs of blocks, (g, g), and of k(x_i, x_i), (g,).

    A kernel is symmetric: each pair of different items is looked at once.
    """
    g = int(block.max()) + 1
    member = torch.nn.functional.one_hot(block, g).double()
    sums, diagonal = x.new_zeros(g, g), x.new_zeros(g)
    for start in range(0, len(x), ROWS):
        mine = member[start : start + ROWS]
        values = kernel(x[start : start + ROWS], x[start:])
        square = values[:, : len(mine)]
        pairs = mine.T @ (values @ member[start:])
        sums += pairs + pairs.T - mine.T @ (square @ mine)
        diagonal += mine.T @ square.diagonal()
    return sums, diagonal


def kernel_distance(
    kernel: Kernel, x: Tensor, block: Tensor, y: Tensor, unbiased: bool = True
) -> Estimate:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) of x (n, d) and y (m, d).

    unbiased: pairs of an item with itself are left out (the U-statistic), so that the mean over
    sets is right and values below 0 occur; otherwise they are in, as in CMMD's published code.
    """
    x, y = x.double(), y.double()
    counts = torch.bincount(block).double()
    within, diagonal = _block_sums(kernel, x, block)
    whole, own = _block_sums(kernel, y, torch.zeros(len(y), dtype=torch.long))
    member = torch.nn.functional.one_hot(block, len(counts)).double()
    between = torch.zeros_like(counts)
    for i in range(0, len(x), ROWS):
        between += member[i : i + ROWS].T @ kernel(x[i : i + ROWS], y).sum(1)
    m = len(y)
    of_y = float((whole - own) / (m * (m - 1)) if unbiased else whole / (m * m))

    def distance(kept: Tensor) -> float:
        n = float(counts @ kept)
        inside = float(kept @ within @ kept)
        of_x = (inside - float(diagonal @ kept)) / (n * (n - 1)) if unbiased else inside / (n * n)
        return of_x + of_y - 2 * float(between @ kept) / (n * m)

    everything = torch.ones(len(counts), dtype=torch.float64)
    value = distance(everything)
    without = [distance(1 - row) for row in torch.eye(len(counts), dtype=torch.float64)]
    corrected = value if unbiased else value - bias(value, without)
    return Estimate(value, tuple(without), corrected)


def permutation_p_value(
    kernel: Kernel, x: Tensor, y: Tensor, permutations: int = 200, seed: int = 0
) -> float:
    """How often sets of these sizes, drawn from x and y together, differ as much as x and y do."""
    both = torch.cat([x, y]).double()
    n, m = len(x), len(y)
    matrix = kernel(both, both).fill_diagonal_(0)
    generator = generator_of(seed)
    orders = [torch.arange(n + m)]
    orders += [torch.randperm(n + m, generator=generator) for _ in range(permutations)]
    first = torch.zeros(n + m, len(orders), dtype=torch.float64)
    for column, order in enumerate(orders):
        first[order[:n], column] = 1
    second = 1 - first
    inner, outer = matrix @ first, matrix @ second
    values = (first * inner).sum(0) / (n * (n - 1)) + (second * outer).sum(0) / (m * (m - 1))
    values -= 2 * (first * outer).sum(0) / (n * m)
    return float((values >= values[0]).double().mean())  # the first is the one observed


def sliced_w2(
    x: Tensor, block: Tensor, y: Tensor, directions: int = 200, seed: int = 0
) -> Estimate:
    """(mean over unit vectors u of W2(u.x, u.y)^2)^(1/2) of x (n, d) and y (m, d)."""
    generator = generator_of(seed)
    u = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=0)
    mine, other = (x.double() @ u).T, (y.double() @ u).T.sort(1).values

    def squared(kept: Tensor) -> float:
        return float(_squared_w2_on_lines(mine[:, kept].sort(1).values, other).mean())

    blocks = range(int(block.max()) + 1)
    value, without = squared(block >= 0), [squared(block != j) for j in blocks]
    unbiased = value - bias(value, without)
    return Estimate(
        math.sqrt(value), tuple(map(math.sqrt, without)), math.copysign(abs(unbiased) ** 0.5, value)
        if unbiased > 0 else 0.0,
    )  # fmt: skip


def _squared_w2_on_lines(x: Tensor, y: Tensor) -> Tensor:
    """Of sorted (L, n) and (L, m), exact for any sizes: quantile functions are steps; (L,)."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).square().mean(1)
    # In units of 1/(n m), so that equal levels are equal.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(levels, prepend=levels.new_zeros(1)).double() / (n * m)
    ix, iy = (levels - 1) // m, (levels - 1) // n
    return (x[:, ix] - y[:, iy]).square() @ widths


def inception_score(logits: Tensor, block: Tensor) -> Estimate:
    """exp E KL(p(c|x) || p(c)) of logits (n, classes): the mean over the blocks as splits.

    corrected: of all samples at once, without the bias in 1/n.
    """
    log_p = logits.double().log_softmax(1)

    def score(kept: Tensor) -> float:
        part = log_p[kept]
        marginal = part.logsumexp(0) - math.log(len(part))
        return math.exp(float((part.exp() * (part - marginal)).sum(1).mean()))

    g = int(block.max()) + 1
    splits = [score(block == j) for j in range(g)]
    total, rest = score(block >= 0), [score(block != j) for j in range(g)]
    without = tuple((sum(splits) - s) / (g - 1) for s in splits)
    return Estimate(sum(splits) / g, without, total - bias(total, rest))
