"""Low precision is the network's alone; gradients are scaled, clipped and unscaled."""

from dataclasses import dataclass

import pytest
import torch
from small_training import small_trainer, train
from torch import nn

from score_sde import VPSDE, ScoreModel
from score_sde.losses import ScoreMatching
from score_sde.training import Trainer, TrainingSettings, checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class WatchedSDE(VPSDE):
    """Asserts that the process is never computed below float32, nor inside autocast."""

    def alpha(self, t):
        assert t.dtype in (torch.float32, torch.float64)
        assert not torch.is_autocast_enabled("cpu")
        return super().alpha(t)

    def sigma(self, t):
        assert t.dtype in (torch.float32, torch.float64)
        assert not torch.is_autocast_enabled("cpu")
        return super().sigma(t)


class WatchedNet(nn.Module):
    """Notes in which dtype its convolution computes."""

    def __init__(self):
        super().__init__()
        self.conv, self.computed = nn.Conv2d(1, 1, 3, padding=1), None

    def forward(self, x, label):
        assert x.dtype == label.dtype == torch.float32
        out = self.conv(x)
        self.computed = out.dtype
        return out


@pytest.mark.parametrize(
    ("precision", "inside"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_only_the_network_computes_in_low_precision(monkeypatch, precision, inside):
    """Process, loss, gradients, weights, moments and averages are float32 in every precision."""
    net = WatchedNet()
    settings = TrainingSettings(batch_size=8, ema_halflives=(5.0,))
    model = ScoreModel(net, WatchedSDE(), target="v", precision=precision)
    trainer = Trainer(model, ScoreMatching(weighting="edm"), settings)
    seen = []
    original = ScoreMatching.__call__

    def watched(self, *args, **kwargs):
        terms = original(self, *args, **kwargs)
        seen.append([value.dtype for value in terms])
        return terms

    monkeypatch.setattr(ScoreMatching, "__call__", watched)
    train(trainer, 2)
    assert net.computed == inside
    assert seen == [[torch.float32] * 3] * 2
    tensors = [*net.parameters(), *(p.grad for p in net.parameters())]
    tensors += [*trainer.ema.net.parameters(), *trainer.averages["ema_halflife_5"].net.parameters()]
    tensors += [
        s[k] for s in trainer.optimizers[0].state.values() for k in ("exp_avg", "exp_avg_sq")
    ]
    assert all(value.dtype == torch.float32 for value in tensors)


def test_fp16_without_cuda_is_explained():
    with pytest.raises(ValueError, match="precision=fp16 needs CUDA.*use bf16 or fp32"):
        Trainer(
            ScoreModel(nn.Linear(2, 2), VPSDE(), precision="fp16"),
            ScoreMatching(), TrainingSettings(),
        )  # fmt: skip


def test_scaled_gradients_are_unscaled_clipped_saved_and_skipped(tmp_path, capsys):
    """The path of fp16, the scaler on the CPU: equal to no scaling, and halved by an overflow."""
    plain, scaled = small_trainer(grad_clip=0.05), small_trainer(grad_clip=0.05)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for a, b in zip(train(plain, 4), train(scaled, 4), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert scaled.scaler.get_scale() == 2.0**11
    checkpoints.save_checkpoint(tmp_path, 4, scaled.checkpoint())
    again = small_trainer(grad_clip=0.05, log_every=1)
    again.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    again.restore(checkpoints.load_checkpoint(tmp_path))
    assert again.scaler.get_scale() == 2.0**11
    before = [p.clone() for p in again.model.net.parameters()]
    again.update(torch.full((8, 1, 8, 8), float("inf")))
    assert again.scaler.get_scale() == 2.0**10 and again.outcomes.skipped_steps == 1
    pairs = zip(before, again.model.net.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_the_gradient_is_clipped_and_its_norm_logged():
    trainer = small_trainer(grad_clip=1e-3)
    norms = [v["grad_norm"] for v in train(trainer, 2)]
    assert all(norm > 0.05 for norm in norms)  # as it was
    clipped = torch.stack([p.grad.norm() for p in trainer.model.net.parameters()]).norm()
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)
