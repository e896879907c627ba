"""Our U-Net computes the same function as score_sde_pytorch's DDPM++ (fixtures of its outputs).

`golden/recipe.py` rebuilds the peer's weights from their names; here they are carried into our
network block by block in order of execution, and the outputs are compared.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from score_sde.nets import UNet
from score_sde.nets.layers import AttentionBlock, ResidualBlock

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402

RESIDUAL = {
    "GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine",
    "GroupNorm_1": "norm1", "Conv_1": "conv1", "Conv_2": "skip",
}  # fmt: skip


def from_song(net: UNet, song: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """score_sde_pytorch's `all_modules.<i>` in order of execution, under our names."""
    blocks = [("embed0", net.embed0), ("embed1", net.embed1), ("conv_in", net.conv_in)]
    for part in ("encoder", "middle", "decoder"):
        blocks += [(f"{part}.{name}", block) for name, block in getattr(net, part).items()]
    blocks += [("norm_out", net.norm_out), ("conv_out", net.conv_out)]
    state = {}
    for i, (name, block) in enumerate(blocks):
        theirs = {
            key.removeprefix(f"all_modules.{i}."): value
            for key, value in song.items()
            if key.startswith(f"all_modules.{i}.")
        }
        if isinstance(block, ResidualBlock):
            for key, value in theirs.items():
                module, leaf = key.rsplit(".", 1)
                state[f"{name}.{RESIDUAL[module]}.{leaf}"] = value
        elif isinstance(block, AttentionBlock):
            for leaf in ("weight", "bias"):
                state[f"{name}.norm.{leaf}"] = theirs[f"GroupNorm_0.{leaf}"]
            weights = [theirs[f"NIN_{j}.W"].T[:, :, None, None] for j in range(4)]
            biases = [theirs[f"NIN_{j}.b"] for j in range(4)]
            state[f"{name}.qkv.weight"] = torch.cat(weights[:3])
            state[f"{name}.qkv.bias"] = torch.cat(biases[:3])
            state[f"{name}.proj.weight"], state[f"{name}.proj.bias"] = weights[3], biases[3]
        else:
            state.update({f"{name}.{key}": value for key, value in theirs.items()})
    return state


@pytest.mark.parametrize("case", ["song_ncsnpp_ddpmpp_nf16", "song_ncsnpp_ddpmpp_nf32"])
def test_ddpmpp_computes_what_score_sde_pytorch_computes(case):
    meta = json.loads((GOLDEN / f"{case}.json").read_text())
    gold = np.load(GOLDEN / f"{case}.npz")
    assert recipe.weights_check(meta["keys"]) == meta["weights_check"]
    song = {
        key: torch.from_numpy(recipe.make_weight(key, shape, rule))
        for key, shape, rule in meta["keys"]
        if rule != "constant"
    }
    model, size = meta["config"]["model"], meta["config"]["data"]["image_size"]
    net = UNet.preset(
        "ddpmpp",
        3,
        (size, size),
        width=model["nf"],
        blocks=model["num_res_blocks"],
        attention=tuple(model["attn_resolutions"]),
    ).eval()
    net.load_state_dict(from_song(net, song))
    for call in meta["calls"]:
        x = torch.from_numpy(recipe.make_input(call["inputs"]["x"]))
        label = torch.from_numpy(recipe.make_array(call["inputs"]["time"]))
        with torch.no_grad():
            got = net(x, label)
        want = torch.from_numpy(gold[call["output"]["array"]])
        scale = want.flatten(1).abs().amax(1)
        gap = (got - want).flatten(1).abs().amax(1) / scale
        assert gap.max() <= call["tolerance"]["if_features_differ"], (call["name"], gap)


def test_ddpmpp_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = UNet.preset("ddpmpp", channels=3, size=(32, 32))
        deep = UNet.preset("ddpmpp_deep", channels=3, size=(32, 32))
    assert sum(p.numel() for p in net.parameters()) == 61_804_419
    assert sum(p.numel() for p in deep.parameters()) == 106_632_579
