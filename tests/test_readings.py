"""Other ways to read a network, and what training logged: what data ask for, in numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_causes import DRAWN, LOG, Exact, subject

from score_sde.diagnosis.as_trained import Again, again, grown
from score_sde.diagnosis.in_network import asked_for, loading
from score_sde.diagnosis.ratios import Ratio, Slope
from score_sde.diagnosis.readings import readings
from score_sde.noise import generator_of

pytestmark = pytest.mark.usefixtures("one_thread")


def scale(net, name):
    found = readings(subject(net), 1000, generator_of(0))
    return next(r.share for r in found.by_kind["label scale"] if r.name == name)


def test_data_ask_for_nothing_of_a_change_to_what_is_right_and_for_all_of_one_that_is():
    """What a posterior mean misses is orthogonal to whatever a change of it would be."""
    for other in ("0.7", "1.4", "2"):
        share = scale(Exact(), other)
        assert abs(share.value) < 4 * share.stderr + 1e-3 and not asked_for(share)
    share = scale(Exact(scale=1.4 * 999.0), "1.4")
    assert abs(share.value - 1) < 4 * share.stderr and asked_for(share)


@pytest.mark.parametrize(
    ("share", "stderr", "said"),
    [(0.9, 0.05, True), (0.9, 0.3, False), (0.4, 0.01, False), (3.0, 0.1, False)],
)
def test_a_change_is_asked_for_when_surely_more_than_half_of_it_is(share, stderr, said):
    assert asked_for(Slope(share, stderr)) is said


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_what_training_logged_is_measured_again(factor):
    """Of f E[eps|x] in place of E[eps|x] the error is e + (1 - f)^2 (1 - e), by orthogonality."""
    found = again(subject(Exact(factor=factor), logged=LOG, drawn=DRAWN), 40_000, generator_of(1))
    assert [v.low for v in found] == [v.low for v in LOG]
    for v, logged in zip(found, LOG, strict=True):
        assert v.then == logged.error and v.ratio.log == pytest.approx(math.log(v.now / v.then))
    right = again(subject(Exact(), logged=LOG, drawn=DRAWN), 40_000, generator_of(1))
    for v, e in zip(found, (v.now for v in right), strict=True):
        assert v.now == pytest.approx(e + (1 - factor) ** 2 * (1 - e), rel=0.04)
    learned = [v.ratio.log for v in found if v.learned]
    assert 0 < len(learned) < len(LOG)  # at 0.98 of the trivial guess nothing was learned yet
    logs = torch.tensor(learned)
    assert grown(found).log == pytest.approx(float(logs.mean()), abs=0.5 * float(logs.std()) + 1e-6)


@pytest.mark.parametrize(("ratio", "said"), [(1.05, False), (1.3, True)])
def test_errors_a_little_larger_than_logged_at_all_noise_are_named(ratio, said):
    """No range is half as large again, but together they are surely larger."""
    one = Ratio.of(0.4 * ratio, 0.4, 0.01)
    ranges = [Again(low, 3 * low, 0.4, 0.4 * ratio, one, True) for low in (0.1, 0.3, 1.0)]
    asked = SimpleNamespace(
        again=ranges, facts={}, seen=[], subject=SimpleNamespace(log=[{"step": 1}]),
        pooled=lambda *of: Ratio(0.0, 1.0),
    )  # fmt: skip
    found = loading(asked)
    assert (found is not None) is said
    if said:
        assert found.cause == "loaded otherwise than trained" and "1.3 times" in found.evidence
