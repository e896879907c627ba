"""What is given to processes, exact laws and scores: right values of any kind, or a sentence."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from score_sde import (
    SDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    ScoreMatching,
    ScoreModel,
    UNet,
    guide,
    log_likelihood,
    sample,
)
from score_sde.checks import UserError, real_tensor
from score_sde.processes.chain import Chain, cosine_betas, linear_betas

VP = VPSDE()
LAW = GaussianMixture([0.3, 0.7], [[0.0, 1.0], [-1.0, 0.5]], 0.25)
SCORE = LAW.score(VP)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool])
def test_states_of_integers_are_states(dtype):
    x = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    t, wide = torch.tensor([0.2, 0.7]), x.double()
    for given, want in (
        (LAW.log_prob(x), LAW.log_prob(wide)),
        (SCORE(x, t), SCORE(wide, t)),
        (SCORE.log_prob(x, t), SCORE.log_prob(wide, t)),
        (VP.denoise(x, t, SCORE), VP.denoise(wide, t, SCORE)),
        (VP.reverse(SCORE).drift(x, t), VP.reverse(SCORE).drift(wide, t)),
        (VP.prior_log_prob(x), VP.prior_log_prob(wide)),
        (Gaussian([0.0, 0.0], 0.5).flow(VP, x, t, t / 2),
         Gaussian([0.0, 0.0], 0.5).flow(VP, wide, t, t / 2)),
    ):  # fmt: skip
        assert given.is_floating_point()
        torch.testing.assert_close(given.double(), want, rtol=1e-5, atol=1e-5)


WRONG_TIMES = ["a", None, 1j, [0.1, "b"], torch.tensor([1j]), object()]


@pytest.mark.parametrize("t", WRONG_TIMES, ids=lambda t: type(t).__name__)
def test_what_is_no_time_is_a_sentence(t):
    x = torch.zeros(2, 2)
    for ask in (
        VP.alpha, VP.diffusion, VP.log_snr, lambda t: VP.marginal(x, t),
        lambda t: VP.transition(0.1, t), lambda t: VP.denoise(x, t, SCORE),
        lambda t: VP.reverse(SCORE).drift(x, t), lambda t: LAW.log_prob(x, VP, t),
    ):  # fmt: skip
        with pytest.raises(UserError, match="a time is a number"):
            ask(t)
    with pytest.raises(UserError, match="whole numbers from 1 to 100"):
        VP.discretize(100).marginal(x, t)


def test_times_may_be_lists_and_arrays():
    x, t = torch.ones(2, 2), torch.tensor([0.2, 0.7], dtype=torch.float64)
    for given in ([0.2, 0.7], np.array([0.2, 0.7]), (0.2, 0.7)):
        torch.testing.assert_close(VP.marginal(x, given), VP.marginal(x, t))
        torch.testing.assert_close(VP.transition(0.1, given), VP.transition(0.1, t))
    with pytest.raises(UserError, match="must have shape"):
        SCORE(x, torch.tensor([0.1, 0.2, 0.3]))


def test_a_transition_leads_to_later_times():
    a, b = VP.transition(0.5, 0.5)
    assert (float(a), abs(float(b))) == (1.0, 0.0)
    for s, t in ((0.5, 0.1), (torch.tensor([0.1, 0.9]), torch.tensor(0.5))):
        with pytest.raises(UserError, match="later or equal t"):
            VP.transition(s, t)


def own(**functions) -> type[SDE]:
    return dataclass(frozen=True)(type("Own", (SDE,), functions))


def test_functions_that_make_no_process_are_sentences():
    def t_like(self, t):
        return t

    for alpha, said in (
        (lambda self, t: 1.0, "torch.ones_like"),
        (lambda self, t: torch.ones(3), "of the shape of t"),
        (lambda self, t: None, "must be a tensor"),
        (lambda self, t: 1 + 0 * t, None),
        (t_like, "must fall from t_min to t_max"),
        (lambda self, t: t * t, "must fall"),
        (lambda self, t: t * math.nan, "no finite alpha"),
    ):
        if said is None:
            assert own(alpha=alpha, sigma=t_like)().t_max == 1
            continue
        with pytest.raises(UserError, match=said):
            own(alpha=alpha, sigma=t_like)()
    with pytest.raises(UserError, match="must fall"):
        own(alpha=lambda self, t: 1 + 0 * t, sigma=lambda self, t: 2 - t)()


def test_chains_draws_and_reversals_that_cannot_be_are_sentences():
    for n in (-1, 0, 1.5, "10", True, None, 10**9):
        for ask in (VP.discretize, linear_betas, cosine_betas):
            with pytest.raises(UserError, match="n must be"):
                ask(n)
    for betas in ([0.1], "x", torch.tensor([0.1, math.nan]), torch.tensor(0.1)):
        with pytest.raises(UserError):
            Chain(betas)
    for shape in (4, "ab", (-1, 2), (4,), (10**12, 2), (2.0, 2)):
        with pytest.raises(UserError):
            VP.prior_sample(shape)
    for score, eta in ((SCORE, -1), (SCORE, math.nan), (SCORE, "1"), (None, 1.0), (3, 1.0)):
        with pytest.raises(UserError, match="reverse: "):
            VP.reverse(score, eta)


X = torch.zeros(2, 2)
NOT_SCORES = [
    lambda x, t: None, lambda x, t: 0.0, lambda x, t: x[:, :1], lambda x, t: x[:1],
    lambda x, t: (x,), lambda x, t: np.zeros((2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("score", NOT_SCORES)
def test_scores_that_are_not_like_x_are_sentences_and_never_broadcast(score):
    with pytest.raises(UserError, match="must be a tensor like x"):
        sample(VP, score, shape=(2, 2), method="ddim", steps=2)
    with pytest.raises(UserError, match="must be a tensor like x"):
        log_likelihood(VP, score, X, nfe=8)
    for pair in ((SCORE, score), (score, SCORE)):
        with pytest.raises(UserError, match="must be a tensor like x"):
            sample(VP, guide(*pair, sde=VP), shape=(2, 2), method="ddim", steps=2)


def test_what_sample_cannot_start_from_or_go_on_with_is_a_sentence():
    def draw(**changed):
        return sample(VP, SCORE, method="ddim", steps=2, **{"shape": (2, 2), **changed})

    for changed, said in (
        ({"shape": None, "x_T": X.to_sparse()}, "dense"),
        ({"shape": None, "x_T": X.to("meta")}, "dense"),
        ({"device": "meta"}, "a device that is here"),
        ({"device": "cuda:99"}, "a device that is here"),
        ({"hook": lambda x, t: "x"}, "what hook returns"),
        ({"hook": lambda x, t: x[:, :1]}, "what hook returns"),
        ({"seeds": iter([1])}, "1 seeds do not fit 2 samples"),
        ({"seeds": iter([1, -1])}, "whole numbers"),
    ):
        with pytest.raises(UserError, match=said):
            draw(**changed)
    torch.testing.assert_close(draw(seeds=iter([3, 4])), draw(seeds=[3, 4]))
    with pytest.raises(UserError, match="bounds"):
        guide(SCORE, SCORE, bounds=(1.0, -1.0))


def test_numbers_are_tensors_whatever_holds_them():
    want = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    array = want.numpy()
    for given in (want, array, array.astype(">f4"), array[::-1][::-1], array.T.copy().T,
                  array.astype(">i2"), want.tolist()):  # fmt: skip
        torch.testing.assert_close(real_tensor(given, "x").float(), want)
    assert real_tensor([0.1, 0.2], "x").tolist() == [0.1, 0.2]  # in float64, as Python's are
    assert LAW.weights.tolist() == [0.3, 0.7] and Gaussian([0.1], 0.3).mean().tolist() == [0.1]
    for wrong in (
        "a",
        None,
        [["a"]],
        np.array(["a"]),
        array.astype(complex),
        object(),
        [[1], [2, 3]],
    ):
        with pytest.raises(UserError, match="x must be"):
            real_tensor(wrong, "x")


def test_laws_that_are_none_are_sentences():
    zero = [[0.0, 0.0]]
    for law in (
        lambda: GaussianMixture("a", zero, 1.0), lambda: GaussianMixture([1.0], "b", 1.0),
        lambda: GaussianMixture([1.0], zero, "c"), lambda: GaussianMixture([], [], 1.0),
        lambda: GaussianMixture([1.0], [[math.nan, 0.0]], 1.0),
        lambda: GaussianMixture([1.0], zero, math.nan), lambda: GaussianMixture([1j], zero, 1.0),
        lambda: GaussianMixture([1.0], zero, math.inf), lambda: Gaussian([], 1.0),
        lambda: Gaussian("a", 1.0), lambda: Gaussian([math.nan], 1.0),
        lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [0.0, 1.0]]), lambda: LAW.score(3),
        lambda: LAW.sample(0), lambda: LAW.sample(-1), lambda: LAW.sample(1.5),
        lambda: LAW.sample("3"), lambda: LAW.sample(10**13), lambda: LAW.sample(2, seed=-1),
        lambda: LAW.log_prob(X, VP), lambda: LAW.log_prob(X, None, 0.5),
        lambda: LAW.log_prob(X[:, :1]), lambda: LAW.log_prob(np.zeros((2, 2))),
    ):  # fmt: skip
        with pytest.raises(UserError):
            law()


def test_classes_are_bound_as_numbers_lists_and_tensors_and_must_be_there():
    net = UNet(1, (8, 8), width=8, groups=2, multipliers=(1, 2), attention=(), classes=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model, x, t = ScoreModel(net.eval(), VP), torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    with torch.no_grad():
        want = model.bind(class_labels=torch.tensor([1, 2]))(x, t)
        for given in ([1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2], dtype=torch.uint8)):
            torch.testing.assert_close(model.bind(class_labels=given)(x, t), want)
        assert not torch.equal(want, model.bind()(x, t))
        one = model.bind(class_labels=1)(x, t)
        torch.testing.assert_close(one, model.bind(class_labels=[1, 1])(x, t))
    for wrong in (3, [0, 5], -2, "a", [True, False], [[1], [2, 3]]):
        with pytest.raises(UserError, match="class_labels"):
            model.bind(class_labels=wrong)
    with pytest.raises(UserError, match="floating-point"):
        ScoreMatching()(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
