"""Runs of latents: an autoencoder trained as a run, and a diffusion over its latents."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from score_sde import load, train
from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.evaluation.features import extract, find_features
from score_sde.evaluation.moments import Moments, frechet
from score_sde.runs.codecs import codec_of_run, latents_of, load_codec
from score_sde.runs.evaluate import evaluate_to_files
from score_sde.runs.exchange import export_run
from score_sde.runs.latents import encode_to_files
from score_sde.runs.likelihood import likelihood_to_files
from score_sde.runs.restore import restore_to_files
from score_sde.runs.sample import sample_to_files
from score_sde.training.checkpoints import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 8
TRAINING = {"batch_size": 8, "steps": 4, "save_every": 2, "sample_every": 4, "log_every": 1,
            "warmup_steps": 0, "tensorboard": False, "sample_images": 8}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORE_SDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty slopes of 8 x 8 pixels in two classes, an autoencoder of them, and a run of latents."""
    where = tmp_path_factory.mktemp("latents")
    random = np.random.default_rng(0)
    slopes = random.uniform(-1, 1, (40, 1, 1, 2)) * np.arange(SIDE)[:, None, None]
    pixels = (128 + 9 * slopes.sum(-1, keepdims=True) + np.zeros((1, 1, SIDE, 1))).astype(np.uint8)
    torch.set_num_threads(1)  # as in the tests: sums are to be the same ones
    np.savez(where / "data.npz", images=pixels, labels=np.arange(40) % 2)
    train(autoencoder(where), where / "ae")
    train(latent(where), where / "latent")
    return where


def data_of(folder):
    return {"name": str(folder / "data.npz"), "options": {"items": "images", "labels": "labels"}}


def autoencoder(folder, **training):
    return {
        "data": data_of(folder),
        "autoencoder": {"width": 8, "multipliers": (1, 2), "decoder_blocks": 1},
        "training": TRAINING | training,
    }


def latent(folder, **training):
    return {
        "data": data_of(folder), "sde": {"name": "vp"}, "codec": {"path": str(folder / "ae")},
        "net": {"name": "unet", "width": 8, "multipliers": (1,), "blocks": 1, "attention": (),
                "group_channels": 4},
        "model": {"target": "F", "time_input": "log_sigma"}, "training": TRAINING | training,
        "conditioning": {"classes": True, "dropout": 0.1},
        "sampling": {"method": "heun", "nfe": 3}, "seed": 3,
    }  # fmt: skip


