"""The U-Net of one and of three dimensions: equal to that of two where they can be compared."""

import numpy as np
import pytest
import torch

from score_sde import train
from score_sde.checks import UserError
from score_sde.nets import UNet
from score_sde.nets.layers import Resample, depth_to_space, filtered, space_to_depth

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = dict(width=8, multipliers=(1, 2), blocks=1, attention=(4,), group_channels=4)
KINDS = {
    "blocks": dict(),
    "strided": dict(resample="conv"),
    "pyramids": dict(progressive_input="residual", progressive_output="skip"),
    "skips": dict(progressive_input="skip", progressive_combine="cat", resample="plain"),
}


def with_values(net):
    """Every weight at random: those that begin at zero would hide what is behind them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    return net.eval()


def widened(narrow, wide):
    """The weights of a net in one of a dimension more, whose kernels are zero but in the middle.

    On states that are constant along the new axis it then does what the other does.
    """
    state = wide.state_dict()
    for name, value in narrow.state_dict().items():
        if value.shape == state[name].shape:
            state[name] = value
        else:
            state[name].zero_()
            place = state[name].shape[2] // 2
            state[name][:, :, place] = value
    wide.load_state_dict(state)
    return wide.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [((8,), (8, 8)), ((8, 4), (8, 8, 4))])
def test_a_dimension_less_is_the_same_network(kind, sides):
    """The first axis of the larger net is the one that is new, so heights agree."""
    few, many = sides
    options = {**OPTIONS, **KINDS[kind], "classes": 2}
    narrow = with_values(UNet(2, few, **options))
    wide = widened(narrow, UNet(2, many, **options))
    x, label, y = (
        torch.randn(3, 2, *few),
        torch.tensor([1.0, 300.0, 900.0]),
        torch.tensor([0, 1, -1]),
    )
    repeated = x[:, :, None].expand(3, 2, *many).contiguous()
    with torch.no_grad():
        one, two = narrow(x, label, y), wide(repeated, label, y)
    assert float(one.std()) > 0.01
    torch.testing.assert_close(two, one[:, :, None].expand_as(two), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 3, 8, 4), (2, 3, 8, 4, 12)])
def test_space_to_depth_and_back(shape):
    x = torch.randn(shape)
    deep = space_to_depth(x, 2)
    assert deep.shape == (2, 3 * 2 ** (len(shape) - 2), *(n // 2 for n in shape[2:]))
    torch.testing.assert_close(depth_to_space(deep, 2), x, rtol=0, atol=0)
    first = x[(slice(None), 0, *(slice(0, None, 2),) * (len(shape) - 2))]
    torch.testing.assert_close(deep[:, 0], first, rtol=0, atol=0)
    if len(shape) == 5:  # a slice of a volume is the picture's
        flat = space_to_depth(x[:, :, 0], 2).unflatten(1, (3, 4))
        torch.testing.assert_close(
            deep.unflatten(1, (3, 2, 4))[:, :, 0, :, 0], flat, rtol=0, atol=0
        )


@pytest.mark.parametrize("direction", ["up", "down"])
def test_filters_act_along_each_axis_by_itself(direction):
    a, b = torch.randn(1, 1, 8), torch.randn(1, 1, 6)
    one, two = (Resample(direction, (1, 3, 3, 1), dims) for dims in (1, 2))
    product = two(a[..., :, None] * b[..., None, :])
    torch.testing.assert_close(product, one(a)[..., :, None] * one(b)[..., None, :])
    rows = torch.tensor([1.0, 2.0, 0.5])
    expected = np.convolve(a[0, 0].numpy(), rows.numpy())
    got = filtered(a, rows, pad=(2, 2))[0, 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layout"), [((1, 16), "auto"), ((16,), "L"), ((2, 4, 4, 4), "auto")]
)
def test_arrays_train_and_sample(tmp_path, shape, layout):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, *shape)) * 3 + 1)
    changes = {
        "data.name": str(tmp_path / "x.npy"), "data.layout": layout, "net.width": 8,
        "net.patch": 1 if len(shape) == 4 else 2, "net.group_channels": 4, "net.blocks": 1,
        "training.steps": 2, "training.batch_size": 4, "training.tensorboard": False,
        "sampling.nfe": 3,
    }  # fmt: skip
    name = "arrays:volumes" if len(shape) == 4 else "arrays:signals"
    run = train(name, tmp_path / "run", **changes)
    x = run.sample(2).x
    assert tuple(x.shape[1:]) == run.data_spec.shape and bool(torch.isfinite(x).all())
    assert type(run.score.net.conv_in).__name__ == ("Conv3d" if len(shape) == 4 else "Conv1d")


def test_shapes_that_no_network_takes(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, 15)))
    vectors = {"data.layout": "vector"}
    cases = {
        "does not take items of shape .15,.: signals .C, L., images": vectors,
        "Length 15 is not divisible by 8": {},
        "net.name=edm2 does not take": {"data.layout": "L", "net": {"name": "edm2"}},
    }
    for said, changes in cases.items():
        with pytest.raises(UserError, match=said):
            train(
                "arrays:signals", tmp_path / "r", **{"data.name": str(tmp_path / "x.npy")} | changes
            )
    with pytest.raises(UserError, match="a U-Net is of signals"):
        UNet(1, (4, 4, 4, 4))
    assert not (tmp_path / "r").exists()
