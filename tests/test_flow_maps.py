"""Maps of the flow: their mathematics on closed-form data, and their runs."""

import math

import pytest
import torch
from torch import nn

from score_sde import (
    EDMSDE,
    VESDE,
    VPSDE,
    FlowSDE,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    sample,
)
from score_sde.checks import UserError
from score_sde.models import FlowMap, angle, angle_speed, time_of_angle
from score_sde.nets import MLP, UNet
from score_sde.noise import StepRandomness
from score_sde.runs.teacher import Teacher
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.map_matching import MapMatching, Pair

pytestmark = pytest.mark.usefixtures("one_thread")
PROCESSES = [VPSDE(), VESDE(t_min=0.01), FlowSDE(t_max=0.99), EDMSDE()]
WIDTH = 0.7  # of the Gaussian data


class ExactMap(nn.Module):
    """F of the exact map of N(0, WIDTH^2): x_s = x_t std_s / std_t, for model.target = F."""

    def __init__(self, sde):
        super().__init__()
        self.sde, self.nothing = sde, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, noise_label, second_label):
        theta, end = torch.atan(noise_label.exp()), second_label * math.pi / (2 * 999)

        def std(u):  # of z at an angle, where data_std is 1
            return torch.hypot(u.cos() * WIDTH, u.sin())

        turn = (theta - end)[:, None]
        exact = (turn.cos() - (std(end) / std(theta))[:, None]) / turn.sin().clamp(min=1e-12)
        here = ((1 - WIDTH**2) * theta.sin() * theta.cos() / std(theta) ** 2)[:, None]
        return -x * torch.where(turn > 1e-9, exact, here)


def exact(sde):
    return FlowMap(ExactMap(sde), sde, target="F", time_input="log_sigma", time_scale=1.0)


def pairs(sde, n=16, **settings):
    torch.manual_seed(1)
    return MapMatching(**settings).draw_times(exact(sde), n, "cpu").double().unbind(1)


def noisy(sde, t, data_std=WIDTH):
    x0 = data_std * torch.randn(len(t), 3, dtype=torch.float64)
    mean, std = sde.marginal(x0, t)
    return mean + std * torch.randn_like(x0)


def small(sde, seed=0, **settings):
    """A network with weights of all sizes, in float64."""
    torch.manual_seed(seed)
    net = MLP(3, 16, 2, second_time=True).double()
    nn.init.normal_(net.last.weight, std=0.3)
    nn.init.normal_(net.second.weight, std=0.05)
    return FlowMap(net, sde, target="F", time_input="log_sigma", time_scale=3.0, **settings)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
