"""Guidance: what is exact about it, with any sampler, and what it costs."""

import math

import pytest
import torch
from torch import nn

from score_sde import (
    EDMSDE,
    VPSDE,
    FlowSDE,
    GaussianMixture,
    ScoreModel,
    guide,
    log_likelihood,
    sample,
)
from score_sde.checks import UserError
from score_sde.conditioning.rules import PlusPlus, Projected, ZeroStar
from score_sde.nets import UNet
from score_sde.processes.expand import expand
from score_sde.scores import nothing_like, take

pytestmark = pytest.mark.usefixtures("one_thread")
CENTRES = [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7], [0.0, 2.5], [2.0, 2.0]]
DATA = GaussianMixture(
    [0.3, 0.2, 0.2, 0.2, 0.1], CENTRES, [0.3, 0.2, 0.5, 0.2, 0.3], [0, 0, 1, 1, 2]
)
T = torch.tensor(0.4, dtype=torch.float64)


@pytest.fixture(params=[VPSDE(), FlowSDE(), EDMSDE(t_max=20.0)], ids=lambda s: type(s).__name__)
def scores(request):
    score = DATA.score(request.param)
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 0])
    return request.param, score.bind(class_labels=labels), score.bind(), labels


def net(**options):
    torch.manual_seed(0)
    small = dict(width=8, multipliers=(1, 2), blocks=1, attention=(), middle=("block",))
    made = UNet(1, (8, 8), **small | options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


def states(n=7, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scale_one_and_zero_are_the_two_scores_exactly(scores):
    sde, c, u, _ = scores
    x, times = states(), torch.full((7,), 0.4, dtype=torch.float64)
    for rule in ("cfg", Projected(momentum=0.0), ZeroStar()):
        for t in (T, times):
            assert torch.equal(guide(c, u, 1.0, rule=rule, rescale=0.7)(x, t), c(x, t))
            assert torch.equal(guide(c, u, 0.0, rule=rule, threshold=0.9)(x, t), u(x, t))
    # Where only some samples are beyond an interval, these have the conditional score exactly.
    late = times.clone()
    late[3:] = 0.05
    bound = float(sde.log_snr(torch.tensor(0.2)))
    mixed = guide(c, u, 3.0, interval=(-50.0, bound))(x, late)
    assert torch.equal(mixed[3:], c(x, late)[3:]) and not torch.allclose(mixed[:3], c(x, late)[:3])


def test_the_rules_are_their_formulas(scores):
    sde, c, u, _ = scores
    x, w = states(), 2.5
    alpha, sigma = sde.alpha(T), sde.sigma(T)

    def clean(s):
        return (x + sigma**2 * s) / alpha

    def dot(a, b):
        return (a * b).sum(1, keepdim=True)

    s_c, s_u = c(x, T), u(x, T)
    d_c, d_u = clean(s_c), clean(s_u)
    torch.testing.assert_close(guide(c, u, w)(x, T), s_u + w * (s_c - s_u))
    delta = d_c - d_u
    delta = delta * (0.3 / delta.norm(dim=1, keepdim=True)).clamp(max=1)
    along = dot(delta, d_c) / dot(d_c, d_c) * d_c
    want = d_c + (w - 1) * (delta - along + 0.2 * along)
    torch.testing.assert_close(guide(c, u, w, rule=Projected(0.2, 0.3)).denoise(x, T), want)
    plain = guide(c, u, w, rule=Projected(eta=1.0))(x, T)
    torch.testing.assert_close(plain, s_u + w * (s_c - s_u))
    g = guide(c, u, w, rescale=0.7).denoise(x, T)
    raw = guide(c, u, w).denoise(x, T)
    ratio = d_c.std(1, keepdim=True) / raw.std(1, keepdim=True)
    torch.testing.assert_close(g, 0.7 * ratio * raw + 0.3 * raw)
    low, high = -0.5, 2.0
    inside = guide(c, u, w, threshold=0.5, bounds=(low, high)).denoise(x, T)
    unit = (raw - (low + high) / 2) / ((high - low) / 2)
    far = unit.abs().quantile(0.5, dim=1, keepdim=True).clamp(min=1)
    want = (low + high) / 2 + (high - low) / 2 * unit.clamp(-far, far) / far
    torch.testing.assert_close(inside, want, rtol=1e-5, atol=1e-5)
    assert low - 1e-6 <= float(inside.min()) and float(inside.max()) <= high + 1e-6
    cut = guide(c, u, w, threshold=0.5).denoise(x, T)
    most = raw.abs().quantile(0.5, dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(cut, raw.clamp(-most, most) / most, rtol=1e-5, atol=1e-5)

    def velocity(s):
        return sde.drift(x, T) - 0.5 * sde.diffusion(T) ** 2 * s

    v_c, v_u = velocity(s_c), velocity(s_u)
    fitted = dot(v_c, v_u) / dot(v_u, v_u) * v_u
    star = guide(c, u, w, rule="zero_star")(x, T)
    torch.testing.assert_close(velocity(star), fitted + w * (v_c - fitted), rtol=1e-6, atol=1e-6)
    still = guide(c, u, w, rule=ZeroStar(zero_below=math.inf))(x, T)
    torch.testing.assert_close(velocity(still), torch.zeros_like(x), rtol=0, atol=1e-9)


def test_momentum_is_of_one_trajectory(scores):
    sde, c, u, _ = scores
    x = states()
    steps = [torch.tensor(t, dtype=torch.float64) for t in (0.9, 0.5, 0.3)]
    score = guide(c, u, 3.0, rule=Projected(eta=1.0, momentum=-0.5))
    first = [score(x, t) for t in steps]
    again = [score(x, t) for t in steps]  # the time has risen: a new trajectory
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    total = torch.zeros_like(x)
    for t, s in zip(steps, first, strict=True):
        d_c, d_u = c.denoise(x, t), u.denoise(x, t)
        total = d_c - d_u - 0.5 * total
        torch.testing.assert_close(sde.denoise(x, t, s), d_c + 2 * total)
    with pytest.raises(ValueError, match="momentum needs a sampler whose samples share"):
        score(x, torch.full((7,), 0.4))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("adams", {"nfe": 10, "data_std": 1.5}), ("ancestral", {"steps": 20}), ("pc", {"steps": 10}),
     ("heun", {"steps": 10}), ("dpmpp_3m_sde", {"steps": 12}), ("rk45", {}), ("adaptive_sde", {})],
)  # fmt: skip
def test_a_guided_sample_depends_on_its_seed_and_class_alone(method, settings):
    sde, labels = VPSDE(), torch.tensor([0, 1, 2, 1, 0])
    score = DATA.score(sde)
    given = {"method": method, "dtype": torch.float64, **settings}

    def guided(y):
        return guide(score.bind(class_labels=y), score.bind(), 2.0, interval=(-4.0, 3.0))

    whole = sample(sde, guided(labels), (5, 2), seeds=range(5), **given)
    parts = sample(sde, guided(labels), (5, 2), seeds=range(5), batch_size=2, **given)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    alone = sample(sde, guided(labels[3:4]), (1, 2), seeds=[3], **given)
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-6, atol=1e-6)


