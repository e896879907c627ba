"""Networks about what is left of a mean: the mean of the data, or of the class that is told."""

import pytest
import torch
from torch import nn

from score_sde import VPSDE, Gaussian, export_run, load, train
from score_sde.checks import UserError
from score_sde.data.sources import ArrayData
from score_sde.data.spec import DataSpec
from score_sde.models import ScoreModel
from score_sde.processes.targets import TARGETS
from score_sde.runs.configs import load_config
from score_sde.runs.means import means_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Zero(nn.Module):
    """A network that says nothing, and keeps what it was shown."""

    classes = 3

    def __init__(self, means):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("means", means)

    def forward(self, x, noise_label, class_labels=None):
        self.seen = x
        return self.weight * x


MEANS = torch.randn(4, 2, 3, generator=torch.manual_seed(0), dtype=torch.float64)


def model(target="F", **options):
    return ScoreModel(Zero(MEANS), VPSDE(), target, data_std=0.7, center=True, **options)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_is_predicted_is_shifted_by_the_mean(target):
    """By definition: x_0 = m + x_0' where the same network, without means, says x_0' of x'."""
    found = model(target, scale_input=False)
    plain = ScoreModel(found.net, found.sde, target, data_std=0.7, scale_input=False)
    nn.init.constant_(found.net.weight, 0.3)
    x, t = torch.randn(4, 2, 3, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 1.0])
    labels = torch.tensor([0, 2, -1, 1])
    mean = MEANS[labels]
    alpha = found.sde.alpha(t)[:, None, None]
    rest, noise = plain.split(x - alpha * mean, t)
    x0, eps = found.split(x, t, class_labels=labels)
    torch.testing.assert_close(x0, mean + rest, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(eps, noise, rtol=1e-5, atol=1e-5)


def test_a_network_of_nothing_is_the_score_of_a_gaussian_about_the_mean():
    found, t = model(), torch.tensor(0.6, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for label, mean in ((1, MEANS[1]), (-1, MEANS[3])):
        exact = Gaussian(mean.flatten(), 0.7**2).score(VPSDE())(x.flatten(1), t)
        got = found.bind(class_labels=torch.tensor(label))(x, t)
        torch.testing.assert_close(got.flatten(1), exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(found(x, t), found.bind(class_labels=torch.tensor(-1))(x, t))


def test_shares_of_classes_have_the_mean_of_their_means():
    found, t = model(), torch.tensor(0.6)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    found.net.classes = None  # rows of numbers
    shares = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    found.denoise(x, t, class_labels=shares)
    scaled = found.net.seen * torch.sqrt((found.sde.alpha(t) * 0.7) ** 2 + found.sde.sigma(t) ** 2)
    mean = (x - scaled) / found.sde.alpha(t)
    want = torch.stack([MEANS[1], (2 * MEANS[0] + MEANS[1] + MEANS[2]) / 4, MEANS[3]])
    torch.testing.assert_close(mean, want, rtol=1e-4, atol=1e-5)


def test_means_are_those_of_the_data_by_class():
    raw = torch.randn(700, 2, 3)
    labels = torch.randint(0, 3, (700,), generator=torch.manual_seed(1))
    spec = DataSpec(name="x", shape=(2, 3), shift=0.5, scale=2.0, classes=("a", "b", "c", "none"))
    means = means_of(ArrayData(raw, {"class_labels": labels}, spec), 4).float()
    items = spec.to_model(raw)
    for k in range(3):
        torch.testing.assert_close(means[k], items[labels == k].mean(0))
    torch.testing.assert_close(means[3], items.mean(0))  # a class without items
    torch.testing.assert_close(means[4], items.mean(0))


CONFIG = {
    "data": {"name": "fashion_mnist", "scaling": "standard"},
    "sde": {"name": "vp", "t_min": 0.003},
    "net": {"name": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1, "patch": 2,
            "attention": (), "middle": ("block",)},
    "model": {"target": "F", "time_input": "log_sigma", "center": True},
    "loss": {"weighting": "edm"},
    "conditioning": {"classes": True, "dropout": 0.1},
    "training": {"batch_size": 8, "steps": 2, "warmup_steps": 1, "sample_every": 0,
                 "tensorboard": False},
    "sampling": {"method": "dpmpp_2m", "nfe": 3, "batch_size": 8},
}  # fmt: skip


def test_a_run_keeps_its_means(tmp_path):
    run = train(CONFIG, tmp_path / "r", device="cpu")
    means = run.score.net.means
    assert means.shape == (11, 1, 28, 28)
    items = run.data()
    pixels = run.data_spec.to_model(items.raw)
    labels = items.condition["class_labels"]
    torch.testing.assert_close(means[4], pixels[labels == 4].mean(0), rtol=1e-4, atol=1e-5)
    x = run.sample(4, class_labels="Bag", guidance=2.0).x
    export_run(tmp_path / "r", tmp_path / "e")
    again = load(tmp_path / "e", device="cpu")
    assert torch.equal(again.score.net.means, means)
    assert torch.equal(again.sample(4, class_labels="Bag", guidance=2.0).x, x)
    more = train(None, tmp_path / "r", resume=True, device="cpu", **{"training.steps": 3})
    assert torch.equal(more.score.net.means, means)
    with pytest.raises(UserError, match="what is left of a mean"):
        export_run(tmp_path / "r", tmp_path / "d", "diffusers")


def test_centers_that_cannot_be_are_sentences(tmp_path):
    with pytest.raises(UserError, match="buffer `means`"):
        ScoreModel(nn.Linear(2, 2), VPSDE(), center=True)
    changes = {"model.learned_variance": True, "loss.variance_weight": 1e-3}
    with pytest.raises(UserError, match="learned_variance=False"):
        train(CONFIG, tmp_path / "r", device="cpu", **changes | {"loss.times": "discrete"})
    assert not (tmp_path / "r").exists()


def test_a_run_from_before_means_goes_on(tmp_path):
    model = {key: value for key, value in CONFIG["model"].items() if key != "center"}
    train(CONFIG | {"model": model}, tmp_path / "r", device="cpu")
    today = CONFIG | {
        "model": {**model, "center": load_config("vp_cifar").to_dict()["model"]["center"]}
    }
    run = train(today, tmp_path / "r", resume=True, device="cpu", **{"training.steps": 3})
    assert run.step == 3 and not run.score.center
    with pytest.raises(UserError, match=r"model.center \(None there, True here\)"):
        train(CONFIG, tmp_path / "r", resume=True, device="cpu", **{"training.steps": 4})
