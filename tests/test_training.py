"""Training: resume equals uninterrupted, averages, optimisers, checkpoints, bad states."""

import json
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from score_sde import VPSDE, ScoreModel
from score_sde.data import ArrayData, DataSpec
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP, UNet
from score_sde.runs.directory import RunDirectory
from score_sde.training import (
    EMA,
    CheckpointError,
    Logger,
    Session,
    Trainer,
    TrainingError,
    TrainingSettings,
    checkpoints,
)
from score_sde.training.ema import power_of
from score_sde.training.logs import BIN_NAMES, NoiseBins
from score_sde.training.optim import Muon, learning_rate_factor, make_optimizers, orthogonalize
from score_sde.training.writer import BackgroundWriter, copy_to_host

pytestmark = pytest.mark.usefixtures("one_thread")


def small_trainer(**settings) -> Trainer:
    torch.manual_seed(0)
    net = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.2)
    settings = {"batch_size": 8, "steps": 100, "warmup_steps": 5, "decay": 0.5, **settings}
    return Trainer(ScoreModel(net, VPSDE()), ScoreMatching(), TrainingSettings(**settings))


def small_data() -> ArrayData:
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8))
    return ArrayData(raw, {}, DataSpec((1, 8, 8), 0.0, 255.0, 256, 127.5, 127.5), flip=True)


def train(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    batches = small_data().batches(8, seed=0, start=trainer.step)
    return [trainer.update(next(batches)[0]) for _ in range(steps)]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, optimizer):
    """Weights, average, losses and learning rates, with dropout, flips and random times."""
    whole = small_trainer(optimizer=optimizer, ema_sigma_rel=0.1)
    log = train(whole, 12)
    first = small_trainer(optimizer=optimizer, ema_sigma_rel=0.1)
    train(first, 7)
    checkpoints.save_checkpoint(tmp_path, first.step, first.checkpoint())
    torch.manual_seed(999)  # nothing may depend on the state of the global generator
    second = small_trainer(optimizer=optimizer, ema_sigma_rel=0.1)
    second.restore(checkpoints.load_checkpoint(tmp_path))
    assert second.step == 7
    assert train(second, 5) == log[7:]
    for a, b in ((whole.model.net, second.model.net), (whole.ema.net, second.ema.net)):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y), name


def test_the_average_never_touches_the_weights_and_follows_them():
    trainer = small_trainer(ema_decay=0.9)
    before = [p.clone() for p in trainer.model.net.parameters()]
    train(trainer, 3)
    live = [p.clone() for p in trainer.model.net.parameters()]
    averaged = list(trainer.ema.net.parameters())
    moved = 0
    for old, new, mean in zip(before, live, averaged, strict=True):
        if not torch.equal(old, new):
            assert not torch.equal(mean, old) and not torch.equal(mean, new)
            moved += 1
    assert moved > 20
    trainer.ema.net(torch.randn(1, 1, 8, 8), torch.ones(1))
    assert all(torch.equal(p, q) for p, q in zip(live, trainer.model.net.parameters(), strict=True))


def test_ema_warm_up_and_decay():
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, decay=0.99)
    value = float(net.weight)
    for n in range(1, 2000):
        with torch.no_grad():
            net.weight.fill_(n)
        ema.update(net)
        decay = min(0.99, (1 + n) / (10 + n))
        value = decay * value + (1 - decay) * n
    assert float(ema.net.weight) == pytest.approx(value, rel=1e-4)
    assert float(ema.net.weight) == pytest.approx(1999 - 99, abs=2)  # lags by decay/(1 - decay)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_power_average_has_the_width_it_promises(sigma_rel):
    """2312.02696: the weights of past steps follow t^gamma, of relative deviation sigma_rel."""
    net = nn.Linear(1, 1, bias=False)
    moments = []
    for power in (1, 2):
        ema = EMA(net, sigma_rel=sigma_rel)
        for n in range(1, 4001):
            with torch.no_grad():
                net.weight.fill_((n / 4000) ** power)
            ema.update(net)
        moments.append(float(ema.net.weight))
    mean, spread = moments[0], (moments[1] - moments[0] ** 2) ** 0.5
    gamma = power_of(sigma_rel)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=2e-3)
    assert spread == pytest.approx(sigma_rel, rel=0.02)


