"""What a user meets: methods and correctors of one's own, options as text, gradients, bad input."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
from conftest import correlated_gaussian
from pydantic import Field

from score_sde import VESDE, VPSDE, FlowSDE, log_likelihood, sample
from score_sde.checks import UserError
from score_sde.sampling import (
    SAMPLERS,
    Affine,
    Coefficients,
    Corrector,
    Predictor,
    PredictorCorrector,
    make_sampler,
    options_from_text,
)
from score_sde.sampling.correctors import Langevin
from score_sde.sampling.options import options_of
from score_sde.sampling.predictors import DDIM, ReverseDiffusion
from score_sde.scores import ScoreError, batches

F64 = torch.float64
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Gentle(Corrector):
    """A corrector of one's own."""

    size: float = 1e-3

    def step(self, run, x, t, a):
        size = self.size * float(run.sde.sigma(t)) ** 2
        return x + size * run.score(x, t) + (2 * size) ** 0.5 * run.noise()


@dataclass(frozen=True)
class AsDDIM(Affine):
    """A predictor of one's own: DDIM's step at eta = 0."""

    factor: float = 1.0

    def coefficients(self, sde, t, s):
        on_x = self.factor * sde.alpha(s) / sde.alpha(t)
        on_score = on_x * sde.sigma(t) ** 2 - sde.sigma(s) * sde.sigma(t)
        return Coefficients(on_x, on_score, torch.zeros_like(t))


class Midpoint(Predictor):
    """Two evaluations a step, which it does not say."""

    def step(self, run, x, t, s):
        flow = run.sde.reverse(run.score, eta=0.0)
        half = x - flow.drift(x, t) * (t - s) / 2
        return x - flow.drift(half, (t + s) / 2) * (t - s)


def exact():
    data = correlated_gaussian((3,))
    return VPSDE(), data.score(VPSDE())


def test_an_affine_method_is_its_coefficients():
    sde, score = exact()
    setting = {"seeds": range(4), "steps": 7, "dtype": F64}
    mine = sample(sde, score, (4, 3), method=AsDDIM(), grid="logsnr", **setting)
    ours = sample(sde, score, (4, 3), method="ddim", grid="logsnr", **setting)
    torch.testing.assert_close(mine, ours, rtol=1e-12, atol=1e-12)


def test_predictor_and_corrector_enter_by_object_name_or_path():
    sde, score = exact()
    setting = {"seeds": range(4), "steps": 5, "dtype": F64}
    named = {"predictor": "ddim", "predictor_options": {"eta": 0.5}, "snr": 0.2}
    one = sample(sde, score, (4, 3), method="pc", **named, **setting)
    method = PredictorCorrector(predictor=DDIM(eta=0.5), corrector=Langevin(snr=0.2))
    assert torch.equal(one, sample(sde, score, (4, 3), method=method, **setting))
    paths = {"predictor": "test_methods.AsDDIM", "corrector": "test_methods.Gentle"}
    result = sample(
        sde, score, (4, 3), method="pc", corrector_options={"size": 0.01}, return_info=True,
        **paths, **setting,
    )  # fmt: skip
    method = PredictorCorrector(AsDDIM(), Gentle(0.01))
    assert torch.equal(result.x, sample(sde, score, (4, 3), method=method, **setting))
    assert result.nfe == 5 * method.evaluations + 1 == 11
    with pytest.raises(UserError, match="option of test_methods.Gentle: 'snr' is unknown"):
        make_sampler("pc", corrector="test_methods.Gentle", snr=0.1)
    with pytest.raises(UserError, match="corrector 'langevn' is unknown. Did you mean 'langevin'"):
        make_sampler("pc", corrector="langevn")