def test_angles_turn_with_the_process(sde):
    t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
    theta = angle(sde, t, 0.6)
    torch.testing.assert_close(time_of_angle(sde, theta, 0.6), t, rtol=1e-6, atol=1e-9)
    rate = torch.func.jvp(lambda u: angle(sde, u, 0.6), (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(angle_speed(sde, t, 0.6), rate, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [4, None])
def test_the_rate_vanishes_for_the_exact_map_of_a_gaussian(sde, steps):
    model, (s, t) = exact(sde), pairs(sde, steps=steps)
    x, data = noisy(sde, t), Gaussian(torch.zeros(3), WIDTH**2)
    end = model.landing(s)
    want = x * (torch.hypot(sde.alpha(end) * WIDTH, sde.sigma(end))
                / torch.hypot(sde.alpha(t) * WIDTH, sde.sigma(t)))[:, None]  # fmt: skip
    torch.testing.assert_close(model.jump(x, t, s), want, rtol=1e-6, atol=1e-8)
    eps = -sde.sigma(t)[:, None] * data.score(sde)(x, t)
    flow = Pair((x - sde.sigma(t)[:, None] * eps) / sde.alpha(t)[:, None], eps)
    rate = MapMatching().rate(model, x, s, t, flow)
    assert rate.abs().max() < 1e-6
    wrong = MapMatching().rate(model, x, s, t, Pair(flow.x0, 1.1 * eps))
    assert wrong.abs().max() > 0.05


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
def test_exact_maps_follow_one_another(sde):
    model = exact(sde)
    times = time_of_angle(sde, torch.tensor([0.3, 0.8, 1.3], dtype=torch.float64), 1.0)
    r, s, t = (u.expand(5) for u in times)
    x = noisy(sde, t)
    two = model.jump(model.jump(x, t, s), s, r)
    torch.testing.assert_close(two, model.jump(x, t, r), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
def test_a_map_stands_still_at_its_own_time_and_is_a_score_there(sde):
    model = small(sde)
    t = pairs(sde)[1]
    x = noisy(sde, t)
    torch.testing.assert_close(model.jump(x, t, t), x, rtol=1e-6, atol=1e-9)
    rate = MapMatching().rate(model, x, t, t, Pair(*model.split(x, t)))
    assert rate.abs().max() < 1e-7  # v of its own score


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
def test_the_derivative_is_the_limit_of_differences(sde):
    model, (s, t) = small(sde), pairs(sde)
    x0, eps = torch.randn(2, 16, 3, dtype=torch.float64)
    mean, std = sde.marginal(x0, t)
    given = model, mean + std * eps, s, t, Pair(x0, eps)
    rate = MapMatching().rate(*given)
    out = model.direction(mean + std * eps, t, s)
    errors = [
        (MapMatching(gap=gap)._difference(*given, out, {}) - rate).abs().max().item()
        for gap in (1e-4, 1e-5)
    ]
    assert errors[1] < 0.2 * errors[0] < 0.1 * float(rate.detach().abs().max())


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
def test_a_teacher_is_followed_over_the_gap_by_steps_of_second_order(sde):
    data, t = Gaussian(torch.zeros(3), WIDTH**2), torch.full((16,), 0.5 * sde.t_max).double()
    model, x = small(sde), noisy(sde, t)
    u = time_of_angle(sde, 0.5 * angle(sde, t, 1.0), 1.0)
    stds = (torch.hypot(sde.alpha(v) * WIDTH, sde.sigma(v))[:, None] for v in (u, t))
    want, ends = x * next(stds) / next(stds), (angle(sde, t, 1.0), angle(sde, u, 1.0))
    errors = []
    for steps in (8, 16, 32):
        objective = MapMatching(gap=1.0).of_teacher(lambda: data.score(sde), steps)
        landed = objective._follow(model, x, *ends, objective._taught(model, x, t, {}), {})
        errors.append(float((landed - want).square().mean().sqrt()))
    assert 3.2 < errors[0] / errors[1] < 5 and 3.5 < errors[1] / errors[2] < 4.6, errors


def test_a_gap_of_one_is_one_step_of_the_teacher():
    sde = VPSDE()
    model = small(sde)
    s, t = torch.full((4,), 0.3).double(), torch.full((4,), 0.6).double()
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    mean, std = sde.marginal(x0, t)
    x = mean + std * eps
    out = model.direction(x, t, s)
    rate = MapMatching(gap=1.0)._difference(model, x, s, t, Pair(x0, eps), out, {})
    turn = (angle(sde, t, 1.0) - angle(sde, s, 1.0))[:, None]
    ddim, _ = sde.marginal(x0, s)
    ddim = ddim + sde.sigma(s)[:, None] * eps
    radius = torch.hypot(sde.alpha(s), sde.sigma(s))[:, None]
    here = model.jump(x, t, s)
    torch.testing.assert_close(rate * turn * radius, here - ddim, rtol=1e-6, atol=1e-7)


def test_pairs_of_times_are_intervals_of_the_grids():
    sde = VPSDE()
    s, t = pairs(sde, 4000)
    assert bool((s < t).all()) and bool((t >= sde.t_min).all()) and bool((t <= sde.t_max).all())
    ends = {0.0}
    for n in (2, 3, 4):
        grid = torch.linspace(*angle(sde, torch.tensor([sde.t_min, 1.0]), 1.0).tolist(), n + 1)
        ends |= {round(float(time_of_angle(sde, v, 1.0)), 4) for v in grid[1:-1]}
    assert {round(v, 4) for v in s.tolist()} <= ends and len(ends) == 6
    assert 0.45 < float((s == 0).double().mean()) < 0.6  # (1 + 1/2 + 1/3 + 1/4) / 4
    s, t = pairs(sde, 4000, steps=None, same=0.25)
    assert 0.2 < float((s == t).double().mean()) < 0.3 and bool((s <= t).all())


def test_a_student_starts_as_its_teacher():
    torch.manual_seed(0)
    teacher = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(), classes=3)
    nn.init.normal_(teacher.conv_in.weight, std=0.3)
    student = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(), classes=3,
                   second_time=True)  # fmt: skip
    missing, unknown = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not unknown and all("second" in name for name in missing)
    sde, x, t = VPSDE(), torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9])
    labels = torch.tensor([0, 2])
    score = ScoreModel(teacher, sde).eval().bind(class_labels=labels)
    model = FlowMap(student, sde).eval().bind(class_labels=labels)
    x0, eps = score.split(x, t)
    s = torch.tensor([0.1, 0.0])
    ddim = sde.alpha(s)[:, None, None, None] * x0 + sde.sigma(s)[:, None, None, None] * eps
    assert torch.equal(model(x, t), score(x, t))
    torch.testing.assert_close(model.jump(x, t, s), ddim, rtol=1e-5, atol=1e-5)