def test_orthogonalize_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert 0.6 < float(singular.min()) and float(singular.max()) < 1.35


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_by_the_orthogonal_factor(layout):
    """One step against the singular value decomposition, whatever the layout in memory."""
    torch.manual_seed(0)
    weights = [
        nn.Parameter(torch.randn(shape)) for shape in ((4, 3, 3, 3), (12, 5, 1, 1), (4, 3, 3, 3))
    ]
    weights = [nn.Parameter(p.detach().to(memory_format=layout)) for p in weights]
    before = [p.detach().clone() for p in weights]
    for p in weights:
        p.grad = torch.randn(p.shape)  # contiguous, as the weight may not be
    Muon(weights, lr=0.1, dtype=torch.float32).step()
    for p, old in zip(weights, before, strict=True):
        rows, columns = p.shape[0], p[0].numel()
        u, _, v = torch.linalg.svd(p.grad.reshape(rows, columns), full_matrices=False)
        moved = (old - p.detach()).reshape(rows, columns) / (0.1 * max(1, rows / columns) ** 0.5)
        inside = u.T @ moved @ v.T  # diagonal, the singular values that five iterations reach
        assert 0.65 < float(inside.diagonal().min()) and float(inside.diagonal().max()) < 1.25
        assert float((moved - u @ torch.diag(inside.diagonal()) @ v).abs().max()) < 1e-5