def test_options_as_text_are_read_by_their_types():
    found = options_from_text(
        "pc", {"corrector": "annealed_langevin", "corrector_first": "false", "snr": "0.1",
               "corrector_steps": "2", "predictor.eta": "0.5"},
    )  # fmt: skip
    assert found == {
        "corrector": "annealed_langevin", "corrector_first": False, "snr": 0.1,
        "corrector_steps": 2, "predictor_options": {"eta": 0.5},
    }  # fmt: skip
    assert make_sampler("pc", **found).parts.predictor == ReverseDiffusion(eta=0.5)
    assert options_from_text("unipc", {"corrector": "false"}) == {"corrector": False}
    assert options_from_text("ancestral", {"variance": "0.5"}) == {"variance": 0.5}
    assert options_from_text("ancestral", {"variance": "transition"}) == {"variance": "transition"}
    assert options_from_text("adams", {"data_std": "none"}) == {"data_std": None}
    for method, name, text, message in (
        ("unipc", "corrector", "maybe", "options.corrector must be True or False"),
        ("unipc", "order", "2.5", "options.order must be a whole number"),
        ("ddim", "eta", "nan", "options.eta must be finite"),
        ("pc", "predictor.size", "1", "option of reverse_diffusion: 'size' is unknown"),
        ("ddim", "predictor.eta", "1", "option of ddim: 'predictor.eta' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            options_from_text(method, {name: text})


def test_a_method_that_takes_more_than_it_says_is_stopped():
    sde, score = exact()
    with pytest.raises(UserError, match="Midpoint took 2 .* for 1 step, .*evaluations = 1"):
        sample(sde, score, (2, 3), method=Midpoint(), nfe=21)
    assert sample(sde, score, (2, 3), method=Midpoint(), steps=4, return_info=True).nfe == 9


@pytest.mark.parametrize("method", ["adams", "heun", "ancestral", "dpmpp_2m", "pc"])
def test_gradients_are_those_of_finite_differences(method):
    """With respect to x_T and to a parameter of the score; nothing is recorded without grad."""
    sde, weight = VPSDE(), torch.tensor(1.3, dtype=F64, requires_grad=True)
    x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    options = {"data_std": 0.5} if method == "adams" else {}

    def run(x_T, weight, grad):
        def score(x, t):
            return -weight * torch.tanh(x) / (sde.alpha(t) ** 2 * 0.3 + sde.sigma(t) ** 2)

        x = sample(sde, score, x_T=x_T, method=method, steps=4, seeds=[1, 2], grad=grad, **options)
        return (x * torch.arange(1.0, 7.0, dtype=F64).reshape(2, 3)).sum()

    start = x_T.clone().requires_grad_()
    assert not run(start, weight, False).requires_grad
    run(start, weight, True).backward()
    h = 1e-6
    slope = (run(x_T, weight + h, False) - run(x_T, weight - h, False)) / (2 * h)
    assert float(weight.grad) == pytest.approx(float(slope), rel=1e-6)
    shift = torch.zeros_like(x_T)
    shift[1, 2] = h
    slope = (run(x_T + shift, weight, False) - run(x_T - shift, weight, False)) / (2 * h)
    assert float(start.grad[1, 2]) == pytest.approx(float(slope), rel=1e-6)


def test_a_closure_is_told_how_it_can_be_divided_and_its_bugs_stay():
    sde, score = exact()
    scale = torch.ones(6, 3)

    def told(x, t):
        return score(x, t) * scale

    assert sample(sde, told, (6, 3), steps=2).shape == (6, 3)
    with pytest.raises(ScoreError, match="takes 6 samples at a time but not 4 of them.*take"):
        sample(sde, told, (6, 3), steps=2, batch_size=4)

    def broken(x, t):
        return score(x, t).no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        sample(sde, broken, (6, 3), steps=2, batch_size=4)
    rows = [rows for rows, _ in batches(told, 6, 4)]
    assert rows == [slice(0, 4), slice(4, 6)]


def test_a_hook_that_replaces_the_state_is_noticed():
    """After it the last step is not corrected: the method goes on from what the hook gave."""
    sde, score = exact()
    x_T, clean = torch.randn(2, 3, dtype=F64), {"method": "adams", "data_std": 0.5, "steps": 8}
    same = sample(sde, score, x_T=x_T, hook=lambda x, t: None, **clean)
    assert torch.equal(same, sample(sde, score, x_T=x_T, **clean))
    zero = sample(sde, score, x_T=x_T, hook=lambda x, t: 0 * x, denoise=False, **clean)
    assert bool((zero == 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["adams", "ancestral", "rk45"])
def test_half_precision_states_are_computed_in_float32(dtype, method):
    sde, score = exact()
    options = {"data_std": 0.5} if method == "adams" else {}
    setting = {"method": method, "seeds": range(50), **options}
    setting |= {} if method == "rk45" else {"steps": 20}
    low = sample(sde, lambda x, t: score(x.float(), t).to(x.dtype), (50, 3), dtype=dtype, **setting)
    full = sample(sde, score, (50, 3), **setting)
    assert low.dtype == dtype
    assert float((low.float() - full).abs().max()) < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": 4}, "shape must be"),
        ({"shape": (4.0, 2)}, "shape .* whole number"),
        ({"steps": "5"}, r"steps must be a whole number \(got '5'\)"),
        ({"nfe": 2.5}, "nfe must be a whole number"),
        ({"seeds": 4}, "seeds must be a list"),
        ({"seeds": [0.2, 0.7, 1]}, "whole number"),
        ({"method": "DDIM"}, "Did you mean 'ddim'"),
        ({"method": SAMPLERS["heun"]}, "of type Predictor"),
        ({"method": "pc", "snr": "big"}, "options.snr must be a number"),
        ({"method": "ddim", "eta": math.nan}, "options.eta must be finite"),
        ({"noise_scale": math.nan}, "noise_scale"),
        ({"dtype": torch.int64}, "floating-point"),
        ({"method": "rk45", "rtol": math.inf}, "rtol must be finite"),
    ],
)
def test_bad_arguments_are_sentences(arguments, message):
    with pytest.raises(UserError, match=message):
        sample(VPSDE(), lambda x, t: -x, **{"shape": (3, 2), **arguments})


def test_a_state_of_integers_or_a_process_without_end_is_a_sentence():
    with pytest.raises(UserError, match="floating-point"):
        sample(VPSDE(), lambda x, t: -x, x_T=torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(UserError, match=r"t_max"):
        sde = FlowSDE(t_max=1.0)
        sample(sde, correlated_gaussian((2,)).score(sde), (3, 2), method="euler_maruyama")


def test_one_item_has_no_error_of_the_mean():
    sde, data = VESDE(), correlated_gaussian((2,))
    text = str(log_likelihood(sde, data.score(sde), data.sample(1, 0), nfe=16))
    assert "nan" not in text and "+-" not in text and "over 1 sample;" in text


def test_tables_are_written_from_those_of_samplers_and_modes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    sys.modules.pop("make_tables", None)
    import make_tables

    for path, mark, make in make_tables.BLOCKS:
        text = path.read_text()
        assert make_tables.filled(text, mark, make()) == text, (
            f"python docs/make_tables.py for {path}"
        )


SETTINGS = {"eta": (-1, "x", math.nan), "order": (-1, 7, 1.5), "rtol": (0, -1, math.inf),
            "atol": (0, "x"), "max_evaluations": (0, -1, 1.5), "safety": (0, -1),
            "exponent": (-1, math.nan), "data_std": (0, -1, math.inf), "snr": (0, -1),
            "churn": (-1, math.inf), "s_min": (-1,), "s_noise": (-1,), "corrector_steps": (0, 2.5),
            "variance": (2, "x"), "variable": ("x", 3), "prediction": ("x",), "solver": ("x",),
            "corrector": (3,)}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_wrong_settings_are_sentences_by_name_and_by_class(name):
    cls = SAMPLERS[name]
    for setting in options_of(cls).keys() & SETTINGS.keys():
        for value in SETTINGS[setting]:
            for ask in (lambda s, v: make_sampler(name, **{s: v}), lambda s, v: cls(**{s: v})):
                with pytest.raises(UserError, match=f"options.{setting} must be"):
                    ask(setting, value)


@dataclass(frozen=True)
class Timid(AsDDIM):
    """One of somebody's own, with a range of its own and no decorator."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5


def test_settings_of_ones_own_are_validated_by_their_annotations():
    assert make_sampler("test_methods.Timid", share=1).share == 1
    for value in (0, 2, "x", True):
        with pytest.raises(UserError, match="options.share must be"):
            make_sampler("test_methods.Timid", share=value)
