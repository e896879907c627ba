"""Distances against closed forms, published code and fresh draws."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.stats import betabinom, binomtest

from score_sde.evaluation import distances, moments, neighbours
from score_sde.evaluation.c2st import two_sample_accuracy
from score_sde.evaluation.jackknife import block_of
from score_sde.evaluation.memorisation import _beta_binomial_tail, binomial_interval, memorisation
from score_sde.evaluation.moments import Moments

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(n, d, seed=0, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


def by_qr(x, y):
    """The Frechet distance from the centred features themselves, without covariances."""
    ax, ay = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (x, y))
    rx, ry = torch.linalg.qr(ax).R, torch.linalg.qr(ay).R
    trace = torch.linalg.svdvals(rx @ ry.T).sum()
    squares = rx.square().sum() + ry.square().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + squares - 2 * trace)


def test_frechet_is_exact_for_gaussians_and_near_nought_for_one_set():
    a, b = normal(200, 8, 1, scale=2.0), normal(300, 8, 2, shift=1.0)
    mine = moments.frechet(Moments.of(a), Moments.of(b))
    root = scipy.linalg.sqrtm(np.cov(a.numpy().T) @ np.cov(b.numpy().T)).real
    traces = np.trace(np.cov(a.numpy().T)) + np.trace(np.cov(b.numpy().T))
    other = float((a.mean(0) - b.mean(0)).square().sum()) + traces - 2 * np.trace(root)
    assert mine == pytest.approx(other, rel=1e-8)
    # Diagonal covariances: sum (s_i - r_i)^2.
    s, r = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.0]).double()
    zero = torch.zeros(3).double()
    pair = [Moments.of_gaussian(100, zero, torch.diag(v**2)) for v in (s, r)]
    assert moments.frechet(*pair) == pytest.approx(1 + 0 + 9, rel=1e-12)


@pytest.mark.parametrize("n", [2000, 300])
def test_frechet_keeps_ten_digits_in_512_dimensions(n):
    mix = normal(512, 512, 3) * torch.logspace(0, -4, 512, dtype=torch.float64)
    x, y = normal(n, 512, 4) @ mix, normal(n, 512, 5) @ mix + 0.1
    found = moments.frechet(Moments.of(x), Moments.of(y))
    assert found == pytest.approx(by_qr(x, y), rel=1e-10)
    assert abs(moments.frechet(Moments.of(x), Moments.of(x))) < 1e-9 * float(x.var(0).sum())


def test_moments_merge_as_one_set_and_keep_digits_far_from_nought():
    x = normal(1001, 6, 6, shift=1e6)
    parts = [Moments.of(p) for p in x.split(137)]
    whole, once = moments.merged(parts), Moments.of(x)
    assert whole.n == 1001
    torch.testing.assert_close(whole.mean, once.mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(whole.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_kernel_distance_is_the_double_sum_and_unbiased():
    x, y = normal(40, 5, 7), normal(31, 5, 8, shift=0.5)
    block = block_of(40, 10)

    def direct(a, b, unbiased=True):
        kxx, kyy, kxy = (distances.cubic(p, q) for p, q in ((a, a), (b, b), (a, b)))
        if not unbiased:
            return float(kxx.mean() + kyy.mean() - 2 * kxy.mean())
        n, m = len(a), len(b)
        off = [(k.sum() - k.trace()) / (s * (s - 1)) for k, s in ((kxx, n), (kyy, m))]
        return float(sum(off) - 2 * kxy.mean())

    found = distances.kernel_distance(distances.cubic, x, block, y)
    assert found.value == pytest.approx(direct(x, y), rel=1e-12)
    assert found.without[3] == pytest.approx(direct(x[block != 3], y), rel=1e-10)
    biased = distances.kernel_distance(distances.cubic, x, block, y, unbiased=False)
    assert biased.value == pytest.approx(direct(x, y, False), rel=1e-12)
    same = [
        distances.kernel_distance(distances.cubic, normal(60, 5, s), block_of(60, 10),
                                  normal(60, 5, 100 + s)).value for s in range(60)
    ]  # fmt: skip
    assert min(same) < 0 and abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(60)


def test_energy_distance_and_sliced_w2_of_known_laws():
    n, d, shift = 4000, 16, 0.3
    x, y = normal(n, d, 9, shift), normal(n, d, 10)
    block = block_of(n, 10)
    found = distances.sliced_w2(x, block, y)
    # |m|/sqrt(d) = 0.3; a finite n adds 0.042^2 to its square, see evaluation of the same law.
    assert found.value == pytest.approx(math.hypot(0.3, 0.042), abs=0.03)
    # On the line W2 is that of sorted values, for unequal sizes that of quantile functions.
    a, b = normal(6, 1, 11), normal(4, 1, 12)
    longer = distances._squared_w2_on_lines(a.T.sort().values, b.T.sort().values)
    repeated = [v.repeat_interleave(12 // len(v), 0).T.sort().values for v in (a, b)]
    torch.testing.assert_close(longer, (repeated[0] - repeated[1]).square().mean(1))
    one, other = normal(3000, 1, 13, 1.0), normal(3000, 1, 14)
    energy = distances.kernel_distance(
        distances.negative_distance, one, block_of(3000, 10), other
    )  # 2 E|X - Y| - 2 E|X - X'| of N(1, 1) and N(0, 1)
    folded = 2 / math.sqrt(math.pi) * math.exp(-0.25) + math.erf(0.5)
    expected = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    assert abs(energy.value - expected) < 4 * energy.stderr


def test_c2st_and_permutations_see_a_shift_and_nothing_where_nothing_is():
    x, y, z = normal(500, 4, 15), normal(500, 4, 16), normal(500, 4, 17, shift=0.6)
    null = 0.5 + 4 * 0.5 / 1000**0.5  # of a binomial, four standard deviations
    assert two_sample_accuracy(x, y).value < null < two_sample_accuracy(x, z).value
    kernel = distances.gaussian(1.0, 2.0)
    assert distances.permutation_p_value(kernel, x, z, 100) < 0.02
    p_values = [
        distances.permutation_p_value(kernel, normal(80, 4, s), normal(80, 4, 50 + s), 40)
        for s in range(20)
    ]
    assert 0.25 < np.mean(p_values) < 0.75


def test_the_error_is_the_spread_of_fresh_sets_and_the_bias_goes():
    """d = 32, n = 500 against a known law: 40 sets."""
    d, n = 32, 500
    scale = torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    law = Moments.of_gaussian(10**9, torch.zeros(d), torch.eye(d))
    truth = float((scale - 1).square().sum())
    found = [distances.frechet(normal(n, d, s) * scale, block_of(n, 10, s), law) for s in range(40)]
    values, corrected = ([getattr(f, k) for f in found] for k in ("value", "corrected"))
    spread = np.std(values, ddof=1)
    assert np.mean([f.stderr for f in found]) == pytest.approx(spread, rel=0.2)
    assert np.mean(values) > truth + spread  # what the correction is for
    assert abs(np.mean(corrected) - truth) < spread


def test_neighbours_by_hand_and_their_errors():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [20.0], [0.6], [0.7], [2.5], [2.6]])
    block = torch.tensor([0, 0, 0, 1, 1, 1])
    found = neighbours.cover(fake, block, real, k=1, k_density=1)
    assert found.precision.value == pytest.approx(5 / 6)  # radii 1, 1, 1, 8: not 20
    assert found.density.value == pytest.approx((2 + 2 + 2 + 1 + 1 + 2) / 6, abs=0.34)
    assert found.coverage.value == pytest.approx(1.0)
    x, y = normal(300, 4, 20), normal(250, 4, 21)
    apart = x + 20 * torch.arange(300).remainder(10)[:, None]  # all neighbours in one block
    for fake, block in ((x, block_of(300, 10)), (apart, torch.arange(300).remainder(10)),
                        ((2 * x).round(), block_of(300, 10))):  # fmt: skip
        found = neighbours.cover(fake, block, y)
        for j in (0, 7):  # each part is that of the other samples alone
            kept = block != j
            alone = neighbours.cover(fake[kept], block_of(int(kept.sum()), 10), y)
            for name in neighbours.Cover._fields:
                assert getattr(found, name).without[j] == pytest.approx(
                    getattr(alone, name).value, abs=1e-12
                )


def test_the_interval_and_the_tail_are_scipys():
    for count, n in ((0, 20), (7, 20), (20, 20)):
        theirs = binomtest(count, n).proportion_ci(0.95, method="exact")
        assert binomial_interval(count, n) == pytest.approx((theirs.low, theirs.high))
    theirs = betabinom.sf(7 - 1, 100, 3, 400)
    assert _beta_binomial_tail(7, 100, 3, 400) == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize("d", [2, 16])
def test_planted_copies_are_found_and_clean_samples_cleared(d):
    """5 % of the samples are training items with little noise, 20 times; and none, 20 times."""
    found = {0.0: 0, 0.05: 0}
    for trial in range(20):
        train, test = normal(2000, d, 3 * trial), normal(600, d, 3 * trial + 1)
        for share in found:
            x = normal(600, d, 3 * trial + 2)
            copies = int(share * 600)
            x[:copies] = train[:copies] + 1e-3 * normal(copies, d, trial)
            result = memorisation(x, train, test)
            found[share] += result.found
            if share and d == 16:
                assert set(result.suspects[:copies]) == set(range(copies))
                assert set(result.sources[:copies]) == set(range(copies))
    assert found == {0.0: 0, 0.05: 20}


def test_memorisation_of_copies_alone_and_of_training_duplicates():
    train, test = normal(400, 8, 30), normal(400, 8, 31)
    doubled = torch.cat([train, train])
    copies = memorisation(train[:200] + 0.01 * normal(200, 8, 32), doubled, test)
    assert copies.found and copies.duplicates_in_training == 400
    assert copies.nearer_interval[0] > 0.95 and copies.c_t < -5 and copies.authentic < 0.05
    clean = memorisation(normal(400, 8, 33), train, test)
    assert not clean.found and abs(clean.c_t) < 4
    assert clean.nearer_interval[0] < 0.5 < clean.nearer_interval[1]
    assert clean.authentic == pytest.approx(clean.held_out_authentic, abs=0.12)