def test_a_doubled_batch_is_two_calls_and_one_where_guidance_is_off():
    model = ScoreModel(net(classes=3), VPSDE())
    calls = []
    model.net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 1, 0])
    c, u = model.bind(class_labels=labels), model.bind()
    joined = guide(c, u, 2.5)
    got = joined(x, T)
    assert joined.doubled and calls == [10]
    two = u(x, T) + 2.5 * (c(x, T) - u(x, T))
    torch.testing.assert_close(got, two, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(take(joined, torch.tensor([4, 1]))(x[[4, 1]], T), got[[4, 1]],
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    for other in (
        model.bind(class_labels=torch.tensor(2)),
        model.bind(class_labels=labels.flip(0)),
    ):
        calls.clear()
        got = guide(c, other, 2.5)(x, T)
        assert calls == [10]
        torch.testing.assert_close(got, other(x, T) + 2.5 * (c(x, T) - other(x, T)),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
    calls.clear()
    beyond = float(model.sde.log_snr(T)) + 1
    assert torch.equal(guide(c, u, 2.5, interval=(beyond, 9.0))(x, T), c(x, T))
    assert calls == [5, 5]
    weak = ScoreModel(net(classes=3, blocks=2), VPSDE()).bind(class_labels=labels)
    auto = guide(c, weak, 2.0)
    assert not auto.doubled
    torch.testing.assert_close(auto(x, T), weak(x, T) + 2 * (c(x, T) - weak(x, T)),
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def test_the_unconditional_half_is_what_training_was_told():
    """Bit for bit: rows of `nothing_like` in a batch of the same size and order."""
    model = ScoreModel(net(classes=3, text=6), VPSDE())
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    told = {"class_labels": torch.tensor([0, 2, 1, 1]), "text": torch.randn(4, 5, 6),
            "text_mask": torch.ones(4, 5, dtype=torch.bool)}  # fmt: skip
    dropped = {name: torch.cat([v, nothing_like(v)]) for name, v in told.items()}
    twice = torch.cat([x, x])
    want = model(twice, T, **dropped)[4:]
    pair = model.bind(**told).joined(model.bind(), 4)
    assert torch.equal(pair(twice, T)[4:], want)
    torch.testing.assert_close(model(x, T), want, rtol=1e-4, atol=1e-5)


def test_guided_learned_variances_are_the_conditional_ones():
    sde = VPSDE()
    model = ScoreModel(net(classes=3, out_channels=2), sde, learned_variance=True)
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    c, u = model.bind(class_labels=labels), model.bind()
    score, v = guide(c, u, 2.0).score_and_v(x, T)
    torch.testing.assert_close(score, u(x, T) + 2 * (c(x, T) - u(x, T)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v, c.score_and_v(x, T)[1], rtol=1e-4, atol=1e-5)
    drawn = sample(sde, guide(c, u, 2.0), x_T=x, method="ancestral", steps=5, variance="learned",
                   seeds=range(3))  # fmt: skip
    assert torch.isfinite(drawn).all()
    assert not hasattr(guide(lambda x, t: x, u, 2.0, sde=sde), "score_and_v")


def test_cfg_plus_plus_is_a_weight_of_the_grid():
    """A DDIM step with it is theirs: x_0 from the guided noise, renoised with the plain one."""
    sde, strength = VPSDE(), 0.6
    times = torch.linspace(1.0, 0.05, 6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 0])
    c, u = DATA.score(sde).bind(class_labels=labels), DATA.score(sde).bind()
    x = states()
    got = sample(sde, guide(c, u, PlusPlus.of(sde, times, strength)), x_T=x, method="ddim",
                 grid=times, denoise=False)  # fmt: skip
    for t, s in zip(times[:-1], times[1:], strict=True):
        eps_u, eps_c = (-expand(sde.sigma(t), x) * f(x, t) for f in (u, c))
        clean = (x - sde.sigma(t) * (eps_u + strength * (eps_c - eps_u))) / sde.alpha(t)
        x = sde.alpha(s) * clean + sde.sigma(s) * eps_u
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_a_guided_score_has_no_likelihood_unless_the_scale_is_one(scores):
    sde, c, u, labels = scores
    x = torch.stack([DATA.of_class(int(y)).sample(1, seed=i)[0] for i, y in enumerate(labels)])
    with pytest.raises(ValueError, match="guided by 2.0 is the score of no density"):
        log_likelihood(sde, guide(c, u, 2.0), x)
    found = log_likelihood(sde, guide(c, u, 1.0), x, nfe=24)
    assert torch.equal(found.nats, log_likelihood(sde, c, x, nfe=24).nats)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "at least 0 .got -1.0."),
        ({"scale": math.nan}, "finite or a function"),
        ({"interval": (3.0, 1.0)}, "interval is .lower, upper. in log-SNR"),
        ({"rescale": 1.5}, "rescale must be at most 1"),
        ({"threshold": 0.0}, "threshold must be greater than 0"),
        ({"rule": "cgf"}, "guidance rule 'cgf' is unknown. Did you mean 'cfg'"),
    ],
)
def test_what_guidance_cannot_be_is_said(options, message):
    score = DATA.score(VPSDE())
    with pytest.raises(UserError, match=message):
        guide(score, score, **{"scale": 2.0, **options})
    with pytest.raises(UserError, match="does not say of which process"):
        guide(lambda x, t: x, lambda x, t: x)
