"""The end of a map's training: Frechet distances in a teacher's features, and their gradient."""

import shutil

import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from score_sde import VPSDE, sample, train
from score_sde.checks import UserError
from score_sde.losses import LossTerms
from score_sde.models import FlowMap, ScoreModel
from score_sde.nets import UNet
from score_sde.runs.distill import distill, student_config
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.checkpoints import load_checkpoint
from score_sde.training.moments import BlockFeatures, Law, MomentMatching
from score_sde.training.objective import Ending

pytestmark = pytest.mark.usefixtures("one_thread")
MEAN = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0], [0.6, 0.3, 0], [-0.2, 0.1, 0.5]], dtype=torch.float64)


def with_moments(n, mean, root, seed=0):
    """n points whose mean and covariance (over n - 1) are exactly mean and root root'."""
    z = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.manual_seed(seed))
    z = z - z.mean(0)
    whitened = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    return mean + whitened @ root.T


def test_the_distance_is_that_of_two_gaussians():
    law = Law.of(with_moments(50, MEAN, ROOT))
    root = torch.diag(torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64))
    other = with_moments(9, torch.zeros(3, dtype=torch.float64), root, seed=1)
    c, d = ROOT @ ROOT.T, root @ root.T
    cross = sqrtm((c @ d).numpy()).real.trace()
    exact = (MEAN.square().sum() + c.trace() + d.trace() - 2 * cross) / c.trace()
    assert float(law.distance(other)) == pytest.approx(float(exact), rel=1e-9)
    assert float(law.distance(with_moments(20, MEAN, ROOT, seed=2))) == pytest.approx(0, abs=1e-9)
    assert float(law.distance(MEAN.expand(4, 3))) == pytest.approx(1)


