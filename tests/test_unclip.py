"""Pictures from captions by way of a vector: encoder, prior and decoder."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from score_sde import load, train
from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.nets import MLP
from score_sde.nets.text import TextInput
from score_sde.runs.exchange import export_run
from score_sde.runs.sample import sample_to_files

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING = {"batch_size": 8, "steps": 2, "save_every": 0, "sample_every": 0, "warmup_steps": 0,
            "tensorboard": False}  # fmt: skip
DATA = {"name": "shapes"}
NET = {"name": "unet", "width": 8, "multipliers": (1,), "blocks": 1, "attention": (),
       "group_channels": 4, "patch": 2, "text": 6, "text_attention": ()}  # fmt: skip


def part(codec=None, eye=None):
    """The config of the decoder, or with a codec of the prior."""
    told = {"text": "words"} if codec else {"embedding": str(eye)}
    mlp = {"name": "mlp", "width": 16, "depth": 1, "text_table": 32}
    return {
        "data": DATA, "sde": {"name": "vp"}, "net": mlp if codec else NET,
        "model": {"target": "x0"}, "conditioning": {"dropout": 0.1, **told}, "training": TRAINING,
        "sampling": {"method": "ddim", "steps": 2},
    } | ({"codec": {"path": str(codec)}} if codec else {})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORE_SDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        where = tmp_path_factory.mktemp("unclip")
        net = {"width": 8, "multipliers": (1, 1, 1), "patch": 4, "latent_channels": 6,
               "decoder_blocks": 1}  # fmt: skip
        train({"data": DATA, "autoencoder": net, "training": TRAINING}, where / "encoder")
        train(part(codec=where / "encoder"), where / "prior")
        train(part(eye=where / "encoder"), where / "decoder")
        yield where


def test_from_caption_to_vector_to_picture(folder, tmp_path):
    prior, decoder = load(folder / "prior"), load(folder / "decoder")
    both = decoder.sample(2, prompt="a red circle", prior=prior, guidance=2.0).x
    vectors = prior.sample(2, prompt="a red circle", pixels=False).x.flatten(1)
    assert vectors.shape == (2, 6) and both.shape == (2, 3, 16, 16)
    alone = decoder.sample(2, condition={"pooled": vectors}, guidance=2.0).x
    torch.testing.assert_close(both, alone, rtol=0, atol=0)
    others = decoder.sample(2, prompt="a blue cross", prior=prior, guidance=2.0).x
    assert not torch.equal(both, others)
    out = sample_to_files(folder / "decoder", 2, prompt="a red circle", prior=folder / "prior",
                          guidance=2.0, out=tmp_path / "out")  # fmt: skip
    saved = np.load(out / "samples.npz")["samples"]
    np.testing.assert_array_equal(
        saved, decoder.item_spec.to_uint8(both).permute(0, 2, 3, 1).numpy()
    )


def test_variations_of_a_picture_are_told_what_training_was_told(folder, tmp_path):
    decoder = load(folder / "decoder")
    data = load_data(**DATA)
    x = data.reference(3)
    vectors = decoder.embedding_of(x)
    assert vectors.shape == (3, 6)
    torch.testing.assert_close(vectors, decoder.eye.codec.encode(x).flatten(1))
    first = decoder.sample(3, condition={"pooled": vectors}).x
    moved = load(export_run(folder / "decoder", tmp_path / "export"))
    torch.testing.assert_close(
        moved.sample(3, condition={"pooled": moved.embedding_of(x)}).x, first
    )


def test_a_vector_of_zeros_is_none_bit_for_bit(folder):
    net = load(folder / "decoder").score.net
    x, label = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 500.0])
    with torch.no_grad():
        assert torch.equal(net(x, label, pooled=torch.zeros(2, 6)), net(x, label))
    words = TextInput(6, 0, 8, 8)
    told, nothing = words(2, None, None, torch.randn(2, 6), None), words(2, None, None, None, None)
    assert not torch.allclose(told.vector, nothing.vector)
    mlp = MLP(5, 8, 1, text_table=7)
    torch.nn.init.normal_(mlp.last.weight)
    ids, none = torch.tensor([[1, 2], [3, -1]]), torch.full((2, 2), -1)
    x = torch.randn(2, 5)
    with torch.no_grad():
        assert torch.equal(mlp(x, label, text_ids=none), mlp(x, label))
        assert not torch.allclose(mlp(x, label, text_ids=ids), mlp(x, label))


def test_what_does_not_fit_together_is_said(folder, tmp_path):
    prior, decoder = load(folder / "prior"), load(folder / "decoder")
    cases = [
        ("is told embeddings of pictures, no captions", decoder, {"prompt": "a red circle"}),
        ("is not told embeddings", prior, {"prompt": "a red circle", "prior": prior}),
        ("a prior draws from captions", decoder, {"prior": prior}),
        ("does not draw the embeddings", decoder, {"prompt": "a", "prior": decoder}),
    ]
    for said, run, wish in cases:
        with pytest.raises(UserError, match=said):
            run.sample(1, **wish)
    told = {**decoder.config["conditioning"], "dropout": 0.0}
    always = replace(decoder, config={**decoder.config, "conditioning": told})
    with pytest.raises(UserError, match="always told an embedding .*, so it draws nothing without"):
        always.sample(1)
    assert always.sample(1, condition={"pooled": torch.zeros(1, 6)}).x.shape == (1, 3, 16, 16)
    assert decoder.sample(1).x.shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="is told no pictures"):
        prior.embedding_of(torch.zeros(1, 3, 16, 16))
    bad = part(eye=folder / "encoder")
    with pytest.raises(UserError, match="6 numbers, net.text is 5: set net.text=6"):
        train(bad | {"net": NET | {"text": 5}}, tmp_path / "r")
    with pytest.raises(UserError, match="both told as pooled"):
        told = {"text": "words", "embedding": str(folder / "encoder")}
        train(bad | {"conditioning": told}, tmp_path / "r")
    shutil.copytree(folder / "decoder", tmp_path / "decoder")
    (tmp_path / "decoder" / "embedding.safetensors").unlink()
    with pytest.raises(UserError, match="has no embedding.safetensors"):
        load(tmp_path / "decoder")
