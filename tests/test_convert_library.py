"""Networks that diffusers itself writes: imported, they compute what it computes."""

import json
import math
import sys

import pytest
import torch
from foreign import GivenNoise, check_score, time_of
from golden_cases import gap

from score_sde import import_checkpoint, sample
from score_sde.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
DDPM = dict(sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
NCSN = dict(sample_size=16, time_embedding_type="fourier", mid_block_scale_factor=math.sqrt(2),
            attention_head_dim=None, norm_eps=1e-6)  # fmt: skip
SKIP, ATTN = ("SkipDownBlock2D", "SkipUpBlock2D"), ("AttnSkipDownBlock2D", "AttnSkipUpBlock2D")


def skip_blocks(*blocks):
    return {"down_block_types": tuple(down for down, _ in blocks),
            "up_block_types": tuple(up for _, up in reversed(blocks))}  # fmt: skip


def library_net(folder, scheduler="DDPMScheduler", variance=None, **settings):
    """A network of diffusers with random weights, in a folder as it writes them."""
    library = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = library.UNet2DModel(**settings).eval()
    for name, p in net.named_parameters():
        if p.ndim == 1 and "time_proj" not in name:
            torch.nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.1)
    net.save_pretrained(folder)
    options = {"variance_type": variance} if variance else {}
    getattr(library, scheduler)(**options).save_pretrained(folder)
    return net.requires_grad_(False)


def test_the_score_of_a_class_is_diffusers_own_at_every_time(tmp_path):
    net = library_net(tmp_path / "hub", **DDPM, num_class_embeds=7)
    run = import_checkpoint(tmp_path / "hub", tmp_path / "run", device="cpu")
    assert run.score.net.classes == 7 and len(run.data_spec.classes) == 7
    steps = torch.tensor([0, 1, 10, 150, 500, 850, 999])
    times = (steps.double() + 1) / 1000
    assert (float(times[0]), float(times[-1])) == (run.sde.t_min, run.sde.t_max)
    x = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for labels in (torch.arange(7), torch.full((7,), 4), torch.arange(7).flip(0)):
        eps = net(x, steps, class_labels=labels).sample
        got = run.score.bind(class_labels=labels)(x, times)
        assert gap(got, -eps / run.sde.sigma(times).to(eps)[:, None, None, None]) < 1e-4
    with pytest.raises(ValueError, match="class_labels should be provided"):
        net(x, steps)  # so a label is drawn for every sample that is given none
    assert run.class_labels(None, range(5)) is not None


def test_learned_variances_of_diffusers_are_those_of_its_scheduler(tmp_path, capsys):
    settings = {**DDPM, "out_channels": 6}
    net = library_net(tmp_path / "hub", variance="learned_range", **settings)
    scheduler = sys.modules["diffusers"].DDPMScheduler(
        variance_type="learned_range", clip_sample=False
    )
    run = import_checkpoint(tmp_path / "hub", tmp_path / "run", device="cpu")
    assert run.score.learned_variance and "and variances" in capsys.readouterr().out
    gen = torch.Generator().manual_seed(1)
    x, z = torch.randn(2, 2, 3, 16, 16, generator=gen)
    for step in (999, 400, 1):
        out = net(x, torch.tensor(step)).sample
        want = scheduler.step(out, step, x, generator=torch.Generator().manual_seed(3)).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        got = sample(run.sde, run.score, x_T=x, method="ancestral", variance="learned",
                     grid=[(step + 1) / 1000, step / 1000], denoise=False,
                     noise=lambda *_: GivenNoise(z))  # noqa: B023  # fmt: skip
        assert gap(got, want) < 1e-4
    work = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(["main.py", "--mode", "export", "--format", "diffusers", *work]) == 0
    said = json.loads((tmp_path / "out" / "scheduler_config.json").read_text())
    assert said["variance_type"] == "learned_range"
    library_net(tmp_path / "fixed", **settings)
    run = import_checkpoint(tmp_path / "fixed", tmp_path / "other", device="cpu")
    assert not run.score.learned_variance


@pytest.mark.parametrize(
    ("widths", "blocks", "layers", "groups"),
    [
        ((32, 64, 64), (SKIP, ATTN, SKIP), 1, None),
        ((32, 64, 96), (ATTN, ATTN, ATTN), 2, None),
        ((64, 128), (SKIP, ATTN), 1, 32),
        ((32, 64), (ATTN, SKIP), 2, 16),
    ],
)
def test_narrow_skip_blocks_are_diffusers_own(widths, blocks, layers, groups, tmp_path):
    settings = NCSN | skip_blocks(*blocks) | {"block_out_channels": widths}
    settings |= {"layers_per_block": layers, "norm_num_groups": groups}
    net = library_net(tmp_path / "hub", "ScoreSdeVeScheduler", **settings)
    run = import_checkpoint(tmp_path / "hub", tmp_path / "run", device="cpu")
    sigma = torch.tensor([0.011, 0.5, 3.0, 1300.0])
    x = sigma[:, None, None, None] * torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        want = net(x, sigma).sample
        got = run.score.net(x, sigma.log()) / sigma[:, None, None, None]
    assert gap(got, want) < 1e-5
    check_score(run, x, time_of(run, sigma), want)
    sampler = ["--mode", "sample", "--sampler", "adams", "--nfe", "10", "--num_samples", "1"]
    assert main(["main.py", "--workdir", str(tmp_path / "run"), "--device", "cpu", *sampler]) == 0
    work = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(["main.py", "--mode", "export", "--format", "diffusers", *work]) == 0
    again = type(net).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert gap(again(x, sigma).sample, want) < 1e-5
