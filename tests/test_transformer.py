"""Transformers: published sizes, the symmetries of their positions, and peers' weights."""

import json

import pytest
import torch

from score_sde import import_checkpoint
from score_sde.convert import diffusers_transformer
from score_sde.nets import Transformer
from score_sde.nets.attention import Attention, axial_angles, rotate, sincos_positions
from score_sde.nets.presets import TRANSFORMERS
from score_sde.scores import nothing_like

pytestmark = pytest.mark.usefixtures("one_thread")


def randomised(net, std=0.2):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(std * torch.randn(p.shape, generator=generator))
    return net.eval()


def test_published_sizes():
    """Millions of parameters of DiT (2212.09748, table 1), which count the fixed positions."""
    for name, millions in {"dit_s": 33, "dit_b": 130, "dit_l": 458, "dit_xl": 675}.items():
        with torch.device("meta"):
            net = Transformer.preset(name, channels=4, size=(32, 32), classes=1000, out_channels=8)
        count = sum(p.numel() for p in net.parameters()) + net.place.numel()
        assert abs(count / 1e6 - millions) < 0.6, name


@pytest.mark.parametrize("name", list(TRANSFORMERS))
def test_every_preset_trains_on_its_conditions(name):
    small = {"width": 32, "depth": 4, "heads": 2, "patch": 4}
    small |= {"text_dim": 6} if "text_dim" in TRANSFORMERS[name] else {"classes": 3}
    if TRANSFORMERS[name].get("class_tokens"):
        small |= {"class_tokens_from": 1, "class_tokens": 2, "bottleneck": 8}
    net = randomised(Transformer.preset(name, channels=2, size=(8, 16), **small), 0.1).train()
    x, label = torch.randn(3, 2, 8, 16), torch.tensor([3.0, 500.0, 900.0])
    known = (
        {"text": torch.randn(3, 4, 6)} if "text_dim" in small else {"class_labels": torch.arange(3)}
    )
    net(x, label, **known).square().sum().backward()
    silent = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent <= {"null_text"}, silent
    with torch.no_grad():
        told, free = net(x, label, **known), net(x, label)
    assert (told - free).abs().max() > 1e-4
    alone = net(x[1:2], label[1:2], **{k: v[1:2] for k, v in known.items()})
    torch.testing.assert_close(told[1:2], alone, rtol=1e-4, atol=1e-4)


def test_a_new_one_says_nothing_and_padding_is_never_seen():
    net = Transformer(2, (8, 8), width=32, depth=2, heads=2, patch=4, text_dim=6)
    x, label = torch.randn(3, 2, 8, 8), torch.rand(3) * 999
    assert not net(x, label, text=torch.randn(3, 4, 6)).any()
    for kind in ("cross", "tokens"):
        net = randomised(Transformer(2, (8, 8), width=32, depth=2, heads=2, text_dim=6, text=kind))
        text, mask = torch.randn(3, 4, 6), torch.arange(4) < torch.tensor([[4], [2], [1]])
        longer = torch.cat([text, torch.randn(3, 5, 6)], 1)
        hidden = torch.nn.functional.pad(mask, (0, 5))
        got = net(x, label, text=longer, text_mask=hidden)
        want = net(x, label, text=text, text_mask=mask)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_nothing_is_what_training_drops():
    """Rows of `nothing_like` are no condition at all, beside rows that have one."""
    for known in ({"classes": 3}, {"text_dim": 6}, {"text_dim": 6, "text": "tokens"}):
        net = randomised(Transformer(2, (8, 8), width=32, depth=2, heads=2, **known))
        x, label = torch.randn(3, 2, 8, 8), torch.rand(3) * 999
        if "classes" in known:
            told = {"class_labels": torch.tensor([2, -1, 0])}
        else:
            told = {"text": torch.randn(3, 4, 6), "text_mask": torch.ones(3, 4, dtype=torch.bool)}
            told = {k: torch.cat([v[:1], nothing_like(v[1:2]), v[2:]]) for k, v in told.items()}
        got, free = net(x, label, **told), net(x, label)
        torch.testing.assert_close(got[1], free[1], rtol=1e-4, atol=1e-4)
        assert (got[0] - free[0]).abs().max() > 1e-3


