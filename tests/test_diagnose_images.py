"""`diagnose_model` on images: the network of garments that ships, as it is and broken."""

import copy
import dataclasses
import hashlib

import pytest
import torch
from torch import nn

from score_sde import load
from score_sde.diagnosis import denoising, fields
from score_sde.diagnosis.denoising import deaf
from score_sde.diagnosis.diagnose import diagnose_model
from score_sde.diagnosis.subject import Subject
from score_sde.processes.targets import TARGETS
from score_sde.runs.diagnose import _items

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
N = 24  # items at each level, few, which makes it silent rather than wrong


class Asked(nn.Module):
    """A network that says again what it said of the same input: most faults ask it the same."""

    def __init__(self, net):
        super().__init__()
        self.net, self.said = net, {}

    def forward(self, x, noise_label):
        if torch.is_grad_enabled() and x.requires_grad:
            return self.net(x, noise_label)
        given = x.numpy().tobytes() + noise_label.numpy().tobytes()
        key = hashlib.sha256(given).digest()
        if key not in self.said:
            self.said[key] = self.net(x, noise_label)
        return self.said[key].clone()


class Around(nn.Module):
    """A network with something done to its output."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x, noise_label):
        return self.change(self.net(x, noise_label))


@pytest.fixture(autouse=True)
def fewer_measurements(monkeypatch):
    """Seven noise levels of nine; and no Fokker-Planck equation, which test_fields holds: no cause
    looks at it."""
    monkeypatch.setattr(denoising, "LEVELS", 7)
    monkeypatch.setattr(fields, "fokker_planck_residual", lambda *_: torch.full((1,), torch.nan))


@pytest.fixture(scope="module")
def garments():
    run = load("fashion", device="cpu")
    train, held_out, _, _ = _items(run, None)
    model = run.score.with_net(Asked(run.score.net))
    return model, train[:2000], held_out[:500], run.data_spec


def fresh(model):
    """The same network with the weights of a start."""
    torch.manual_seed(0)
    net = copy.deepcopy(model.net.net)
    for value in net.parameters():
        if value.ndim > 1:
            nn.init.kaiming_uniform_(value.data)
    return model.with_net(net)


def read(model, **settings):
    other = copy.copy(model)
    for name, value in settings.items():
        setattr(other, name, value)
    other.row_of = TARGETS[other.target]
    return other


def changed(model, change):
    return model.with_net(Around(model.net, change))


def noised(x):
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def shuffled(x):
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(0))
    return x.flatten(1)[:, order].reshape(x.shape)


def until(m, t_min):
    """The same model, of which sampling stops earlier."""
    return read(m, sde=dataclasses.replace(m.sde, t_min=t_min))


# model, raw, items and samples of each
BROKEN = {
    "EMA never updated": lambda m: {"model": fresh(m)},
    "wrong prediction type": lambda m: {"raw": read(m, target="v"), "model": read(m, target="v")},
    "wrong noise labels": lambda m: dict.fromkeys(
        ("model", "raw"), read(m, time_scale=3 * m.time_scale)
    ),
    "data not as in training": lambda m: {"seen": lambda x: x.flip(-2)},
    "loaded otherwise than trained": lambda m: {"seen": shuffled},
    "wrong data range": lambda m: {"seen": lambda x: x / 127.5 - 1},
    "t_min too large": lambda m: dict.fromkeys(("model", "raw"), until(m, 0.1)),
    "output is constant": lambda m: dict.fromkeys(("model", "raw"), changed(m, torch.ones_like)),
    "output scaled": lambda m: dict.fromkeys(("model", "raw"), changed(m, lambda out: 1.4 * out)),
    "output is random": lambda m: dict.fromkeys(
        ("model", "raw"), changed(m, lambda out: nn.functional.dropout(out, 0.1, training=True))
    ),
    "ignored t": lambda m: dict.fromkeys(("model", "raw"), deaf(m)),
    "bad sampler settings": lambda m: {"samples": noised},
}


def diagnosed(garments, model=None, raw=None, seen=lambda x: x, samples=None):
    score, train, held_out, spec = garments
    drawn = {}
    if samples is not None:
        drawn = {"samples": samples(held_out[:64]), "careful": held_out[64:128]}
    subject = Subject(model or score, raw or score, seen(train), seen(held_out), spec, **drawn)
    return diagnose_model(subject, N)


def test_nothing_is_found_in_the_model_that_ships(garments):
    found = diagnosed(garments, samples=lambda x: x)
    assert found.causes == (), str(found)


@pytest.mark.parametrize("cause", BROKEN)
def test_a_fault_put_into_it_is_named(cause, garments):
    found = diagnosed(garments, **BROKEN[cause](garments[0]))
    assert found.causes[:1] == (cause,), str(found)
