"""What this machine cannot hold is said before it is allocated: here the machine has one MiB."""

import pytest
import torch

from score_sde import VPSDE, Gaussian, load, restore, sample
from score_sde.checks import UserError, check_size, memory
from score_sde.nets import MLP, Transformer, UNet
from score_sde.nets.autoencoder import KLAutoencoder
from score_sde.nets.magnitude import MagnitudeUNet
from score_sde.restoration import Mask
from score_sde.runs.latents import interpolate_to_files
from score_sde.runs.sample import sample_to_files

MOST = 2**20


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: MOST)


def test_all_of_it_may_be_taken_and_no_byte_more(small):
    check_size(MOST, "samples")
    with pytest.raises(UserError, match="samples would take"):
        check_size(MOST + 1, "samples")


NETS = {  # each of more than 2^18 numbers
    "mlp": lambda: MLP(2, width=600, depth=1),
    "unet": lambda: UNet(1, (8, 8), width=64, multipliers=(1, 2), blocks=1, attention=()),
    "edm2": lambda: MagnitudeUNet(1, (8, 8), width=64, multipliers=(1, 2), blocks=1),
    "transformer": lambda: Transformer(1, (8, 8), width=128, depth=2, heads=2, patch=2),
    "autoencoder": lambda: KLAutoencoder(1, (8, 8), width=64, multipliers=(1, 2)),
}


@pytest.mark.parametrize("name", NETS)
def test_networks_are_counted_before_they_are_made(name, small):
    with torch.device("meta"):  # where tensors take nothing
        numbers = sum(p.numel() for p in NETS[name]().parameters())
    assert 4 * numbers > MOST
    with pytest.raises(UserError, match=r"net: the weights .* take more than"):
        NETS[name]()


def test_samples_are_counted_before_they_are_drawn(small, toy_run, tmp_path):
    sde, data = VPSDE(), Gaussian([0.0, 0.0], 0.25)
    sample(sde, data.score(sde), (1000, 2), method="ddim", steps=1)
    run, many = load(toy_run, device="cpu"), MOST // 8 + 1
    y = torch.zeros(1, 1)
    for call in (
        lambda: sample(sde, data.score(sde), (many, 2), method="ddim", steps=1),
        lambda: run.sample(many),
        lambda: sample_to_files(toy_run, num_samples=many, out=tmp_path / "out"),
        lambda: interpolate_to_files(toy_run, points=many, out=tmp_path / "out"),
        lambda: restore(sde, data.score(sde), y, Mask(torch.tensor([True, False])),
                        noise_std=0.1, n=many, gaussian=data),
    ):  # fmt: skip
        with pytest.raises(UserError, match="would take .* GiB; this machine has"):
            call()
    assert not (tmp_path / "out").exists()