def test_muon_takes_the_convolutions_and_lowers_the_loss():
    trainer = small_trainer(optimizer="muon", lr=3e-3, decay=0.0)
    adam, muon = trainer.optimizers
    assert isinstance(muon, Muon)
    shapes = [p.ndim for group in muon.param_groups for p in group["params"]]
    assert shapes and all(n == 4 for n in shapes)
    total = sum(len(g["params"]) for o in trainer.optimizers for g in o.param_groups)
    assert total == len(list(trainer.model.net.parameters()))
    losses = [v["loss"] for v in train(trainer, 60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(k, 10, k / 100, 0.5) for k in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[50] == 1.0
    assert factors[75] == pytest.approx(0.5) and factors[99] == pytest.approx(0.02)
    assert learning_rate_factor(0, 0, 0.0, 0.0) == 1.0
    assert learning_rate_factor(5, 0, 1.5, 0.5) == 0.0  # past the end of its time


def test_minutes_end_the_run_and_its_learning_rate(tmp_path):
    trainer = small_trainer(minutes=0.02, steps=10**6, log_every=1, save_every=0, sample_every=0)
    lines = run_for(trainer, small_data(), tmp_path)
    assert 1.2 <= trainer.seconds < 6 and trainer.step < 10**5
    assert lines[-1]["lr"] < 0.3 * max(line["lr"] for line in lines)
    wanted = {"loss", "loss_smooth", "grad_norm", "lr", "images_per_second", "eta_seconds"}
    assert wanted <= set(lines[-1])
    bins = [key for line in lines for key in line if key.startswith("eps_error/")]
    assert bins and all(key.removeprefix("eps_error/") in BIN_NAMES for key in bins)
    assert any(key.startswith("trivial/") for line in lines for key in line)


def test_noise_bins_are_means():
    bins = NoiseBins()
    bins.add(torch.tensor([0.01, 0.2, 0.2]), torch.tensor([1.0, 2.0, 4.0]), torch.ones(3))
    assert bins.pop() == {
        "eps_error/below_0.03": 1.0, "trivial/below_0.03": 1.0,
        "eps_error/0.1_to_0.3": 3.0, "trivial/0.1_to_0.3": 1.0,
    }  # fmt: skip
    assert bins.pop() == {}


def test_training_learns(tmp_path):
    """Loss falls well below the trivial predictor's on data with structure."""
    torch.manual_seed(0)
    model = ScoreModel(MLP(2, width=64, depth=2), VPSDE(), target="v")
    settings = TrainingSettings(batch_size=256, steps=300, lr=3e-3, warmup_steps=10, decay=0.5)
    trainer = Trainer(model, ScoreMatching(), settings)
    line = torch.randn(5000, 1) * torch.tensor([[1.0, 0.5]])
    data = ArrayData(line, {}, DataSpec((2,)))
    batches = data.batches(256, seed=0)
    for _ in range(300):
        trainer.update(next(batches)[0])
    result = trainer.bins.pop()
    trainer.update(next(batches)[0])
    assert result["eps_error/0.1_to_0.3"] < 0.75 * result["trivial/0.1_to_0.3"]


# Bad states ---------------------------------------------------------------------------------------


def data_with_a_bad_item(bad: int) -> ArrayData:
    """small_data with file names, and NaN in one item."""
    data = small_data()
    raw = data.raw.float()
    raw[bad] = float("nan")
    return ArrayData(raw, {}, data.spec, names=tuple(f"img_{i:02d}.png" for i in range(30)))


def run_for(trainer: Trainer, data: ArrayData, folder) -> list[dict]:
    """Train to the end; what was logged."""
    directory = RunDirectory(folder)
    with directory.training():
        session = Session(directory, trainer, data, logger=Logger(directory.log))
        try:
            session.run()
        finally:
            session.close()
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_bad_item_is_named_with_its_step_and_noise_level_and_its_steps_skipped(tmp_path, capsys):
    trainer = small_trainer(steps=8, log_every=1, save_every=0, sample_every=0)
    lines = run_for(trainer, data_with_a_bad_item(11), tmp_path)
    skipped = [
        b["skipped_steps"] - a["skipped_steps"] for a, b in zip(lines, lines[1:], strict=False)
    ]
    assert trainer.skipped_steps == 2 and sum(skipped) in (1, 2)  # 8 batches of 8 of 30 items
    printed = capsys.readouterr().out
    assert printed.count("the loss of 1 of 8 items is not finite (noise level ") == 2
    assert printed.count("; img_11.png); skipped, 1 in a row") == 2
    assert lines[-1]["loss_smooth"] is not None
    assert all(torch.isfinite(p).all() for p in trainer.model.net.parameters())
    assert all(torch.isfinite(p).all() for p in trainer.ema.net.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_non_finite_steps_are_skipped_and_end_the_run_in_the_end(optimizer):
    trainer = small_trainer(optimizer=optimizer, max_bad_steps=5)
    train(trainer, 2)
    before = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    bad = torch.full((8, 1, 8, 8), float("nan"))
    for _ in range(4):
        trainer.update(bad)
    train(trainer, 1)  # a good step in between starts the count anew
    assert trainer.bad_steps == 0 and trainer.skipped_steps == 4
    before = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    averaged = {k: v.clone() for k, v in trainer.ema.net.state_dict().items()}
    for _ in range(4):
        trainer.update(bad)
    with pytest.raises(TrainingError, match="not been finite for 5 steps.*Try half the lr"):
        trainer.update(bad)
    for net, old in ((trainer.model.net, before), (trainer.ema.net, averaged)):
        assert all(torch.equal(value, old[key]) for key, value in net.state_dict().items())


def test_a_gradient_that_is_not_finite_though_the_loss_is(capsys):
    trainer = small_trainer()
    weight = next(iter(trainer.model.net.parameters()))
    handle = weight.register_hook(lambda g: g * float("inf"))
    train(trainer, 1)
    assert "the gradient is not finite though the loss is; skipped" in capsys.readouterr().out
    handle.remove()
    train(trainer, 1)
    assert trainer.bad_steps == 0 and torch.isfinite(weight).all()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "Out of memory at 8 items a pass.* batch_per_device=4: the same result from 2 passes"),
        ({"batch_per_device": 3}, "at 3 items a pass.*batch_per_device=1: .* from 8 passes"),
        ({"batch_per_device": 1}, "at 1 items a pass.*bf16, a smaller network"),
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you")]
)
def test_out_of_memory_says_what_fits(monkeypatch, settings, advice, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(ScoreMatching, "__call__", full)
    with pytest.raises(TrainingError, match=advice.replace("batch_per", "training.batch_per")):
        train(small_trainer(**settings), 1)


def test_the_advice_on_memory_gives_the_same_result():
    """batch_per_device changes the passes, not the update (dropout apart)."""
    results = []
    for settings in ({}, {"batch_per_device": 4}, {"batch_per_device": 3}):
        torch.manual_seed(0)
        net = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,))
        settings = TrainingSettings(batch_size=8, warmup_steps=5, **settings)
        trainer = Trainer(ScoreModel(net, VPSDE()), ScoreMatching(), settings)
        results.append([v["loss"] for v in train(trainer, 8)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-6)


# Precision ----------------------------------------------------------------------------------------


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
    again = small_trainer(grad_clip=0.05)
    again.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    again.restore(checkpoints.load_checkpoint(tmp_path))
    assert again.scaler.get_scale() == 2.0**11
    before = [p.clone() for p in again.model.net.parameters()]
    again.update(torch.full((8, 1, 8, 8), float("inf")))
    assert again.scaler.get_scale() == 2.0**10 and again.skipped_steps == 1
    pairs = zip(before, again.model.net.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_the_gradient_is_clipped_and_its_norm_logged():
    trainer = small_trainer(grad_clip=1e-3)
    norms = [v["grad_norm"] for v in train(trainer, 2)]
    assert all(norm > 0.05 for norm in norms)  # as it was
    clipped = torch.stack([p.grad.norm() for p in trainer.model.net.parameters()]).norm()
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)


# Checkpoints --------------------------------------------------------------------------------------


def test_checkpoints_keep_the_newest_and_are_plain(tmp_path):
    trainer = small_trainer()
    for step in (1, 2, 3, 4):
        checkpoints.save_checkpoint(tmp_path, step, trainer.checkpoint(), keep=2)
    assert checkpoints.steps_of(tmp_path) == [3, 4]
    folder = tmp_path / "step_00000004"
    assert sorted(p.name for p in folder.iterdir()) == [
        "ema.safetensors", "meta.json", "model.safetensors", "training.pt",
    ]  # fmt: skip
    torch.load(folder / "training.pt", weights_only=True)  # tensors and plain types only


def test_weights_alone_can_be_gone_on_with(tmp_path):
    """What a converted checkpoint has: weights and their average, no optimiser."""
    first = small_trainer(ema_decay=0.9)
    train(first, 5)
    bare = checkpoints.Checkpoint(
        first.model.net.state_dict(), first.ema.net.state_dict(), {}, {"origin": "elsewhere"}
    )
    checkpoints.save_checkpoint(tmp_path, 5, bare)
    second = small_trainer(ema_decay=0.9, ema_halflives=(9.0,))
    second.restore(checkpoints.load_checkpoint(tmp_path))
    assert (second.step, second.ema.updates) == (5, 5)
    for key, value in first.model.net.state_dict().items():
        assert torch.equal(second.averages["ema_halflife_9"].net.state_dict()[key], value)
    batch = next(small_data().batches(8, seed=0, start=5))[0]
    assert second.update(batch)["loss"] == first.update(batch)["loss"]


def test_every_kth_checkpoint_is_kept_for_ever(tmp_path):
    trainer = small_trainer()
    for step in range(1, 8):
        checkpoints.save_checkpoint(tmp_path, step, trainer.checkpoint(), keep=2, keep_every=3)
    assert checkpoints.steps_of(tmp_path) == [3, 6, 7]


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "ema.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_damaged_and_half_written_checkpoints_are_passed_over(tmp_path, capsys, name, damage):
    trainer = small_trainer()
    for step in (1, 2):
        checkpoints.save_checkpoint(tmp_path, step, trainer.checkpoint())
    (tmp_path / ".partial_00000003").mkdir()
    (tmp_path / "step_00000003").mkdir()
    path = tmp_path / "step_00000002" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bit" else content[:100])
    assert checkpoints.load_checkpoint(tmp_path).meta["step"] == 1
    printed = capsys.readouterr().out
    assert "checkpoint 3 is damaged" in printed and "step_00000003/meta.json" in printed
    what = "is missing" if damage == "gone" else "checksum"
    assert "checkpoint 2 is damaged" in printed and name in printed and what in printed


def test_a_write_in_the_background_is_of_the_moment_it_was_asked_for(tmp_path):
    """Training goes on while the file is written, and does not show in it."""
    trainer, writer = small_trainer(ema_decay=0.9), BackgroundWriter()
    train(trainer, 3)
    expected = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    begin = threading.Event()

    def write(parts):
        begin.wait(10)
        checkpoints.save_checkpoint(tmp_path, 3, checkpoints.Checkpoint(**parts))

    writer.submit("checkpoint", write, vars(trainer.checkpoint()))
    train(trainer, 2)
    begin.set()
    writer.wait()
    saved = checkpoints.load_checkpoint(tmp_path)
    assert all(torch.equal(saved.model[key], value) for key, value in expected.items())
    resumed = small_trainer(ema_decay=0.9)
    resumed.restore(saved)
    assert train(resumed, 2) == train_again(trainer, expected_steps=5)


def train_again(trainer: Trainer, expected_steps: int) -> list[dict[str, float]]:
    """Steps 4 and 5 of a fresh run like ``trainer``."""
    assert trainer.step == expected_steps
    return train(small_trainer(ema_decay=0.9), expected_steps)[-2:]


def test_copies_reuse_their_memory():
    state = {"a": [torch.randn(3, 4), 5], "b": {"c": torch.randn(2, 3, 4, 4)}}
    state["b"]["c"] = state["b"]["c"].to(memory_format=torch.channels_last)
    first = copy_to_host(state)
    pointer = first["b"]["c"].data_ptr()
    state["b"]["c"] += 1
    second = copy_to_host(state, first)
    assert second["b"]["c"].data_ptr() == pointer and second["a"][1] == 5
    assert torch.equal(second["b"]["c"], state["b"]["c"])
    assert second["b"]["c"].stride() == state["b"]["c"].stride()


def test_a_full_disk_keeps_the_previous_checkpoint(small_disk):
    """On a file system with room for one and a half."""
    small, trainer = small_disk(5), small_trainer()
    train(trainer, 1)
    checkpoints.save_checkpoint(small, 1, trainer.checkpoint())
    with pytest.raises(
        CheckpointError, match=r"No space left.*3\.\d MB are needed, .*Previous check"
    ):
        checkpoints.save_checkpoint(small, 2, trainer.checkpoint(), keep=1)
    assert checkpoints.load_checkpoint(small).meta["step"] == 1
    assert [p.name for p in small.iterdir()] == ["step_00000001"]


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    trainer = small_trainer()
    checkpoints.save_checkpoint(tmp_path, 1, trainer.checkpoint())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    writer = BackgroundWriter()

    def write(parts):
        checkpoints.save_checkpoint(tmp_path, 2, checkpoints.Checkpoint(**parts), keep=1)

    writer.submit("checkpoint", write, vars(trainer.checkpoint()))
    with pytest.raises(CheckpointError, match="Save failed .*No space left.*Previous checkpoints"):
        writer.wait()
    writer.wait()  # an error is told once
    assert checkpoints.steps_of(tmp_path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingSettings(batch_size=0), "training.batch_size must be at least 1"),
        (lambda: TrainingSettings(steps=0), "training.steps"),
        (lambda: TrainingSettings(lr=-1.0), "training.lr"),
        (lambda: TrainingSettings(minutes=-1.0), "training.minutes"),
        (lambda: TrainingSettings(decay=2.0), "training.decay"),
        (lambda: EMA(nn.Linear(1, 1), decay=1.0), "training.ema_decay"),
        (lambda: EMA(nn.Linear(1, 1), sigma_rel=0.5), "training.ema_sigma_rel"),
        (lambda: make_optimizers(nn.Linear(1, 1), "sgd", 1, (0, 0), 0, 1), "optimizer 'sgd'"),
    ],
)
def test_bad_settings_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
