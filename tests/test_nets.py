"""Networks: shapes from the data, errors when built, and what must hold at the start."""

import pytest
import torch

from score_sde import VPSDE, ScoreModel
from score_sde.nets import MLP, UNet, packed
from score_sde.nets.layers import FourierEmbedding, Resample, SinusoidalEmbedding
from score_sde.scores import nothing_like

SMALL = dict(width=16, multipliers=(1, 2), blocks=1, attention=())


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (32, 64), (40, 24)])
def test_unet_takes_any_channels_and_sizes_and_trains_a_step(channels, size):
    for patch in (1, 2):
        net = UNet(channels, size, patch=patch, **SMALL)
        x, label = torch.randn(2, channels, *size), torch.tensor([3.0, 800.0])
        assert net(x, label).shape == x.shape
        loss = (net(x, label) - x).square().mean()
        loss.backward()
        assert net.decoder[0].output.conv.weight.grad.abs().sum() > 0


NCSNPP = dict(taps=(1, 3, 3, 1), embedding="fourier", resample="block")


@pytest.mark.parametrize(
    "options",
    [
        NCSNPP | dict(progressive_input="residual"),
        NCSNPP | dict(progressive_input="skip", progressive_output="skip"),
        NCSNPP | dict(progressive_input="skip", progressive_combine="cat"),
        dict(resample="conv_symmetric", decoder_attention="every", attention=(4,)),
        dict(resample="plain", taps=(1, 2, 1)),
        dict(modulation="scale_shift", skip_conv=False, embedding="positional_adm"),
        dict(embedding="positional_edm", classes=3, augment=2),
    ],
    ids=lambda options: "_".join(str(value) for value in options.values())[:40],
)
@pytest.mark.parametrize("patch", [1, 2])
def test_every_option_trains_on_rectangles(options, patch):
    """Any (H, W), with and without patches, and every weight gets a gradient."""
    torch.manual_seed(0)
    net = UNet(2, (8 * patch, 16 * patch), patch=patch, **{**SMALL, **options})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(2, 2, 8 * patch, 16 * patch)
    labels = {"class_labels": torch.tensor([0, 2])} if "classes" in options else {}
    labels |= {"augment_labels": torch.randn(2, 2)} if "augment" in options else {}
    out = net(x, torch.tensor([0.3, 2.0]), **labels)
    assert out.shape == x.shape
    (out - x).square().mean().backward()
    for name, p in net.named_parameters():
        assert not p.requires_grad or float(p.grad.abs().sum()) > 0, name


def test_resampling_keeps_constant_images_constant_and_the_mean_of_others():
    """Inside; a filter sees zeros beyond the border."""
    for taps in ((1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1)):
        for direction, shape in (("up", (16, 24)), ("down", (4, 6))):
            out = Resample(direction, taps)(torch.ones(1, 2, 8, 12))
            assert out.shape == (1, 2, *shape)
            inside = out[:, :, 2:-2, 2:-2] if direction == "up" else out[:, :, 1:-1, 1:-1]
            torch.testing.assert_close(inside, torch.ones_like(inside))


def test_a_new_network_predicts_nothing():
    """Zero-initialised last layers: the first prediction is (almost) 0, not noise."""
    for net, x in (
        (UNet.preset("small", 1, (28, 28)), torch.randn(2, 1, 28, 28)),
        (MLP(3), torch.randn(2, 3)),
    ):
        with torch.no_grad():
            assert float(net(x, torch.tensor([1.0, 900.0])).abs().max()) < 1e-3


