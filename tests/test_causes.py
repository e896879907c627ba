"""`diagnose_model` on denoisers that are known exactly: sound ones, and each fault put into one.

Nothing is trained: the networks are exact posterior means, of the data or of something else.
"""

import math

import pytest
import torch
from torch import nn

from score_sde import VESDE, VPSDE, Gaussian, GaussianMixture, ScoreModel, sample
from score_sde.data.spec import DataSpec
from score_sde.diagnosis.denoising import measure, times_of
from score_sde.diagnosis.diagnose import diagnose_model
from score_sde.diagnosis.subject import Drawn, Logged, Subject
from score_sde.noise import generator_of
from score_sde.processes import FlowSDE

pytestmark = pytest.mark.usefixtures("one_thread")
SDE = VPSDE(t_min=1e-3)
ANGLES = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
CENTRES = 1.3 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
DATA = GaussianMixture([0.2] * 5, CENTRES, 0.15**2)
ITEMS = DATA.sample(3000, seed=1).float()
NEW = DATA.sample(1000, seed=2).float()
SPEC = DataSpec((2,))


class Exact(nn.Module):
    """eps of x under the law of some data, from the label 999 t; factor: of the output."""

    def __init__(self, data=DATA, factor=1.0, scale=999.0, heard=None, least=0.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))
        self.data, self.scale, self.heard, self.least = data, scale, heard, least

    def forward(self, x, noise_label):
        t = noise_label / self.scale if self.heard is None else self.heard + 0 * noise_label
        t = t.clamp(1e-4, 1.0)
        eps = -SDE.sigma(t)[:, None] * self.data.score(SDE)(x, t)
        known = (SDE.sigma(t) / SDE.alpha(t) > self.least)[:, None]
        return self.factor * torch.where(known, eps, x).to(x.dtype)


class Dropping(Exact):
    """With dropout that is never switched off."""

    def forward(self, x, noise_label):
        return nn.functional.dropout(super().forward(x, noise_label), 0.2, training=True)


class Backwards(Exact):
    """Told time from the noise to the data."""

    def forward(self, x, noise_label):
        return super().forward(x, self.scale - noise_label)


class Bounded(Exact):
    """With a last layer that reaches to 1."""

    def forward(self, x, noise_label):
        return super().forward(x, noise_label).clamp(-1, 1)


class Overflowing(Exact):
    """Infinite where there is little noise."""

    def forward(self, x, noise_label):
        found = super().forward(x, noise_label)
        return torch.where((noise_label < 50)[:, None], torch.inf * found, found)


class Guess(Exact):
    """x_0, and something else where noise is at most ``least``."""

    def forward(self, x, noise_label):
        t = (noise_label / 999.0).double()
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        x0 = (x - sigma * Exact()(x, noise_label)) / alpha
        known = sigma / alpha > self.least
        return (self.factor * torch.where(known, x0, 0.3 * x)).to(x.dtype)


class Crowded(Exact):
    """Normalised over the batch."""

    def forward(self, x, noise_label):
        found = super().forward(x, noise_label)
        return found - found.mean(0)


class OfNoise(nn.Module):
    """eps of x = x_0 + sigma eps, from log(sigma)/4."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x, noise_label):
        sigma = (4 * noise_label.double()).exp()[:, None]
        squared = torch.cdist(x.double(), CENTRES).square()
        near = torch.softmax(-squared / (2 * (0.15**2 + sigma**2)), 1) @ CENTRES
        return (self.factor * sigma * (x - near) / (0.15**2 + sigma**2)).to(x.dtype)


class Dead(nn.Module):
    """A network that says the same of everything."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, noise_label):
        return 0 * x + self.value


class OfClass(nn.Module):
    """eps given the class, which is the place of a mode after ``turn`` of them."""

    classes = 5

    def __init__(self, turn=0, knows=True):
        super().__init__()
        self.factor, self.turn, self.knows = nn.Parameter(torch.ones(())), turn, knows

    def forward(self, x, noise_label, class_labels):
        t = noise_label / 999.0
        if not self.knows:
            return self.factor * Exact()(x, noise_label)
        centre = CENTRES[(class_labels + self.turn) % 5].to(x.dtype)
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        return self.factor * sigma * (x - alpha * centre) / (alpha**2 * 0.15**2 + sigma**2)


def subject(net, raw=None, target="eps", items=ITEMS, sde=SDE, settings=None, **more):
    settings = settings or {}
    model = ScoreModel(net, sde, target, **settings).requires_grad_(False)
    other = model if raw is None else ScoreModel(raw, sde, target, **settings).requires_grad_(False)
    return Subject(model, other, items, more.pop("held_out", NEW), SPEC, **more)