def test_rotary_scores_depend_on_differences_alone():
    angles = axial_angles(5, 7, 16)
    q, k = torch.randn(2, 1, 1, 1, 16)
    scores = rotate(q.expand(1, 1, 35, 16), angles) @ rotate(k.expand(1, 1, 35, 16), angles).mT
    grid = scores.view(5, 7, 5, 7)
    torch.testing.assert_close(grid[0, 1, 2, 3], grid[2, 4, 4, 6], rtol=1e-4, atol=1e-5)
    assert (grid[0, 1, 2, 3] - grid[0, 1, 3, 2]).abs() > 1e-3
    lengths = rotate(q, angles[:1]).norm(), q.norm()
    torch.testing.assert_close(*lengths)


def test_positions_are_all_different():
    table = sincos_positions(6, 5, 32)
    apart = torch.cdist(table, table) + torch.eye(30) * 9
    assert table.shape == (30, 32) and apart.min() > 0.5


def test_query_norms_bound_the_scores():
    attention = Attention(32, 2, qk_norm=True)
    x = torch.randn(2, 9, 32)
    with torch.no_grad():
        attention.qkv.weight *= 1e3
        q, k, _ = attention.qkv(x).chunk(3, -1)
        q, k = (u.unflatten(-1, (2, -1)) for u in (q, k))
        assert attention.q_norm(q).norm(dim=-1).max() <= 4.001
        assert attention.k_norm(k).norm(dim=-1).max() <= 4.001


def test_wrong_shapes_are_explained():
    with pytest.raises(ValueError, match="30x32 do not divide into patches of 4x4"):
        Transformer(3, (30, 32), patch=4)
    with pytest.raises(ValueError, match="net.mlp must be .* Did you mean"):
        Transformer(3, (32, 32), mlp="relu")
    net = Transformer(2, (8, 8), width=32, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"images of \(8, 8\), not \(16, 16\)"):
        net(torch.zeros(1, 2, 16, 16), torch.zeros(1))
    with pytest.raises(ValueError, match="without class_labels"):
        net(torch.zeros(1, 2, 8, 8), torch.zeros(1), class_labels=torch.zeros(1).long())


def peers(kind):
    diffusers = pytest.importorskip("diffusers")
    shared = dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3,
        sample_size=8, patch_size=2,
    )  # fmt: skip
    if kind == "dit":
        return diffusers.DiTTransformer2DModel(**shared, num_embeds_ada_norm=10)
    return diffusers.PixArtTransformer2DModel(
        **shared, caption_channels=12, cross_attention_dim=32, norm_type="ada_norm_single",
        num_embeds_ada_norm=1000, norm_eps=1e-6, norm_elementwise_affine=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dit", "pixart"])
def test_equals_diffusers_with_its_weights(kind, tmp_path):
    theirs = randomised(peers(kind))
    options = diffusers_transformer.net_options(theirs.config)
    ours = Transformer(**options).eval()
    ours.load_state_dict(diffusers_transformer.to_ours(ours, theirs.state_dict(), kind == "pixart"))
    x, label = torch.randn(3, 4, 8, 8), torch.tensor([3.0, 500.0, 999.0])
    text, mask = torch.randn(3, 7, 12), torch.arange(7) < torch.tensor([[7], [3], [5]])
    with torch.no_grad():
        if kind == "dit":
            labels = torch.tensor([0, 5, 10])  # the last is any class
            want = theirs(x, label, class_labels=labels).sample
            got = ours(x, label, class_labels=labels)
            torch.testing.assert_close(ours(x[2:], label[2:]), got[2:], rtol=1e-4, atol=1e-4)
        else:
            none = {"resolution": None, "aspect_ratio": None}
            want = theirs(
                x, encoder_hidden_states=text, timestep=label, added_cond_kwargs=none,
                encoder_attention_mask=mask.float(),
            ).sample  # fmt: skip
            got = ours(x, label, text=text, text_mask=mask)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()

    theirs.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000})
    )
    run = import_checkpoint(tmp_path / "model", tmp_path / "run")
    assert run.score.learned_variance and run.score.target == "eps"
    known = {"class_labels": torch.tensor([0, 5, -1])}
    if kind == "pixart":
        known = {"text": text, "text_mask": mask}
    eps = run.score.bind(**known).eps(x, torch.tensor(0.5))
    with torch.no_grad():
        same = ours(x, torch.full((3,), 499.0), **known)[:, :4]
    torch.testing.assert_close(eps, same, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
