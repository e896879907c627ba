"""`evaluate`: what it reports, what it refuses, and that published code agrees."""

import json

import numpy as np
import pytest
import torch

from score_sde import evaluate
from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.evaluation import Statistics, neighbours
from score_sde.evaluation.classifier import FashionFeatures
from score_sde.evaluation.features import default_features, extract
from score_sde.evaluation.jackknife import block_of
from score_sde.evaluation.moments import Moments

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def garments():
    return load_data("fashion_mnist").raw[:600], load_data("fashion_mnist", split="test").raw[:300]


def vectors(n, seed, shift=0.0):
    return shift + torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def test_a_report_of_images_has_every_number_with_its_protocol(garments):
    train, test = garments
    report = evaluate(test, train, train=train, held_out=test[:200], protocol={"nfe": 39})
    assert set(report.measures) == {
        "frechet", "kid", "inception_score", "precision", "recall", "density", "coverage",
    }  # fmt: skip
    for measure in report.measures.values():
        assert np.isfinite([measure.value, measure.stderr]).all() and measure.stderr >= 0
        assert measure.real is not None and measure.protocol["n_real"] == 300
    assert report.frechet.label == "FD-fashion-classifier"  # it is not an FID
    assert report.frechet.corrected < report.frechet.value
    assert 6 < report.inception_score.value < 10
    saved = json.loads(report.to_json())
    for key in ("n", "n_reference", "reference_checksum", "extractor", "checksum", "resize",
                "preprocessing", "nfe"):  # fmt: skip
        assert saved["protocol"][key] is not None
    for fact in ("300 samples", "600 of", "fashion-classifier", "nfe 39"):
        assert fact in report.sentence
    assert not report.memorisation.found and "copying" in str(report)


def test_worse_images_are_further_in_every_number(garments):
    train, test = garments
    noisy = (test.float() + 30 * torch.randn(test.shape)).clamp(0, 255).to(torch.uint8)
    good, bad = evaluate(test, train), evaluate(noisy, train)
    assert bad.frechet.value > good.frechet.value + 5 * good.frechet.stderr
    assert bad.kid.value > good.kid.value + 5 * good.kid.stderr
    for name in ("precision", "density", "coverage"):
        assert bad.measures[name].value < good.measures[name].value


def test_vectors_need_no_features_and_scale_does_not_matter_where_it_should_not():
    report = evaluate(vectors(300, 0, 0.5), vectors(400, 1))
    assert report.frechet.value == pytest.approx(1.0, abs=0.3)  # 4 x 0.5^2
    assert report.c2st.value > 0.55 and report.energy.value > 5 * report.energy.stderr
    with pytest.raises(AttributeError, match="no 'kid'; it has frechet"):
        report.kid  # noqa: B018
    same = evaluate(vectors(300, 2), vectors(300, 2), measures=["frechet", "energy"])
    assert abs(same.frechet.value) < 1e-9 and "same set" in same.notes[0]


def test_what_cannot_be_compared_is_refused_with_a_sentence(garments):
    train, test = garments
    x = vectors(50, 3)
    for samples, reference, options, said in (
        (test[:100], train, {}, "100 samples are too few .* 128 features"),
        (x[:3], x, {}, "3 samples are too few"),
        (test.float() - 128, train, {}, "float images from -128 to 127; give uint8"),
        (test[:, :, :14], train, {}, r"\(1, 14, 28\) .* the reference of \(1, 28, 28\)"),
        (x, torch.zeros(50, 5), {}, r"shape \(4,\) and the reference \(5,\)"),
        (x[:0], x, {}, "shape \\(0, 4\\)"),
        (x * float("nan"), x, {}, "not finite"),
        (x, x, {"measures": ["fid"]}, "'fid' is unknown.* frechet"),
        (test, train, {"features": "fashon"}, "'fashon' is unknown. Did you mean 'fashion'"),
        (test, train, {"features": lambda images: images}, "must be \\(100, d\\)"),
        (test.long(), train, {}, "images of torch.int64, whose white"),
        (x[:2], x, {"measures": "energy"}, "2 samples are too few"),
        (
            x[:8],
            x,
            {"measures": "precision"},
            "precision cannot be had .* more than 10",
        ),
        (test, train, {"features": "pixels", "measures": "inception_score"}, "tell no classes"),
        (test, train, {"features": "math.pi"}, "callable on images"),
        (test, train, {"features": lambda images: images.flatten(1)[:, :0].float()}, "100, 0"),
        (
            x,
            x + 1,
            {"labels": -torch.ones(50).long(), "reference_labels": torch.ones(50).long()},
            "must be 0 or above",
        ),
        (test.expand(-1, 3, -1, -1), train.expand(-1, 3, -1, -1), {"features": "fashion"}, "grey"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(samples, reference, **options)
    assert evaluate(test[:100], train, measures=["kid"]).kid.stderr > 0
    assert evaluate(test[:100], train, measures=["frechet"], few=True).frechet.value > 0


def test_statistics_of_other_features_are_refused_and_their_own_agree(garments):
    train, test = garments
    report = evaluate(test, train, measures=["frechet"])
    features = extract(FashionFeatures(), train)
    saved = Statistics(Moments.of(features), 600, {"extractor": "fashion-classifier"})
    again = evaluate(test, saved)
    assert again.frechet.value == pytest.approx(report.frechet.value, rel=1e-9)
    with pytest.raises(UserError, match="made with extractor inception"):
        evaluate(test, Statistics(saved.moments, None, {"extractor": "inception"}))


def test_a_callable_of_ones_own_and_the_defaults(garments):
    train, test = garments

    def brightness(images):
        return images.float().flatten(2).mean(2)

    report = evaluate(test, train, features=brightness, measures=["frechet"])
    assert report.frechet.label == "FD-brightness" and report.protocol["extractor"] == "brightness"
    assert default_features(test) == "fashion"
    assert default_features(test.expand(-1, 3, -1, -1)) == "lite0"
    assert default_features(vectors(3, 0)) == "none"


def test_precision_recall_density_coverage_equal_prdc():
    prdc = pytest.importorskip("prdc")
    real, fake = vectors(400, 4).double(), vectors(350, 5, 0.3).double()
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=4)
    ours = neighbours.cover(fake, block_of(350, 10), real, k=4, k_density=4)
    for name in neighbours.Cover._fields:
        assert getattr(ours, name).value == pytest.approx(theirs[name], abs=1e-12)


def test_frechet_kid_precision_and_recall_equal_torch_fidelity():
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from score_sde.evaluation import distances

    generator = torch.Generator().manual_seed(0)
    fake, real = torch.randn(2, 400, 64, generator=generator, dtype=torch.float64)
    fake = fake * 1.1 + 0.1
    statistics = [fid_features_to_statistics(v) for v in (fake, real)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    block = block_of(400, 10)
    ours = distances.frechet(fake, block, Moments.of(real)).value
    assert ours == pytest.approx(theirs, rel=1e-6)
    # One subset of all items is the U-statistic of all pairs.
    theirs = kid_features_to_metric(fake, real, kid_subsets=1, kid_subset_size=400, verbose=False)
    ours = distances.kernel_distance(distances.cubic, fake, block, real).value
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    ours = neighbours.cover(fake, block, real)
    for name in ("precision", "recall"):  # theirs are float32: the same count of 400
        assert round(400 * theirs[name]) == pytest.approx(400 * getattr(ours, name).value)
    contiguous = torch.arange(400) // 40
    theirs = isc_features_to_metric(3 * fake, splits=10, shuffle=False, rng_seed=0)
    ours = distances.inception_score(3 * fake, contiguous).value
    assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