def found(*given, **more):
    return diagnose_model(subject(*given, **more), n=256)


def test_identities_hold_for_an_exact_denoiser_and_not_for_another():
    right, wrong = subject(Exact()), subject(Exact(factor=0.8))
    source = generator_of(0)
    for t in times_of(right.model)[2:6]:
        level = measure(right, float(t), 2000, source)
        assert level.curl < 1e-5 and level.fokker_planck < 2e-3
        assert not (level.tweedie.off(0) or level.energy.off(0)) and level.energy.stderr < 0.05
        assert level.calibration == pytest.approx(1, abs=5 * level.calibration_stderr)
        assert level.ratio("model", "optimal").below(1.05)
    levels = [measure(wrong, float(t), 200, source) for t in times_of(wrong.model)[2:6]]
    assert max(level.fokker_planck for level in levels) > 0.03
    # eps is 0.8 of what it should be: the noise rises 1/0.8 times as fast as its guess.
    for level in levels:
        assert not level.energy._replace(value=0.8 * level.energy.value).off(0)
        assert level.energy.value == pytest.approx(1.25, abs=0.2)


def test_nothing_is_found_in_exact_denoisers():
    good = sample(SDE, DATA.score(SDE), shape=(400, 2), method="heun", steps=20, seeds=range(400))
    samples = good.float()
    for case in (found(Exact(), samples=samples, careful=samples),
                 found(OfClass(), labels=DATA_LABELS, held_out=None)):  # fmt: skip
        assert case.causes == (), str(case)
        assert "nothing found; checked were" in str(case)


DATA_LABELS = torch.cdist(ITEMS.double(), CENTRES).argmin(1)
FEW = ITEMS[:24]
OTHERS = torch.randn(4000, 2, generator=generator_of(3))
TIMES = 1e-3 + (1 - 1e-3) * torch.rand(20_000, generator=generator_of(5), dtype=torch.float64)
DRAWN = Drawn(TIMES, torch.ones_like(TIMES))
LOG = [Logged(0, 0.03, 0.98, 1.0, 0.02), Logged(0.03, 0.1, 0.8, 0.99, 0.02),
       Logged(0.1, 0.3, 0.41, 0.96, 0.02), Logged(0.3, 1, 0.48, 0.73, 0.02)]  # fmt: skip
"""What training said of the exact denoiser."""
BY_HEART = GaussianMixture([1 / 24] * 24, FEW.double(), 0.02**2)
LINEAR = Gaussian(ITEMS.double().mean(0), torch.cov(ITEMS.double().T))
FAULTS = {
    "weights not finite": lambda: found(Exact(factor=math.nan)),
    "EMA never updated": lambda: found(Exact(factor=0.0), raw=Exact()),
    "EMA lags": lambda: found(Exact(factor=0.7), raw=Exact()),
    "wrong prediction type": lambda: found(Exact(), target="x0"),
    "wrong noise labels": lambda: found(Exact(scale=3 * 999.0)),
    "wrong process": lambda: found(Exact(), sde=FlowSDE(t_min=1e-3)),
    "output scaled": lambda: found(Exact(factor=0.75)),
    "output bounded": lambda: found(Bounded()),
    "output not finite": lambda: found(Overflowing()),
    "sigma_max too large": lambda: found(
        OfNoise(), sde=VESDE(sigma_max=2000.0), settings={"time_input": "log_sigma"}
    ),
    "noise levels neglected": lambda: found(
        Guess(least=0.5),
        target="x0",
        trained=(0.01, 150.0),
        log=[{"step": 900, "loss": 1.0}],
        drawn=Drawn(TIMES, (-2 * SDE.log_snr(TIMES)).exp()),
    ),
    "output is constant": lambda: found(Dead()),
    "loaded otherwise than trained": lambda: found(
        Exact(), items=OTHERS[:3000], held_out=OTHERS[3000:], logged=LOG, drawn=DRAWN
    ),
    "t_min too large": lambda: found(Exact(), sde=VPSDE(t_min=0.1)),
    "output is random": lambda: found(Dropping()),
    "output depends on the batch": lambda: found(Crowded()),
    "data not as in training": lambda: found(Exact(), items=ITEMS.flip(1), held_out=NEW.flip(1)),
    "values cut off": lambda: found(Exact(), items=ITEMS.clamp(-1, 1), held_out=NEW),
    "ignored t": lambda: found(Exact(heard=0.15)),
    "wrong data range": lambda: found(Exact(), items=100 + 50 * ITEMS, held_out=None),
    "undertrained": lambda: found(Exact(LINEAR)),
    "overfit": lambda: found(Exact(BY_HEART), items=FEW),
    "noise levels not trained": lambda: found(Exact(least=0.8), trained=(0.9, 3.0)),
    "labels exchanged": lambda: found(OfClass(turn=1), labels=DATA_LABELS, held_out=None),
    "labels ignored": lambda: found(OfClass(knows=False), labels=DATA_LABELS, held_out=None),
    "bad sampler settings": lambda: found(
        Exact(), samples=NEW[:300] * 1.3 + 0.2 * torch.randn(300, 2), careful=NEW[300:600]
    ),
}


