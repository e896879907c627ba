"""`suggest`: figures that are known of exact data, the published rule, and a config that trains."""

import math

import numpy as np
import pytest
import torch

from score_sde import Gaussian, GaussianMixture, build, cli, suggest
from score_sde.data import DataError, load_data
from score_sde.data.spec import make_spec
from score_sde.processes.sdes import VPSDE
from score_sde.sampling import sampling_of

pytestmark = pytest.mark.usefixtures("one_thread")
SETS = ["ring8", "moons", "checkerboard", "swissroll", "fashion_mnist", "shapes"]
PICTURES = ("fashion_mnist", "shapes")


def lost_nats(variances, noise: float) -> float:
    """Nats a dimension between N(0, C) and N(0, C + noise^2 I): half the mean log det ratio."""
    return float((0.5 * torch.log1p(noise**2 / variances)).mean())


@pytest.mark.parametrize("name", SETS)
def test_sigma_max_is_the_rule_of_pairwise_distances(name):
    data = load_data(name, scaling="symmetric" if name in PICTURES else "standard")
    advice = suggest(data)
    x = data.reference(3000).flatten(1)
    rule = float(torch.cdist(x, x).max())
    assert rule / 1.5 < advice.sigma_max.value < rule * 1.5
    assert advice.data_std.value == pytest.approx(float(x.std()), rel=0.05)


def test_truncation_at_t_min_is_small_on_exact_data():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    variances = torch.logspace(-4, 0, 6, dtype=torch.float64)
    thin = Gaussian(torch.zeros(6), turn @ torch.diag(variances) @ turn.T)
    wells = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.03**2)
    for data, least in ((thin, variances), (wells, torch.full((2,), 0.03**2).double())):
        x = data.sample(4000, seed=1)
        advice = suggest(x.float())
        # In the data's own units, as the model's range is (x - mean)/std.
        noise = advice.sigma_min.value * float(x.std())
        assert 1e-9 < lost_nats(least, noise) < 1e-3
        sde = VPSDE(t_min=1e-9)
        t = torch.tensor(advice.t_min.value, dtype=torch.float64)
        found = float(sde.sigma(t) / sde.alpha(t))
        assert found == pytest.approx(advice.sigma_min.value, rel=1e-3)


def test_the_end_of_time_is_the_gaussian_divergence():
    x = 3 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    values = (x - x.mean()) / x.std()
    sde, t = VPSDE(), torch.tensor(1.0).double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    covariance = alpha**2 * torch.cov(values.double().T) + sigma**2 * torch.eye(2)
    shift = (alpha * values.double().mean(0)).square().sum()
    expected = 0.5 * (covariance.trace() - 2 - torch.logdet(covariance) + shift)
    assert suggest(x).terminal.value == pytest.approx(float(expected), rel=1e-2, abs=1e-9)


def test_flips_are_for_symmetric_data_only():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (200, 1, 8, 8), generator=generator).to(torch.uint8)
    assert suggest(noise).flip.value
    leaning = (noise.float() / 2 + torch.linspace(0, 127, 8)).to(torch.uint8)
    advice = suggest(leaning)
    assert not advice.flip.value and "times as far" in advice.flip.reason


def test_the_config_trains_and_the_command_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["x", "--mode", "suggest", "--data", "moons", "--out", "moons_config.py"]) == 0
    assert "sigma_max" in capsys.readouterr().out
    words = ["x", "--config", "moons_config.py", "--workdir", "run", "--config.training.steps=3"]
    assert cli.main([*words, "--config.sampling.nfe=5", "--device=cpu"]) == 0
    for images in (load_data("fashion_mnist"), torch.zeros(20, 3, 16, 16, dtype=torch.uint8)):
        if isinstance(images, torch.Tensor):
            images[:, :, ::2] = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
        advice = suggest(images)
        settings = advice.config()
        build.check_sections(settings)
        for make in (build.build_training, build.build_objective):
            make(settings)
        sampling_of(settings.get("sampling"))
        spec = load_data("fashion_mnist").spec if advice.shape == (1, 28, 28) else None
        if spec is not None:
            build.build_model(settings, spec)


def test_networks_are_of_a_size_that_the_images_and_the_machine_allow(monkeypatch):
    """Odd sizes have one level; large images take fewer items a pass."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr("score_sde.diagnosis.suggest.machine_memory", lambda: 2**32)
    for size, levels, fits in (((27, 27), 1, 128), ((28, 32), 2, 64), ((32, 32), 3, 64),
                               ((96, 64), 4, 16)):  # fmt: skip
        items = torch.randint(0, 256, (12, 1, *size), generator=generator).to(torch.uint8)
        advice = suggest(items)
        assert (advice.levels.value, advice.batch_per_device.value) == (levels, fits), str(advice)
        spec = make_spec(items, "data", 0.0, 255.0, 256)
        build.build_model(advice.config(), spec)  # which refuses sizes that do not divide


def test_data_that_cannot_be_judged_are_refused():
    for data, said in (
        (torch.zeros(5, 2), "at least 10 items"),
        (torch.zeros(50, 2), "variance is 0"),
        (np.full((50, 2), np.nan), "not finite"),
    ):
        with pytest.raises(DataError, match=said):
            suggest(data)


def test_one_coordinate_is_enough():
    x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    advice = suggest(x)
    assert advice.shape == (1,) and 0 < advice.sigma_min.value < 0.032


def test_every_choice_has_a_figure_and_a_reason():
    advice = suggest(load_data("ring8"))
    for name, choice in advice.choices():
        assert choice.reason and name in str(advice)
    assert math.isclose(advice.log_sigma_mean.value, -0.5, abs_tol=0.05)  # data_std is 1