def test_samples_depend_on_their_seeds_alone():
    model = small(VPSDE(), data_std=0.6)
    model.net.float()
    for options in ({}, {"renoise": True}):
        given = {"method": "flow_map", "steps": 3, "data_std": 0.6, **options}
        whole = sample(model.sde, model, (5, 3), seeds=range(5), return_info=True, **given)
        parts = sample(model.sde, model, (5, 3), seeds=range(5), batch_size=2, **given)
        torch.testing.assert_close(whole.x, parts, rtol=1e-5, atol=1e-6)
        assert whole.nfe == 3
    x_T = torch.randn(4, 3)
    one = sample(model.sde, model, x_T=x_T, method="flow_map", data_std=0.6, nfe=1)
    t = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(one, model.jump(x_T, t, torch.tensor(0.0)), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="this is a score"):
        sample(VPSDE(), Gaussian(torch.zeros(3), 1.0).score(VPSDE()), (2, 3), method="flow_map",
               data_std=1.0)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_unet_has_a_derivative_in_any_layout_and_precision(precision):
    torch.manual_seed(0)
    net = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,), second_time=True)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.7 / layer.weight[0].numel() ** 0.5)
    sde = VPSDE()
    model = FlowMap(net.to(memory_format=torch.channels_last).eval(), sde, target="F",
                    time_input="log_sigma", time_scale=3.0, precision=precision)  # fmt: skip
    x0, eps = torch.randn(2, 3, 1, 8, 8).double()
    t, s = torch.tensor([0.3, 0.6, 0.9]).double(), torch.tensor([0.0, 0.2, 0.3]).double()
    mean, std = sde.marginal(x0, t)
    x = mean + std * eps
    with torch.no_grad():
        half = x.float(), s.float(), t.float(), Pair(x0.float(), eps.float())
        rate = MapMatching().rate(model, *half)
        assert model.precision == precision
        model.precision, _ = "fp32", model.net.double()
        out = model.direction(x, t, s)
        near = MapMatching(gap=1e-5)._difference(model, x, s, t, Pair(x0, eps), out, {})
    assert (rate - near).norm() < 2e-3 * near.norm()


def test_a_guided_teacher_is_guided_and_told():
    data = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.0]], 0.3, [0, 1])
    score, x = data.score(VPSDE()), torch.randn(4, 2)
    labels, t = torch.tensor([0, 1, 1, -1]), torch.full((4,), 0.4)
    told, plain = score.bind(class_labels=labels), score.bind()
    found = Teacher(None, score, 2.0, "")(class_labels=labels)
    torch.testing.assert_close(found(x, t), 2 * told(x, t) - plain(x, t))
    assert Teacher(None, score, 1.0, "")(class_labels=labels) == told


def test_what_is_random_in_a_loss_is_a_function_of_seed_and_step():
    model, objective = small(VPSDE()), MapMatching()
    random = StepRandomness(3, 7, 8)
    random.for_times()
    one = objective.draw_times(model, 8, "cpu")
    random.for_times()
    assert torch.equal(one, objective.draw_times(model, 8, "cpu"))


RING = GaussianMixture(
    [1 / 8] * 8,
    [[1.4 * math.cos(k * math.pi / 4), 1.4 * math.sin(k * math.pi / 4)] for k in range(8)],
    0.02,
)


def map_errors(model, n=300):
    """Of 1, 2 and 4 steps: the rms error on the mixture, in units of its spread."""
    torch.manual_seed(3)
    sde, x_T = model.sde, model.sde.prior_std() * torch.randn(n, 2)
    given = {"method": "adams", "data_std": 1.0, "steps": 50}
    want = sample(sde, RING.score(sde), x_T=x_T.double(), **given).float()
    given["method"] = "flow_map"
    drawn = [sample(sde, model, x_T=x_T, **given | {"steps": k}) for k in (1, 2, 4)]
    return [float((got - want).square().mean().sqrt()) / RING.std() for got in drawn]


def test_training_finds_the_map_of_a_mixture():
    torch.manual_seed(0)
    net = MLP(2, 64, 3, second_time=True)
    model = FlowMap(net, VPSDE(), target="F", time_input="log_sigma", time_scale=5.0)
    assert min(map_errors(model)) > 0.4
    settings = TrainingSettings(128, None, 100, lr=4e-3, betas=(0.9, 0.99), warmup_steps=20,
                                decay=0.7, ema_sigma_rel=0.1)  # fmt: skip
    objective = MapMatching(gap=0.2).of_teacher(lambda: RING.score(VPSDE()))
    trainer = Trainer(model, objective, settings, seed=1)
    for k in range(100):
        trainer.update(RING.sample(128, seed=k).float())
    assert max(map_errors(model.with_net(trainer.ema.net))) < 0.35