def test_the_label_matters_to_every_sample_by_itself():
    torch.manual_seed(0)
    net = UNet(1, (8, 8), **SMALL)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    out = net(x, torch.tensor([1.0, 500.0, 500.0]))
    assert float((out[0] - out[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(out[1], out[2])
    alone = net(x[:1], torch.tensor([500.0]))
    torch.testing.assert_close(alone[0], out[1], rtol=1e-4, atol=1e-5)


def test_patches_hold_the_same_pixels():
    """Space to depth and back is the identity when the network in between is."""
    net = UNet(2, (8, 8), patch=2, **SMALL)
    x = torch.randn(1, 2, 8, 8)
    shuffled = torch.nn.functional.pixel_unshuffle(x, 2)
    assert net.conv_in.in_channels == shuffled.shape[1] == 8
    assert torch.equal(torch.nn.functional.pixel_shuffle(shuffled, 2), x)


def test_state_dict_names_are_stable_words():
    names = list(UNet(1, (8, 8), **{**SMALL, "attention": (4,)}).state_dict())
    assert "encoder.0.blocks.0.conv0.weight" in names
    assert "encoder.1.blocks.0.attention.qkv.weight" in names
    assert "decoder.0.resample.skip.weight" in names
    assert "decoder.0.output.conv.weight" in names
    assert not any("module" in name or "orig_mod" in name for name in names)


@pytest.mark.parametrize("where", ["input", "output"])
def test_class_labels_are_integers_or_rows_or_none(where):
    torch.manual_seed(0)
    net = UNet(1, (8, 8), **SMALL, classes=3, class_embedding=where)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, label = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), torch.full((3,), 5.0)
    with torch.no_grad():
        by_integer = net(x, label, class_labels=torch.tensor([0, 1, 1]))
        by_row = net(x, label, class_labels=torch.eye(3)[[0, 1, 1]])
        none, zero = net(x, label), net(x, label, class_labels=torch.zeros(3, 3))
    torch.testing.assert_close(by_integer, by_row)
    torch.testing.assert_close(none, zero)
    torch.testing.assert_close(by_row[1], by_row[2])
    assert float((by_row[0] - by_row[1]).abs().max()) > 1e-3
    assert float((by_row[0] - none[0]).abs().max()) > 1e-3


def test_one_modulation_serves_all_blocks_in_order_of_execution():
    """Each block's share starts as a layer of its own would: its variance follows its size."""
    net = UNet(1, (16, 16), width=32, multipliers=(1, 2), blocks=1, attention=())
    rows = net.modulation.weight.detach().split(net.shares)
    names = [name for name, _ in net.modulated()]
    assert names[:3] == ["encoder.0.blocks.0", "encoder.1.resample", "encoder.1.blocks.0"]
    assert names[3:6] == ["middle.0", "middle.1", "decoder.1.blocks.0"]
    assert [len(r) for r in rows] == [b.modulation_channels for _, b in net.modulated()]
    for part in rows:
        bound = (6 / (part.shape[0] + part.shape[1])) ** 0.5
        assert 0.98 * bound < float(part.abs().max()) <= bound


def test_embeddings():
    label = torch.tensor([0.0, 1.0, 999.0])
    e = SinusoidalEmbedding(8)(label)
    frequencies = 10_000 ** (-torch.arange(4) / 3)
    torch.testing.assert_close(
        e,
        torch.cat([(label[:, None] * frequencies).sin(), (label[:, None] * frequencies).cos()], 1),
    )
    fourier = FourierEmbedding(8)
    assert fourier(label).shape == (3, 8) and not fourier.frequencies.requires_grad
    assert "frequencies" in fourier.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(1, (28, 28), width=16), r"Height 28 is not divisible by 8 \(4 levels"),
        (lambda: UNet(1, (32, 30), width=16), "Width 30 .* Use 24 or 32"),
        (lambda: UNet(1, (28, 28), patch=2, multipliers=(1, 2), attention=(16,)), r"\[14, 7\]"),
        (lambda: UNet(1, (8, 8), width=18, multipliers=(1,), attention=()), "do not divide"),
        (lambda: UNet(1, (8, 8), heads=3, width=16, multipliers=(1,), attention=()), "3 attention"),
        (lambda: UNet(1, (8, 8), **SMALL, modulation="film"), "net.modulation must be"),
        (lambda: UNet(1, (8, 8), **SMALL, embedding="sine"), "net.embedding must be"),
        (lambda: UNet(1, (8, 8), **SMALL, middle=("attention",)), "middle"),
        (lambda: UNet(1, (8, 8), **SMALL, taps=(1,)), "taps .* at least two numbers"),
        (lambda: UNet(1, (8, 8), **SMALL, progressive_input="sum"), "progressive_input must"),
        (
            lambda: UNet(1, (8, 8), **{**SMALL, "attention": (4,)}, head_channels=24),
            "32 channels do not divide into 24 channels per",
        ),
        (
            lambda: UNet(1, (8, 8), **SMALL)(
                torch.zeros(1, 1, 8, 8), torch.zeros(1), class_labels=torch.zeros(1).long()
            ),
            "without class_labels",
        ),
        (
            lambda: UNet(1, (8, 8), **SMALL, classes=3)(
                torch.zeros(2, 1, 8, 8), torch.zeros(2), class_labels=torch.zeros(2, 4)
            ),
            r"rows \(B, 3\)",
        ),
        (lambda: UNet.preset("ddpm++", 3, (32, 32)), "Did you mean 'ddpm'"),
        (lambda: UNet(3, (8, 8), **SMALL)(torch.zeros(1, 1, 8, 8), torch.zeros(1)), "was built"),
        (lambda: MLP(2)(torch.zeros(1, 3), torch.zeros(1)), "was built for states"),
    ],
)
def test_misfits_are_explained_when_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mlp_learns_a_gaussian_score():
    """Twenty lines of user code: after 400 steps the learned score is near the exact one."""
    from score_sde import Gaussian
    from score_sde.losses import ScoreMatching

    torch.manual_seed(0)
    sde, data = VPSDE(), Gaussian([0.5, -0.5], [[0.5, 0.3], [0.3, 0.4]])
    model = ScoreModel(MLP(2, width=64, depth=2), sde, target="v")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective = ScoreMatching()
    for _ in range(400):
        loss = objective(model, data.sample(512).float()).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    t = torch.full((2000,), 0.3)
    mean, std = sde.marginal(data.sample(2000).float(), t)
    x = mean + std * torch.randn(2000, 2)
    with torch.no_grad():
        error = (model(x, t) - data.score(sde)(x, t)).square().mean().sqrt()
        scale = data.score(sde)(x, t).square().mean().sqrt()
    assert float(error / scale) < 0.12


