"""A diffusers VAE as the codec of a run: its own scale, and a copy that travels."""

import json
import shutil

import numpy as np
import pytest
import torch

from score_sde import load, train
from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.runs.codecs import load_codec

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vae(tmp_path):
    torch.manual_seed(0)
    module = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=8,
        scaling_factor=2.0, shift_factor=0.25,
    ).eval()  # fmt: skip
    module.save_pretrained(tmp_path / "pipeline" / "vae")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    return module


def config(tmp_path, **changes):
    return {
        "data": {"name": str(tmp_path / "x.npy"), "scaling": "standard"},
        "codec": {"path": str(tmp_path / "pipeline")}, "sde": {"name": "vp"},
        "net": {"name": "unet", "width": 8, "multipliers": (1,), "blocks": 1, "attention": (),
                "group_channels": 4},
        "training": {"batch_size": 4, "steps": 1, "tensorboard": False, "sample_every": 0},
        "sampling": {"method": "ddim", "steps": 2},
    } | changes  # fmt: skip


def test_a_run_over_its_latents(vae, tmp_path):
    run = train(config(tmp_path), tmp_path / "run")
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mean
        torch.testing.assert_close(run.to_states(x), (mean - 0.25) * 2.0)
        torch.testing.assert_close(run.to_items(run.to_states(x)), vae.decode(mean).sample)
    shutil.rmtree(tmp_path / "pipeline")
    again = load(tmp_path / "run")
    assert again.codec.checksum == run.codec.checksum and again.item_spec.scale == 127.5
    torch.testing.assert_close(again.sample(2).x, run.sample(2).x)


def test_half_precision_is_read_as_single(vae, tmp_path):
    vae.half().save_pretrained(tmp_path / "pipeline" / "vae")
    codec = load_codec(tmp_path / "pipeline", load_data(str(tmp_path / "x.npy")).spec)
    assert {v.dtype for v in codec.codec.state_dict().values()} == {torch.float32}


def test_what_is_no_autoencoder_is_named(vae, tmp_path):
    said = {"_class_name": "AutoencoderTiny"}
    (tmp_path / "pipeline" / "vae" / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="holds a AutoencoderTiny; only AutoencoderKL"):
        train(config(tmp_path), tmp_path / "r")
    with pytest.raises(UserError, match="does not say what pictures"):
        load_codec(tmp_path / "pipeline")
    assert not (tmp_path / "r").exists()


def test_sizes_that_its_factor_does_not_divide(vae, tmp_path):
    data = {"name": str(tmp_path / "x.npy"), "size": (9, 9), "resize": "stretch"}
    with pytest.raises(UserError, match="factor does not divide them"):
        train(config(tmp_path, data=data), tmp_path / "r")
