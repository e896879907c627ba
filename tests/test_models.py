"""Score models: every target is the same prediction in other words."""

import pytest
import torch
from conftest import correlated_gaussian, times_of
from torch import nn

from score_sde import EDMSDE, VPSDE, ScoreModel
from score_sde.processes.targets import TARGETS

F64 = torch.float64


class Oracle(nn.Module):
    """A network that says exactly what a target asks for, about one Gaussian."""

    def __init__(self, sde, data, target, data_std=1.0):
        super().__init__()
        self.sde, self.data, self.target, self.data_std = sde, data, target, data_std
        self.x = self.t = None

    def forward(self, inputs, label):
        x0 = self.data.score(self.sde).denoise(self.x, self.t)
        alpha, sigma = (f(self.t)[:, None] for f in (self.sde.alpha, self.sde.sigma))
        eps = (self.x - alpha * x0) / sigma
        a, b = TARGETS[self.target](self.sde, self.t, self.data_std)
        return a[:, None] * x0 + b[:, None] * eps


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_gives_the_same_score(sde, target):
    data, t = correlated_gaussian((3,)), times_of(sde, 6)
    x = torch.randn(6, 3, dtype=F64) * sde.sigma(t)[:, None]
    net = Oracle(sde, data, target, 0.7)
    net.x, net.t = x, t
    model = ScoreModel(net, sde, target=target, data_std=0.7)
    torch.testing.assert_close(model(x, t), data.score(sde)(x, t), rtol=1e-7, atol=1e-7)
    x0 = data.score(sde).denoise(x, t)
    torch.testing.assert_close(model.denoise(x, t), x0, rtol=1e-6, atol=1e-8)
    rebuilt = sde.alpha(t)[:, None] * model.denoise(x, t) + sde.sigma(t)[:, None] * model.eps(x, t)
    torch.testing.assert_close(rebuilt, x)


def test_F_is_edms_preconditioning():
    """2206.00364, table 1: D = c_skip x + c_out F(c_in x, c_noise)."""
    sde, sd = EDMSDE(), 0.5
    seen = {}

    class Net(nn.Module):
        def forward(self, x, label):
            seen.update(x=x, label=label)
            return torch.sin(x)

    x, t = torch.randn(4, 3), torch.tensor([0.01, 0.3, 2.0, 60.0])
    model = ScoreModel(Net(), sde, target="F", data_std=sd, time_input="log_sigma")
    sigma = t[:, None]
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / (sigma**2 + sd**2).sqrt()
    c_in = 1 / (sigma**2 + sd**2).sqrt()
    torch.testing.assert_close(model.denoise(x, t), c_skip * x + c_out * torch.sin(c_in * x))
    torch.testing.assert_close(seen["label"], t.log() / 4)
    torch.testing.assert_close(seen["x"], c_in * x)


def test_the_score_points_to_the_data():
    """The sign: with mass at 3, the score at 0 is positive."""
    sde = VPSDE()

    class SaysNoise(nn.Module):
        def forward(self, x, label):  # the true eps for x_0 = 3
            t = (label / 999)[:, None]
            return (x - sde.alpha(t) * 3) / sde.sigma(t)

    model = ScoreModel(SaysNoise(), sde)
    assert float(model(torch.zeros(1, 1), torch.tensor([0.3]))) > 0


def test_network_sees_float32_labels_of_shape_b_and_dtypes_are_kept():
    seen = []

    class Net(nn.Module):
        def forward(self, x, label):
            seen.append((x.dtype, label.dtype, label.shape))
            return x

    model = ScoreModel(Net(), VPSDE())
    for t in (torch.tensor(0.5, dtype=F64), torch.full((4,), 0.5)):
        out = model(torch.randn(4, 2, dtype=F64), t)
        assert out.dtype == F64
    assert seen == [(torch.float32, torch.float32, (4,))] * 2


def test_bf16_autocast_is_around_the_network_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, label):
            out = self.layer(x)
            assert out.dtype == torch.bfloat16
            return out

    model = ScoreModel(Net(), VPSDE(), precision="bf16")
    assert model.eps(torch.randn(3, 2), torch.tensor(0.4)).dtype == torch.float32


def test_sampling_mode_and_conditions_pass_through():
    class Net(nn.Module):
        def forward(self, x, label, y):
            return x * y[:, None]

    model = ScoreModel(Net(), VPSDE())
    x, y = torch.ones(3, 2), torch.tensor([0.0, 1.0, 2.0])
    assert torch.equal(model.eps(x, torch.tensor(0.5), y=y)[:, 0], y)
    assert model.training  # evaluation changes no mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "noise"}, "model.target 'noise' is unknown"),
        ({"time_input": "sigma"}, "model.time_input"),
        ({"precision": "fp8"}, "model.precision"),
        ({"data_std": 0}, "greater than 0"),
    ],
)
def test_bad_settings_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreModel(nn.Identity(), VPSDE(), **arguments)


class Seen(nn.Module):
    """A network that keeps what it was given, and predicts variances too."""

    def forward(self, inputs, label):
        self.inputs, self.label = inputs, label
        return torch.cat([inputs, 100 + inputs], 1)


def test_what_the_network_is_told():
    """label = scale * time + shift; the nearest entry of a table of sigma/alpha; 2 x - 1."""
    net, sde = Seen(), EDMSDE()
    x, t = torch.rand(3, 2), torch.tensor([0.1, 1.0, 70.0])
    model = ScoreModel(net, sde, time_input="time", time_scale=10.0, time_shift=-1.0)
    model = model.with_net(net)  # which keeps every setting
    out = model.output(x, t)
    torch.testing.assert_close(net.label, 10 * t - 1)
    assert torch.equal(out, x) and torch.equal(net.inputs, x)  # the means, not the variances

    model = ScoreModel(net, sde, time_input="nearest", time_table=[0.02, 0.9, 1.2, 80.0])
    model = model.with_net(net)
    model.output(x, t)
    assert net.label.tolist() == [0.0, 1.0, 3.0]
    model.output(x, torch.tensor(1.1))
    assert net.label.tolist() == [2.0, 2.0, 2.0]
    vp = VPSDE()
    level = vp.sigma(torch.tensor(0.5)) / vp.alpha(torch.tensor(0.5))
    ScoreModel(net, vp, time_input="nearest", time_table=[0.0, float(level), 9.0]).output(
        x, torch.tensor([0.001, 0.5, 1.0])
    )
    assert net.label.tolist() == [0.0, 1.0, 2.0]

    model = ScoreModel(net, sde, center_input=True, scale_input=False).with_net(net)
    model.output(x, t)
    torch.testing.assert_close(net.inputs, 2 * x - 1)

    for wrong in ({"time_input": "nearest"}, {"time_table": [1.0]}):
        with pytest.raises(ValueError, match="time_table goes with"):
            ScoreModel(net, sde, **wrong)