def test_a_packed_network_is_the_same_network():
    torch.manual_seed(0)
    net = UNet(3, (16, 16), width=32, multipliers=(1, 2), blocks=1, attention=(8,), resample="conv")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net = net.to(memory_format=torch.channels_last).eval()
    twin = packed(net)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}
    x, label = torch.randn(4, 3, 16, 16), torch.linspace(1, 900, 4)
    with torch.no_grad():
        for part in (x, x[:1], x[:3]):  # rearranged for the first batch, right for all
            torch.testing.assert_close(
                twin(part, label[: len(part)]), net(part, label[: len(part)]), rtol=1e-4, atol=1e-5
            )
        with torch.autocast("cpu", torch.bfloat16):
            low, packed_low = net(x, label), twin(x, label)
        assert packed_low.dtype == torch.bfloat16
        assert (packed_low - low).norm() < 0.01 * low.norm()
    x.requires_grad_()
    gradient = torch.autograd.grad(net(x, label).square().sum(), x)[0]
    assert torch.equal(torch.autograd.grad(twin(x, label).square().sum(), x)[0], gradient)
    assert torch.equal(twin.double()(x.double(), label), net.double()(x.double(), label))


def test_minus_one_is_no_class_bit_for_bit():
    small = dict(width=8, multipliers=(1,), blocks=1, attention=(), middle=("block",))
    net = UNet(1, (8, 8), **small, classes=3).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.manual_seed(0))
    x, noise_label = torch.randn(4, 1, 8, 8), torch.full((4,), 300.0)
    told = torch.tensor([0, -1, 2, -1])
    with torch.no_grad():
        whole, without = net(x, noise_label, class_labels=told), net(x, noise_label)
        other = net(x, noise_label, class_labels=nothing_like(told))
    assert torch.equal(other, without) and torch.equal(whole[1::2], without[1::2])
    assert not torch.allclose(whole[::2], without[::2])
