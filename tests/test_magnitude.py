"""EDM2's U-Net: published sizes, features of unit magnitude, and the learned uncertainty."""

import math

import numpy as np
import pytest
import torch

from score_sde import EDMSDE, ScoreModel, train
from score_sde.checks import UserError
from score_sde.losses import ScoreMatching
from score_sde.nets.magnitude import MagnitudeUNet, UnitLayer, joined, mixed, silu

pytestmark = pytest.mark.usefixtures("one_thread")


def small(**changes):
    torch.manual_seed(0)
    options = dict(width=32, multipliers=(1, 2), blocks=1, attention=(8,), head_channels=16)
    return MagnitudeUNet(2, (16, 16), **{**options, **changes})


@pytest.mark.parametrize(
    ("name", "millions"), [("xs", 125), ("s", 280), ("m", 498), ("l", 777), ("xxl", 1523)]
)
def test_published_sizes(name, millions):
    """Of table 2 of the paper, with 1 000 classes and latents of 4 x 64 x 64."""
    with torch.device("meta"):
        net = MagnitudeUNet.preset(name, 4, (64, 64), classes=1000)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


def test_parts_keep_unit_magnitude():
    torch.manual_seed(0)
    a, b = torch.randn(4, 96, 16, 16), torch.randn(4, 32, 16, 16)
    for value in (silu(a), mixed(a, torch.randn_like(a), 0.3), joined(a, b),
                  UnitLayer(96, 64, 3)(a)[..., 1:-1, 1:-1], UnitLayer(96, 64, 1)(a)):  # fmt: skip
        assert float(value.detach().square().mean().sqrt()) == pytest.approx(1, abs=0.03)
    both = joined(a, b)
    shares = both[:, :96].square().sum(), both[:, 96:].square().sum()
    assert float(shares[0] / shares[1]) == pytest.approx(1, abs=0.03)


def test_features_stay_at_unit_magnitude_through_the_whole_network():
    net = small().eval()
    seen = []
    for block in [*net.encoder, *net.middle, *net.decoder]:
        block.register_forward_hook(
            lambda m, i, out: seen.append(float(out.square().mean() ** 0.5))
        )
    with torch.no_grad():
        net(torch.randn(8, 2, 16, 16), torch.zeros(8))
    assert len(seen) == 10 and all(0.8 < value < 1.2 for value in seen), seen


def test_weights_only_turn():
    """The scale of a weight changes nothing, and training brings it back to 1."""
    net = small()
    torch.nn.init.constant_(net.gain, 1.0)
    x, label = torch.randn(2, 2, 16, 16), torch.zeros(2)
    with torch.no_grad():
        before = net.eval()(x, label)
        for part in net.modules():
            if isinstance(part, UnitLayer):
                part.weight.mul_(7.0)
        torch.testing.assert_close(net(x, label), before, rtol=2e-3, atol=2e-3)
        net.train()(x, label)
    rows = net.encoder[0].conv0.weight.flatten(1).square().mean(1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=1e-3, atol=0)


def test_classes_and_none():
    net = small(classes=3, class_dropout=0.1).eval()
    torch.nn.init.constant_(net.gain, 1.0)
    for block in net.encoder:
        torch.nn.init.constant_(block.told_gain, 1.0)
    x, label = torch.randn(2, 2, 16, 16), torch.zeros(2)
    with torch.no_grad():
        none = net(x, label)
        torch.testing.assert_close(net(x, label, torch.tensor([-1, -1])), none, rtol=0, atol=0)
        assert float((net(x, label, torch.tensor([0, 2])) - none).abs().amax()) > 1e-3


def test_uncertainty_is_the_log_of_the_error_where_it_is_best(monkeypatch):
    """L / e^u + u is least at u = log L: from there, its gradient is 0 and its value 1 + log L."""
    model = ScoreModel(small(log_variance=True), EDMSDE(), target="F", data_std=0.5,
                       time_input="log_sigma")  # fmt: skip
    torch.manual_seed(1)
    x0, t, eps = torch.randn(4, 2, 16, 16) / 2, torch.full((4,), 0.7), torch.randn(4, 2, 16, 16)
    kept = []
    model.net.register_forward_hook(lambda net, told, out: kept.append(out.detach()))
    plain = ScoreMatching(weighting="edm")(model, x0, t, eps).loss.mean()
    learned = ScoreMatching(weighting="edm", uncertainty=True)
    u = float(model.log_variance(t)[0])
    value = learned(model, x0, t, eps).loss.mean()
    assert float(value) == pytest.approx(float(plain) / math.exp(u) + u, rel=1e-5)
    optimizer = torch.optim.Adam([model.net.uncertain.weight], 0.02)
    monkeypatch.setattr(model.net, "forward", lambda *told, **more: kept[0])  # does not change
    for _ in range(150):
        optimizer.zero_grad()
        learned(model, x0, t, eps).loss.mean().backward()
        optimizer.step()
    assert float(model.log_variance(t)[0]) == pytest.approx(math.log(float(plain)), abs=0.02)


def test_its_config_trains_and_resumes_exactly(tmp_path):
    random = np.random.default_rng(0)
    arrays = {"images": random.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)}
    np.savez(tmp_path / "x.npz", **arrays, labels=np.arange(12) % 3)
    changes = {
        "data.name": str(tmp_path / "x.npz"), "net.width": 16, "net.multipliers": (1, 2),
        "net.blocks": 1, "net.attention": (4,), "net.head_channels": 16, "training.batch_size": 4,
        "training.tensorboard": False, "training.sample_every": 0, "data.workers": 0,
        "training.ema_snapshot_every": 0, "training.decay": 0.0,
    }  # fmt: skip
    whole = train("edm_cifar:edm2", tmp_path / "whole", **changes, **{"training.steps": 3})
    train("edm_cifar:edm2", tmp_path / "parts", **changes, **{"training.steps": 1})
    parts = train("edm_cifar:edm2", tmp_path / "parts", True, **changes, **{"training.steps": 3})
    for name, value in whole.score.net.state_dict().items():
        torch.testing.assert_close(parts.score.net.state_dict()[name], value, rtol=0, atol=0)
    assert whole.sample(2, class_labels=1, method="ddim", steps=2).x.shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="loss.uncertainty=True needs a network"):
        train("edm_cifar:edm2", tmp_path / "r", **changes | {"net.log_variance": False})


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(UserError, match="15x16 does not divide by 2"):
        MagnitudeUNet(2, (15, 16), multipliers=(1, 2))
    with pytest.raises(UserError, match="Choose from xs, s, m, l, xl, xxl"):
        MagnitudeUNet.preset("huge", 4, (64, 64))
    with pytest.raises(UserError, match="log_variance=False"):
        small().log_variance(torch.zeros(1))