def test_the_gradient_is_right_and_points_to_the_optimal_transport():
    law, x = Law.of(with_moments(50, MEAN, ROOT)), torch.randn(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(law.distance, x.requires_grad_())
    root = 2 * torch.eye(3, dtype=torch.float64)
    x = with_moments(40, torch.zeros(3, dtype=torch.float64), root).requires_grad_()
    (found,) = torch.autograd.grad(law.distance(x), x)
    c = ROOT @ ROOT.T  # from N(0, 4) to N(mean, C): x -> mean + C^1/2 x / 2
    there = MEAN + x @ torch.as_tensor(sqrtm(c.numpy()).real) / 2
    off = there - x
    around, along = off - off.mean(0), off.mean(0)
    step = 2 * around / 39 + 2 * along / 40
    torch.testing.assert_close(found * c.trace(), -step, rtol=1e-6, atol=1e-9)


class Affine(nn.Module):
    """The x_0 of a map in one step: A x + b, for model.target = x0."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.eye(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x, noise_label, second_label):
        return x @ self.a.T + self.b


def test_training_gives_samples_the_moments_of_the_data():
    torch.manual_seed(0)
    model = FlowMap(Affine(), VPSDE(), target="x0", scale_input=False)
    real = with_moments(4000, MEAN, ROOT)
    objective = MomentMatching.towards(lambda x: [x], real.split(500), (1,), 1024)
    settings = TrainingSettings(8, None, 300, lr=2e-2, warmup_steps=5, decay=0.9, grad_clip=0.0,
                                ema_sigma_rel=0.1)  # fmt: skip
    trainer = Trainer(model, objective, settings)
    for _ in range(300):
        trainer.update(torch.zeros(8, 3))
    net = trainer.ema.net
    torch.testing.assert_close(net.b.double(), MEAN, rtol=0, atol=0.02)
    torch.testing.assert_close((net.a @ net.a.T).double(), ROOT @ ROOT.T, rtol=0, atol=0.04)


def pixels_map(seed=0):
    torch.manual_seed(seed)
    net = UNet(1, (8, 8), width=8, multipliers=(1, 2), blocks=1, attention=(), second_time=True)
    return FlowMap(net, VPSDE(), target="F", time_input="log_sigma", data_std=0.5)


def test_samples_are_those_of_the_sampler():
    model = pixels_map()
    for part in model.net.parameters():
        nn.init.normal_(part, std=0.1)
    for count in (1, 2, 4):
        objective = MomentMatching(lambda x: [x], (), (count,), 3)
        torch.manual_seed(5)
        drawn = objective._sample(model, torch.zeros(2, 1, 8, 8), count, {})
        torch.manual_seed(5)
        x_T = torch.randn(3, 1, 8, 8) * model.sde.prior_std()
        want = sample(model.sde, model, x_T=x_T, method="flow_map", steps=count, data_std=0.5)
        torch.testing.assert_close(drawn, want, rtol=1e-4, atol=1e-5)
        assert drawn.requires_grad


def test_features_are_means_and_deviations_of_blocks():
    torch.manual_seed(0)
    net = UNet(1, (8, 8), width=8, multipliers=(1, 2), blocks=1, attention=())
    for part in net.parameters():
        nn.init.normal_(part, std=0.1)
    score = ScoreModel(net, VPSDE(), target="F", time_input="log_sigma", data_std=0.5)
    features, x = BlockFeatures(score), torch.randn(5, 1, 8, 8, requires_grad=True)
    sde = score.sde
    level = float(sde.sigma(features.t) / sde.alpha(features.t))
    assert level == pytest.approx(0.3 * 0.5, rel=1e-4)
    seen = {}
    name, block = list(net.modulated())[2]
    hook = block.register_forward_hook(lambda module, given, out: seen.update(out=out))
    found = features(x)
    hook.remove()
    assert len(found) == len(list(net.modulated())), name
    want = torch.cat([seen["out"].mean((2, 3)), seen["out"].flatten(2).std(2)], 1)
    torch.testing.assert_close(found[2], want)
    found[2].square().sum().backward()
    assert float(x.grad.abs().min()) > 0
    assert not any(len(part._forward_hooks) for part in net.modules())


class Counts:
    """An objective that counts its calls."""

    measures = "rate"

    def __init__(self):
        self.calls = []

    def draw_times(self, model, n, device):
        return torch.full((n,), 0.5)

    def trivial(self, model, t, data_std):
        return torch.ones_like(t)

    def __call__(self, model, x0, t, eps):
        self.calls.append(len(x0))
        loss = model.jump(x0, t, t / 2).square().flatten(1).mean(1)
        return LossTerms(loss, t, loss.detach())


@pytest.mark.parametrize(("share", "first"), [(0.25, 6), (1.0, 0), (0.01, 8)])
def test_the_last_share_of_a_training_has_another_objective(share, first):
    main, end = Counts(), Counts()
    settings = TrainingSettings(4, None, 8, warmup_steps=1)
    trainer = Trainer(pixels_map(), main, settings, ending=Ending(end, share))
    for _ in range(8):
        trainer.update(torch.randn(4, 1, 8, 8))
    assert (len(main.calls), len(end.calls)) == (first, 8 - first)


def test_what_rows_are_told_is_repeated_for_the_samples():
    told = []

    class Told(FlowMap):
        def jump(self, x, t, s, **condition):
            told.append(condition["class_labels"].tolist())
            return super().jump(x, t, s)

    model = pixels_map()
    model = Told(model.net, model.sde, target="F", time_input="log_sigma", data_std=0.5)
    laws = (Law.of(torch.randn(70, 64)),)
    objective = MomentMatching(lambda x: [x.flatten(1)], laws, (2,), 5)
    labels = torch.tensor([3, 1])
    terms = objective(model, torch.zeros(2, 1, 8, 8), torch.ones(2), None, class_labels=labels)
    assert told == [[3, 1, 3, 1, 3]] * 2 and terms.loss.shape == (2,)
    assert float(terms.loss[0]) == float(terms.loss[1])


PICTURES = {
    "data": {"name": "fashion_mnist", "scaling": "standard"},
    "sde": {"name": "vp", "t_min": 0.003},
    "net": {"name": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1, "patch": 2,
            "attention": (), "middle": ("block",)},
    "model": {"target": "F", "time_input": "log_sigma"},
    "loss": {"weighting": "edm"},
    "training": {"batch_size": 8, "steps": 2, "warmup_steps": 1, "save_every": 2,
                 "sample_every": 0, "tensorboard": False},
    "sampling": {"method": "dpmpp_2m", "nfe": 3, "batch_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "t"
    train(PICTURES, path, device="cpu")
    return path


SHORT = {"training.steps": 4, "training.save_every": 2, "flow_map.moments": 0.6,
         "flow_map.moment_batch": 32}  # fmt: skip


def test_a_student_of_a_unet_ends_with_moments_and_is_resumed_bit_for_bit(teacher, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = distill(teacher, whole, device="cpu", changes=SHORT)
    assert run.config["flow_map"]["moments"] == 0.6
    shutil.copytree(whole, parts)
    shutil.rmtree(newest(parts))
    distill(workdir=parts, resume="yes", device="cpu")
    mine, theirs = (load_checkpoint(path / "checkpoints") for path in (parts, whole))
    assert all(torch.equal(mine.model[name], theirs.model[name]) for name in theirs.model)
    assert all(torch.equal(mine.ema[name], theirs.ema[name]) for name in theirs.ema)
    plain = distill(
        teacher, tmp_path / "plain", device="cpu", changes=SHORT | {"flow_map.moments": 0.0}
    )
    other = plain.score.net.state_dict()
    assert any(not torch.equal(other[name], v) for name, v in run.score.net.state_dict().items())


def newest(run):
    return max(path for path in (run / "checkpoints").iterdir() if path.is_dir())


def test_moments_that_cannot_be_are_sentences(teacher, tmp_path):
    for changes, said in (
        ({"flow_map.moments": 1.5}, "moments"),
        ({"flow_map.moment_batch": 2}, "moment_batch"),
        ({"flow_map.moments": 0.5, "teacher.path": ""}, "needs a teacher"),
    ):
        with pytest.raises(UserError, match=said):
            distill(teacher, tmp_path / "bad", device="cpu", changes=SHORT | changes)
        assert not (tmp_path / "bad").exists()
    points = tmp_path / "points"
    train("toy2d", points, device="cpu", **{"training.steps": 1, "training.tensorboard": False})
    with pytest.raises(UserError, match="blocks of a U-Net"):
        distill(points, tmp_path / "bad", device="cpu", changes={"flow_map.moments": 0.5})


def test_students_of_unets_that_are_told_nothing_end_so(teacher, toy_run, tmp_path):
    assert student_config(teacher)["flow_map"]["moments"] == 0.4
    assert student_config(toy_run)["flow_map"]["moments"] == 0
    told = {"conditioning": {"classes": True, "dropout": 0.1}}
    train(PICTURES | told, tmp_path / "c", device="cpu")
    assert student_config(tmp_path / "c")["flow_map"]["moments"] == 0
    wide = {"net": {**PICTURES["net"], "width": 192}}  # 192 x 14 x 14 numbers are too many
    train(PICTURES | wide, tmp_path / "w", device="cpu")
    assert student_config(tmp_path / "w")["flow_map"]["moments"] == 0
