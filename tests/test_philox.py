"""Random numbers by counter: the published ones, normal, of a seed alone, and as many as wanted."""

import pytest
import torch

from score_sde import VPSDE, Gaussian, sample
from score_sde.devices import pick_device
from score_sde.noise import PhiloxNoise
from score_sde.noise.philox import normal, philox
from score_sde.sampling.graphs import check_graph
from score_sde.sampling.plan import make_plan


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_words_are_those_published(counter, key, expected):
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in words] == expected


def test_numbers_are_normal_and_independent():
    z = normal(torch.arange(200), torch.tensor(0), (999,)).double()
    assert abs(float(z.mean())) < 0.01 and abs(float(z.var()) - 1) < 0.01
    assert abs(float((z**4).mean()) - 3) < 0.05 and abs(float((z**3).mean())) < 0.03
    assert 4.0 < float(z.abs().max()) < 7.0 and bool(torch.isfinite(z).all())
    for a, b in ((z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z[:, 4:], z[:, :-4])):
        assert abs(float((a * b).mean())) < 0.01
    share = float((z < -1.0).double().mean())
    assert share == pytest.approx(0.15866, abs=0.003)


def test_a_sample_depends_on_its_seed_alone():
    seeds = [3, 2**63 + 5, 2**62, 7]
    whole, part = PhiloxNoise(seeds, (5, 3)), PhiloxNoise(seeds[1:3], (5, 3))
    for _ in range(3):
        assert torch.equal(whole.draw()[1:3], part.draw())
    alone = PhiloxNoise(seeds[1:2], (5, 3))
    places = torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([1, 3])
    theirs = [whole.draw(which=w)[(w == 1).nonzero()[0, 0]] for w in places]
    for drawn in theirs:
        assert torch.equal(drawn, alone.draw(which=torch.tensor([0]))[0])
    assert not torch.equal(PhiloxNoise([2**40 + 1], (4,)).draw(), PhiloxNoise([1], (4,)).draw())


def test_it_samples():
    data = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.3, 0.1], [0.1, 0.2]]))
    sde = VPSDE()
    options = {"method": "ancestral", "steps": 200, "noise": "philox"}
    x = sample(sde, data.score(sde), (4000, 2), seeds=range(4000), **options)
    again = sample(sde, data.score(sde), (7, 2), seeds=range(7), batch_size=3, **options)
    torch.testing.assert_close(again, x[:7])
    torch.testing.assert_close(x.mean(0), torch.tensor([0.3, -0.2]), atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.tensor([[0.3, 0.1], [0.1, 0.2]]), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="Choose from seeded, philox, brownian"):
        sample(sde, data.score(sde), (2, 2), noise="other")


def test_graphs_are_refused_where_they_cannot_be():
    sde, data = VPSDE(), Gaussian(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="graph=True records CUDA's kernels, but samples are on c"):
        sample(sde, data.score(sde), (2, 2), graph=True)
    for method, grad, message in (
        ("rk45", False, "rk45 adapts to each"),
        ("ddim", True, "graph=True keeps nothing to differentiate"),
    ):
        steps = None if method == "rk45" else 3
        plan = make_plan(
            sde, (2, 2), None, method, steps, None, None, None, True, "seeded", 1.0, None, "cuda",
            None, {},
        )  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_graph(plan, grad)


def test_a_device_that_is_not_there_is_said(monkeypatch):
    sde, data = VPSDE(), Gaussian(torch.zeros(2), torch.eye(2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="a device that is here"):
        sample(sde, data.score(sde), (2, 2), device="cuda:2")
    with pytest.raises(ValueError, match="'cuda:2' is not available here; choose auto or one of"):
        pick_device("cuda:2")
    monkeypatch.undo()
    for name in ("xpu", "cuda:x", "meta", ""):
        with pytest.raises(ValueError, match="is not available here"):
            pick_device(name)