def test_the_codec_is_that_of_the_averaged_weights_at_unit_spread(folder):
    codec = load_codec(folder / "ae")
    ema = load_weights(folder / "ae" / "checkpoints", 4, "ema")
    for name, value in codec.codec.autoencoder.state_dict().items():
        torch.testing.assert_close(value, ema[name], rtol=0, atol=0)
    data = latents_of(load_data(**data_of(folder)), codec)
    items = data.raw_items(range(40)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(items.mean(1), torch.zeros(4), rtol=0, atol=0.2)
    torch.testing.assert_close(items.std(1), torch.ones(4), rtol=0.2, atol=0)


def test_an_autoencoder_resumes_exactly(folder, tmp_path):
    train(autoencoder(folder, steps=2), tmp_path / "ae")
    codec = train(autoencoder(folder), tmp_path / "ae", resume=True)
    assert codec.checksum == load_codec(folder / "ae").checksum
    with pytest.raises(UserError, match="autoencoder.width"):
        changed = autoencoder(folder)
        changed["autoencoder"]["width"] = 16
        train(changed, tmp_path / "ae", resume=True)


def test_a_run_of_latents_resumes_exactly_without_its_autoencoder(folder, tmp_path):
    config = latent(folder, steps=2)
    shutil.copytree(folder / "ae", tmp_path / "ae")
    config["codec"]["path"] = str(tmp_path / "ae")
    train(config, tmp_path / "latent")
    shutil.rmtree(tmp_path / "ae")
    config["training"]["steps"] = 4
    run = train(config, tmp_path / "latent", resume=True)
    for name, value in load(folder / "latent").score.net.state_dict().items():
        torch.testing.assert_close(run.score.net.state_dict()[name], value, rtol=0, atol=0)


def test_moments_are_kept_and_drawn_from_anew(folder, monkeypatch):
    codec, data = load_codec(folder / "ae"), load_data(**data_of(folder))
    monkeypatch.setattr(type(codec.codec.autoencoder), "moments", None)  # not asked again
    monkeypatch.setattr("score_sde.runs.codecs.check_pictures", lambda *a: None)
    found = latents_of(data, codec)
    first, again = (next(found.batches(40, 0)).x0 for _ in "ab")
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    batches = found.batches(40, 0)  # a batch an epoch: the same items, other draws of them
    one, two = next(batches), next(batches)
    rows = [b.x0[b.condition["class_labels"] == 0].flatten(1).sum(1).sort().values
            for b in (one, two)]  # fmt: skip
    assert not torch.equal(*rows)
    std = found.raw[:, 1]
    draws = torch.stack([next(found.batches(40, seed)).x0.mean(0) for seed in range(200)])
    expected = std.square().mean(0) / 40
    torch.testing.assert_close(draws.var(0).mean(), expected.mean(), rtol=0.15, atol=0)
    part = next(found.batches(40, 0, rows=range(5, 9)))
    torch.testing.assert_close(part.x0, first[5:9], rtol=0, atol=0)


def test_samples_are_pictures_wherever_the_run_goes(folder, tmp_path):
    run = load(folder / "latent")
    states = run.sample(3, class_labels=1, pixels=False).x
    pictures = run.sample(3, class_labels=1).x
    assert states.shape == (3, 4, 2, 2) and pictures.shape == (3, 1, SIDE, SIDE)
    torch.testing.assert_close(run.codec.decode(states), pictures)
    out = sample_to_files(folder / "latent", 3, class_labels="1", out=tmp_path / "samples")
    saved = np.load(out / "samples.npz")["samples"]
    np.testing.assert_array_equal(saved[..., 0], run.codec.spec.to_uint8(pictures)[:, 0])
    exported = load(export_run(folder / "latent", tmp_path / "export"))
    torch.testing.assert_close(exported.sample(3, class_labels=1).x, pictures)
    assert len(list((folder / "latent" / "progress").glob("*.png"))) == 2


def test_evaluation_says_what_the_autoencoder_alone_does(folder, tmp_path):
    """Pictures that only went through it are what a diffusion without error would draw."""
    report = evaluate_to_files(folder / "latent", num_samples=30, features="pixels",
                               out=tmp_path / "report", measures="frechet", few=True)  # fmt: skip
    (note,) = [note for note in report.notes if note.startswith("The autoencoder alone")]
    codec, data = load_codec(folder / "ae"), load_data(**data_of(folder))
    back = codec.spec.to_uint8(codec.decode(codec.encode(data.reference(30))))
    known = [extract(find_features("pixels", back), x) for x in (back, data.raw)]
    want = frechet(*(Moments.of(x) for x in known))
    assert float(note.split()[4]) == pytest.approx(want, rel=1e-3)


def test_encoding_is_of_latents_and_shown_decoded(folder, tmp_path):
    out = encode_to_files(folder / "latent", "train", 3, nfe=8, class_labels="data",
                          out=tmp_path / "encoded")  # fmt: skip
    found = np.load(out / "latents.npz")
    codec, data = load_codec(folder / "ae"), load_data(**data_of(folder))
    states = codec.encode(data.reference(3))
    np.testing.assert_allclose(found["items"], states, rtol=1e-5, atol=1e-5)
    assert found["latents"].shape == (3, 4, 2, 2) and (out / "grid.png").is_file()


def test_another_autoencoder_is_refused(folder, tmp_path):
    shutil.copytree(folder / "latent", tmp_path / "latent")
    other = load_file(tmp_path / "latent" / "codec.safetensors")
    other["scale"] = other["scale"] * 2  # latents of another scale
    save_file(other, tmp_path / "latent" / "codec.safetensors")
    with pytest.raises(UserError, match="not the one that this run was trained with"):
        load(tmp_path / "latent")
    (tmp_path / "latent" / "codec.safetensors").unlink()
    with pytest.raises(UserError, match="has no codec.safetensors"):
        load(tmp_path / "latent")
    retrained = autoencoder(folder) | {"seed": 5}
    train(retrained, tmp_path / "ae")
    config = latent(folder)
    config["codec"]["path"] = str(tmp_path / "ae")
    with pytest.raises(UserError, match="is not the one that the run in .* was trained with"):
        train(config, folder / "latent", resume=True)


def test_what_latents_cannot_do_is_said(folder, tmp_path):
    with pytest.raises(UserError, match="is a run of latents, and a density of latents"):
        likelihood_to_files(folder / "latent", num_samples=1, split="train")
    with pytest.raises(UserError, match="holds an autoencoder, which has no score"):
        load(folder / "ae")
    cases = {
        "there is no run": {"codec": {"path": str(tmp_path / "nothing")}},
        "has no autoencoder": {"codec": {"path": str(folder)}},
        "data.flip mirrors": {"data": data_of(folder) | {"flip": True}},
        "is for pictures": {"data": data_of(folder) | {"size": (16, 16), "resize": "stretch"}},
        "the key 'paht' is unknown": {"codec": {"path": str(folder / "ae"), "paht": 1}},
    }
    for said, change in cases.items():
        with pytest.raises(UserError, match=said):
            train(latent(folder) | change, tmp_path / "run")
    with pytest.raises(UserError, match="divide by 4"):
        bad = autoencoder(folder)
        train(
            bad | {"data": data_of(folder) | {"size": (6, 6), "resize": "stretch"}}, tmp_path / "r"
        )
    with pytest.raises(UserError, match="the section 'sde' is unknown"):
        train(autoencoder(folder) | {"sde": {"name": "vp"}}, tmp_path / "r")
    assert not (tmp_path / "run").exists() and not (tmp_path / "r").exists()
    with pytest.raises(UserError, match="codec.safetensors"):
        facts = json.loads((folder / "ae" / "config.json").read_text())
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "config.json").write_text(json.dumps(facts))
        load_codec(tmp_path / "half")
    assert codec_of_run(folder / "ae", True) is None


def test_a_measurement_of_pixels_restores_latents_through_the_decoder(folder, tmp_path):
    out = restore_to_files(folder / "latent", "upscale", factor=2, noise=0.3, num_samples=2, nfe=4,
                           out=tmp_path / "restored", device="cpu")  # fmt: skip
    facts = json.loads((out / "settings.json").read_text())
    assert facts["method"] == "hybrid" and np.isfinite(facts["psnr_of_mean"]).all()
    with np.load(out / "samples.npz") as file, np.load(out / "measurement.npz") as measured:
        assert file["samples"].shape == (1, 2, SIDE, SIDE, 1)
        assert measured["y"].shape == (1, 1, SIDE // 2, SIDE // 2)