@pytest.mark.parametrize("cause", FAULTS)
def test_a_fault_put_into_an_exact_denoiser_is_named(cause):
    torch.manual_seed(0)
    said = FAULTS[cause]()
    assert said.causes[:1] == (cause,), str(said)
    assert said.findings[0].evidence and said.findings[0].fix
    said.to_dict()


def test_what_training_logged_is_no_fault_and_a_scale_that_it_did_not_see_is():
    log = [{"step": 900, "loss": 0.5, "data/std": 1.0}]
    assert found(Exact(), logged=LOG, drawn=DRAWN, log=log).causes == ()
    larger = found(Exact(), items=1.6 * ITEMS, held_out=1.6 * NEW, log=log)
    assert larger.causes == ("data not as in training",)


def test_items_learned_by_heart_are_named_without_held_out_ones():
    copies = FEW.repeat(13, 1) + 1e-3 * torch.randn(312, 2, generator=generator_of(4))
    for items, net, samples, said in ((FEW, Exact(BY_HEART), copies, ("overfit",)),
                                      (ITEMS, Exact(), NEW[:300], ())):  # fmt: skip
        case = found(net, items=items, held_out=None, samples=samples, careful=samples)
        assert case.causes == said, str(case)


def test_doubled_rates_of_the_process_are_wrong_noise_labels():
    assert found(Exact(), sde=VPSDE(beta_max=40.0, t_min=1e-3)).causes == ("wrong noise labels",)


def test_labels_of_another_kind_and_time_that_runs_backwards_are_wrong_noise_labels():
    for case, fix in (
        (found(Exact(), settings={"time_input": "log_sigma"}), "model.time_input=time"),
        (found(Backwards()), "time from 0 at the data"),
    ):
        assert case.causes == ("wrong noise labels",), str(case)
        assert fix in case.findings[0].fix


def test_networks_that_saw_scaled_inputs_are_read_as_such():
    """Loaded as eps, a network of the target F is shown inputs that it has never seen."""

    class Preconditioned(Exact):
        def forward(self, x, noise_label):
            t = SDE.time_of_log_snr(-2 * noise_label.double() / 0.25)
            alpha, sigma = (v[:, None] for v in (SDE.alpha(t), SDE.sigma(t)))
            radius = (sigma**2 + (0.5 * alpha) ** 2).sqrt()
            x = x.double() * radius
            eps = -sigma * self.data.score(SDE)(x, t)
            x0 = (x - sigma * eps) / alpha
            return (self.factor * (sigma * x0 - 0.25 * alpha * eps) / (0.5 * radius)).to(ITEMS)

    settings = {"data_std": 0.5, "time_input": "log_sigma"}
    for target, said in (("F", ()), ("eps", ("wrong prediction type",))):
        model = ScoreModel(Preconditioned(), SDE, target, **settings).requires_grad_(False)
        case = diagnose_model(Subject(model, model, ITEMS, NEW, SPEC), n=256)
        assert case.causes == said, str(case)


def test_an_ignored_t_is_named_however_little_was_learned():
    """Of a network deaf to t the output does not change; one that knows nothing yet may hear it."""

    class Slight(Exact):
        def forward(self, x, noise_label):
            return 0.01 * self.factor * (x * noise_label[:, None] / 999.0).sin()

    assert found(Exact(heard=0.9)).causes[0] == "ignored t"
    assert "ignored t" not in found(Slight()).causes


def test_too_few_items_make_it_silent_rather_than_wrong():
    """With six items a level nothing short of a gross fault is sure."""
    for seed in range(6):
        case = diagnose_model(subject(Exact(), held_out=NEW), n=6, seed=seed)
        assert case.causes == (), str(case)
