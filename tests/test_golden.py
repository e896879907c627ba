"""Our U-Net computes the same functions as the networks of score_sde_pytorch, EDM and diffusers.

Their weights go through our key maps, and the outputs are compared per sample: in float32 to the
tolerance that their own rounding allows (1e-5 nearly everywhere), in float64 to 1e-9.
"""

import copy
import json

import numpy as np
import pytest
import torch
from golden_cases import CASES, GOLDEN, Case, gap, recipe

from score_sde.convert import diffusers, edm, song
from score_sde.nets import UNet
from score_sde.nets.blocks import AttentionBlock
from score_sde.nets.layers import FilteredConv, Resample, filtered

pytestmark = pytest.mark.usefixtures("one_thread")
RAW = [n for n in CASES if n.startswith(("song_ddpm", "song_ncsnpp", "edm_song", "edm_dhar"))]
RAW += ["diffusers_ddpm_cifar10", "diffusers_unet_defaults", "diffusers_ncsnpp_w128"]


def built(case):
    """Our network with the case's weights."""
    weights = case.weights()
    if case.name.startswith("song"):
        model, side = case.settings["model"], case.settings["data"]["image_size"]
        options = song.net_options(weights, (side, side))
        if not model.get("skip_rescale", True):
            options["skip_scale"] = 1.0
        net = UNet(**options)
        state = song.to_ours(net, weights)
    elif case.name.startswith("edm"):
        net = UNet(**edm.net_options(case.peer, case.settings))
        state = edm.to_ours(net, weights)
    else:
        net = UNet(**diffusers.net_options(case.settings))
        state = diffusers.to_ours(net, weights, case.settings["flip_sin_to_cos"])
    net.load_state_dict(state)
    return net.eval()


def answer(case, net, call, dtype):
    """The peer's convention around the network: centring before it, division by sigma after."""
    x, label, condition = case.inputs(call)
    x, sigma = x.to(dtype), None
    condition = {name: value.to(dtype) for name, value in condition.items()}
    if case.name.startswith("song"):
        model = case.settings["model"]
        x = x if case.settings["data"]["centered"] else 2 * x - 1
        fourier = model["name"] == "ncsnpp" and model["embedding_type"] == "fourier"
        if model["scale_by_sigma"]:
            sigma = label if fourier else case.sigmas()[label.long()]
        label = label.log() if fourier else label  # its float64 run took a float32 logarithm too
    elif case.settings.get("time_embedding_type") == "fourier":
        sigma, label = label, label.to(dtype).log()
    elif case.settings.get("center_input_sample"):
        x = 2 * x - 1
    with torch.no_grad():
        out = net(x, label.to(dtype), **condition)
    return out if sigma is None else out / sigma.to(dtype)[:, None, None, None]


@pytest.mark.parametrize("name", RAW)
def test_network_computes_what_the_peer_computes(name):
    case = Case(name)
    net = built(case)
    precise = copy.deepcopy(net).double()
    for call in case.calls:
        error = gap(answer(case, net, call, torch.float32), case.output(call))
        assert error <= call["tolerance"]["relative"], (call["name"], error)
        if "array_float64" in call["output"]:
            want = case.output(call, "array_float64")
            assert gap(answer(case, precise, call, torch.float64), want) < 1e-9, call["name"]


def test_skip_blocks_narrower_than_128_have_other_groups():
    """diffusers gives its AttnSkip blocks 32 groups at any width; NCSN++ and we do not."""
    case = Case("diffusers_ncsnpp_w32")
    options = diffusers.net_options(case.settings)
    names = ("encoder.1.blocks.0.attention.norm", "decoder.1.blocks.1.norm0",
             "decoder.1.blocks.1.attention.norm")  # fmt: skip
    assert options["norm_groups"] == dict.fromkeys(names, 32)
    wide = diffusers.net_options(Case("diffusers_ncsnpp_w128").settings)
    assert wide["norm_groups"] == {}
    call = case.calls[0]
    assert gap(answer(case, built(case), call, torch.float32), case.output(call)) < 1e-5
    with pytest.raises(ValueError, match="decoder.1.blocks.0.norm0 has 128 channels; .* 24 groups"):
        UNet(**options | {"norm_groups": {"decoder.1.blocks.0.norm0": 24}})
    with pytest.raises(ValueError, match="norm_groups: middle.0.norm is unknown"):
        UNet(**options | {"norm_groups": {"middle.0.norm": 8}})


def test_attention_is_the_same_with_and_without_gradients():
    """Two ways of computing it, of which the fixtures see one."""
    net = built(Case("edm_dhariwal"))
    block = next(m for m in net.modules() if isinstance(m, AttentionBlock) and m.heads > 1)
    x = torch.randn(2, block.qkv.in_channels, 4, 4)
    with torch.no_grad():
        fused = block(x)
    torch.testing.assert_close(block(x), fused, rtol=1e-5, atol=1e-5)


def test_filtered_resampling():
    """Every rectangle, filter and padding, H and W unequal, to 1e-6."""
    meta = json.loads((GOLDEN / "fir_resampling.json").read_text())
    gold = np.load(GOLDEN / "fir_resampling.npz")
    for each in meta["cases"]:
        spec = {"seed": 0, "shape": each["shape"], "a": 0.0, "b": 0.0, "s": 1.0}
        x, want = torch.from_numpy(recipe.make_input(spec)), torch.from_numpy(gold[each["array"]])
        kernel = torch.tensor(each["kernel"], dtype=torch.float32)
        kernel = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
        kernel = kernel / kernel.sum()
        if each["function"] == "upfirdn2d":
            got = filtered(x, kernel, each["up"], each["down"], tuple(each["pad"]))
        elif each["function"] == "conv_downsample_2d":
            layer = FilteredConv(3, 4, tuple(each["kernel"]))
            weight = recipe.make_weight(each["weight_key"], each["weight_shape"])
            layer.conv.weight.data = torch.from_numpy(weight)
            got = layer(x).detach()
        else:
            direction = "up" if each["function"] == "upsample_2d" else "down"
            got = Resample(direction, tuple(each["kernel"]))(x)
        assert list(got.shape) == each["out_shape"], each
        assert gap(got, want) < 1e-6, each


@pytest.mark.parametrize(
    ("preset", "options", "count"),
    [
        ("ddpm", {}, 35_218_947),
        ("ddpm_ho", {}, 35_746_307),
        ("ddpmpp", {}, 61_804_419),
        ("ddpmpp_deep", {}, 106_632_579),
        ("ncsnpp", {}, 62_758_915),
        ("ncsnpp_deep", {}, 107_587_075),
        ("ddpmpp", {"multipliers": (2, 2, 2), "augment": 9}, 55_733_891),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(preset, options, count):
    with torch.device("meta"):
        net = UNet.preset(preset, channels=3, size=(32, 32), **options)
    assert sum(p.numel() for p in net.parameters()) == count
