"""Nothing in the loops of sampling and training waits for a device, or makes one wait.

The device here is PyTorch's "meta", which has no numbers: whoever asks for one gets an error, as
`item()`, a branch, a mask as an index, or a copy to the host would. What only costs time, a copy to
the device that is waited for, is counted.
"""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from score_sde import VPSDE, ScoreModel
from score_sde.data import ArrayData, DataSpec
from score_sde.losses import ScoreMatching
from score_sde.nets import UNet
from score_sde.sampling import list_samplers
from score_sde.sampling.loop import Watched, run_batch
from score_sde.sampling.plan import make_plan
from score_sde.training import Trainer, TrainingSettings, optim

ADAPTIVE = {"rk45", "adaptive_sde", "ode"}  # they look at their error, once a step
READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


class Waits(TorchDispatchMode):
    """Lists what a host would wait for."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if name in READS and any(t.device.type == "meta" for t in tensors):
            self.found.append(name)
        if name == "aten::_to_copy" and kwargs.get("device") is not None:
            away = tensors[0].device.type != torch.device(kwargs["device"]).type
            if away and not kwargs.get("non_blocking"):
                self.found.append(f"{name} to {kwargs['device']}")
        if name == "aten::copy_" and args[0].device.type != args[1].device.type:
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if waits:
                self.found.append(name)
        return func(*args, **kwargs)


def model_on(device):
    torch.manual_seed(0)
    net = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.1)
    return ScoreModel(net.to(device), VPSDE(), target="F", time_input="log_sigma")


def test_what_waits_is_found():
    with Waits() as waits:
        x = torch.ones(3).to("meta")
        for ask in (lambda: float(x.sum()), lambda: bool((x > 0).all()), lambda: x[x > 0]):
            with pytest.raises((RuntimeError, NotImplementedError)):
                ask()
        torch.ones(()).to(x)
    assert waits.found.count("aten::_to_copy to meta") == 2 and len(waits.found) >= 4


@pytest.mark.parametrize("method", sorted({s["name"] for s in list_samplers()} - ADAPTIVE))
def test_no_step_of_a_sampler_waits(method):
    model = model_on("meta").eval()
    options = {"data_std": 0.5} if method in ("adams", "adams_sde") else {}
    plan = make_plan(
        model.sde, (2, 1, 8, 8), None, method, 4, None, None, range(2), True, "seeded", 1.0, None,
        "meta", None, options,
    )  # fmt: skip
    with Waits() as waits, torch.no_grad():
        x = run_batch(plan, Watched(model, plan.score_dtype, 2), slice(0, 2), None, lambda: None)
    assert x.device.type == "meta" and x.shape == (2, 1, 8, 8)
    assert waits.found == []


def data_on(device) -> ArrayData:
    raw = torch.zeros(30, 1, 8, 8, dtype=torch.uint8)
    labels = {"class_labels": torch.arange(30) % 3}
    return ArrayData(raw, labels, DataSpec((1, 8, 8), 0.0, 255.0, 256, 127.5, 127.5), flip=True)


@pytest.mark.parametrize(
    ("optimizer", "objective"),
    [
        ("adam", ScoreMatching()),
        ("muon", ScoreMatching(weighting="edm", times="lognormal", stratified=True)),
    ],
)
def test_no_update_of_training_waits(monkeypatch, optimizer, objective):
    """From its second on: the first allocates, and looks whether the average follows."""
    monkeypatch.setattr(optim, "FUSED", ("meta",))
    module = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator("cpu"))
    settings = TrainingSettings(
        batch_size=8, steps=100, optimizer=optimizer, log_every=20, batch_per_device=4,
        ema_halflives=(5.0,), ema_snapshot_every=10,
    )  # fmt: skip
    trainer = Trainer(model_on("meta"), objective, settings)
    for ema in trainer._every_average().values():
        ema.updates = 1
    batches = data_on("meta").batches(8, 0, device="meta")
    trainer.update(next(batches).x0)
    with Waits() as waits:
        for _ in range(3):
            values = trainer.update(next(batches).x0)
    assert waits.found == []
    assert values["loss"].device.type == "meta" and len(trainer.outcomes.unread) == 4
    assert all(p.grad.device.type == "meta" for p in trainer.model.net.parameters())
