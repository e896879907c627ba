"""Samples of a run that are told what to be: captions, guidance, a picture to start from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_run import command

from score_sde import VPSDE, FlowSDE, GaussianMixture, build, guide, load, sample
from score_sde.checks import UserError
from score_sde.conditioning.particles import sample_tilted
from score_sde.conditioning.rules import Projected
from score_sde.conditioning.text import WordTable
from score_sde.data.spec import DataSpec
from score_sde.noise import SeededNoise
from score_sde.runs.captions import read_prompts
from score_sde.runs.cascade import enlarge

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = DataSpec((3, 16, 16), 0.0, 255.0, 256, 127.5, 127.5, name="shapes")
NET = {"name": "unet", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [],
       "text_table": 64, "text_channels": 16}  # fmt: skip
SAMPLING = {"method": "dpmpp_2m", "steps": 4, "batch_size": 3}


def make_run(path, told, size=(16, 16), classes=(), **net):
    spec = replace(SPEC, shape=(3, *size), classes=classes)
    config = {"data": {"name": "shapes"}, "sde": {"name": "vp"}, "net": NET | net,
              "sampling": SAMPLING, "conditioning": told}  # fmt: skip
    torch.manual_seed(len(str(net)))
    model = build.build_model(config, spec)
    state = {name: torch.randn(v.shape) * 0.2 for name, v in model.net.state_dict().items()}
    path.mkdir(parents=True)
    save_file(state, path / "model.safetensors")
    saved = {"config": config, "data_spec": spec.to_dict(), "data_std": 0.5, "version": "0"}
    (path / "config.json").write_text(json.dumps(saved))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steering")
    make_run(folder / "told", {"text": "words", "text_length": 8, "dropout": 0.1})
    make_run(folder / "weak", {"text": "words", "text_length": 8, "dropout": 0.1}, width=16)
    make_run(folder / "always", {"text": "words", "text_length": 8})
    make_run(folder / "untold", {}, text_table=0)
    make_run(folder / "large", {}, (32, 32), text_table=0, picture=3)
    make_run(folder / "odd", {}, (24, 32), text_table=0, picture=3)
    return folder


def test_a_prompt_is_the_bound_condition_and_guidance_the_guided_score(runs):
    run = load(runs / "told", device="cpu")
    given = ["a red circle", "a blue square", "a red circle"]
    told = WordTable(8)(given)
    model = run.score
    x = run.sample(3, 5, prompt=given, guidance=3.0).x
    score = guide(model.bind(**told), model.bind(), 3.0)
    want = sample(run.sde, score, (3, 3, 16, 16), method="dpmpp_2m", steps=4, seeds=range(5, 8))
    torch.testing.assert_close(x, want, rtol=1e-3, atol=1e-3)
    plain = run.sample(3, 5, prompt=given).x
    torch.testing.assert_close(
        plain, run.sample(3, 5, prompt=given, guidance=1.0).x, rtol=1e-4, atol=1e-4
    )
    assert float((plain - x).abs().max()) > 0.01
    away = run.sample(3, 5, prompt=given, guidance=3.0, negative_prompt="a green cross").x
    score = guide(model.bind(**told), model.bind(**WordTable(8)(["a green cross"] * 3)), 3.0)
    want = sample(run.sde, score, (3, 3, 16, 16), method="dpmpp_2m", steps=4, seeds=range(5, 8))
    torch.testing.assert_close(away, want, rtol=1e-3, atol=1e-3)
    asked = {"guidance_rule": "apg", "guidance_options": {"eta": 0.3, "rescale": 0.5}}
    other = run.sample(3, 5, prompt=given, guidance=3.0, **asked)
    rule = Projected(eta=0.3)
    score = guide(model.bind(**told), model.bind(), 3.0, rule=rule, rescale=0.5)
    want = sample(run.sde, score, (3, 3, 16, 16), method="dpmpp_2m", steps=4, seeds=range(5, 8))
    torch.testing.assert_close(other.x, want, rtol=1e-3, atol=1e-3)
    assert other.settings["guidance_options"] == asked["guidance_options"]
    weak = load(runs / "weak", device="cpu")
    auto = run.sample(3, 5, prompt=given, guidance=2.0, against=weak).x
    score = guide(model.bind(**told), weak.score.bind(**told), 2.0)
    want = sample(run.sde, score, (3, 3, 16, 16), method="dpmpp_2m", steps=4, seeds=range(5, 8))
    torch.testing.assert_close(auto, want, rtol=1e-3, atol=1e-3)


def test_captions_are_written_beside_the_pictures(runs, tmp_path):
    base = ["--workdir", str(runs / "told"), "--mode=sample", "--device=cpu"]
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\na blue square\n")
    out = tmp_path / "out"
    asked = [f"--prompts={file}", "--num_samples=5", "--guidance=2", f"--out={out}"]
    assert command(*base, *asked) == 0
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a red circle", "a blue square"] * 2 + [
        "a red circle"
    ]
    assert all((out / line["file_name"]).is_file() for line in lines)
    one = load(runs / "told", device="cpu").sample(1, 4, prompt="a red circle", guidance=2.0)
    pixels = SPEC.to_uint8(one.x)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.load(out / "samples.npz")["samples"][4].astype(int) - pixels).max() <= 2
    assert command(*base, f"--prompts={file}", f"--out={tmp_path / 'two'}") == 0
    assert len(list((tmp_path / "two").glob("0*.png"))) == 2


def test_a_picture_to_start_from(runs, tmp_path):
    run = load(runs / "told", device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    x0 = SPEC.to_model(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]
    more = {"grid": "uniform", "strength": 0.5, "denoise": False}
    got = run.sample(2, 3, init=tmp_path / "a.png", **more).x
    times = torch.linspace(1, 1e-3, 5, dtype=torch.float64)[2:]
    eps = SeededNoise(range(3, 5), (3, 16, 16)).draw()
    start = run.sde.alpha(times[0]) * x0 + run.sde.sigma(times[0]) * eps
    want = sample(run.sde, run.score, x_T=start.float(), grid=times, method="dpmpp_2m",
                  seeds=range(3, 5), denoise=False)  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    alone = run.sample(1, 4, init=x0, **more).x
    torch.testing.assert_close(alone[0], got[1], rtol=1e-3, atol=1e-3)


def test_a_second_run_enlarges_what_the_first_draws(runs, tmp_path):
    base = ["--workdir", str(runs / "untold"), "--mode=sample", "--num_samples=4", "--device=cpu"]
    out = tmp_path / "out"
    assert command(*base, f"--upscale={runs / 'large'}", f"--out={out}") == 0
    pixels = np.load(out / "samples.npz")["samples"]
    assert pixels.shape == (4, 32, 32, 3)
    small, large = load(runs / "untold", device="cpu"), load(runs / "large", device="cpu")
    x = small.sample(1, 3).x
    alone = SPEC.to_uint8(enlarge(large, x, SPEC, 3).x)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(alone - pixels[3].astype(int)).max() <= 2
    level = torch.full((1,), 0.1)
    noise = SeededNoise([3 ^ 0x2C9277B5], (3, 16, 16)).draw()
    score = large.score.bind(picture=x.clamp(-1, 1) + 0.1 * noise, picture_level=level)
    want = sample(large.sde, score, (1, 3, 32, 32), method="dpmpp_2m", steps=4, seeds=[3])
    torch.testing.assert_close(enlarge(large, x, SPEC, 3).x, want, rtol=1e-3, atol=1e-3)
    for wrong, message in (("told", "does not enlarge pictures"), ("odd", "cannot enlarge")):
        with pytest.raises(UserError, match=message):
            enlarge(load(runs / wrong, device="cpu"), x, SPEC, 0)


@pytest.mark.parametrize(
    ("run", "flags", "message"),
    [
        ("untold", ["--prompt=a"], "trained without captions, so it takes no prompt"),
        ("always", ["--prompt=a", "--guidance=2"], "conditioning.dropout=0.1.; this one never was"),
        (
            "always",
            [],
            "always told a caption .conditioning.dropout=0., so it draws nothing "
            "without one: give a prompt",
        ),
        (
            "large",
            [],
            "always told a picture .net.picture., so it draws nothing without one: it "
            "enlarges what another run draws, --workdir OTHER --upscale",
        ),
        ("told", ["--guidance=2"], "leads from no condition to one"),
        ("told", ["--prompt=a", "--guidance=-1"], "at least 0 .got -1.0."),
        (
            "told",
            ["--prompt=a", "--negative_prompt=b"],
            "a negative prompt has no effect without guidance",
        ),
        ("told", ["--negative_prompt=b", "--guidance=2"], "a negative prompt goes with a prompt"),
        ("told", ["--prompt=  ", "--guidance=2"], "caption 0 is '  ': give some text"),
        ("told", ["--prompts={file}"], "has 3 prompts, more than 2 samples"),
        ("told", ["--prompt=a", "--prompts={file}"], "prompt and prompts exclude each other"),
        ("told", ["--prompts=/nowhere"], "cannot be read"),
        ("told", ["--prompt=a", "--against={weak}"], "another run has no effect without guidance"),
        ("told", ["--init={file}"], "the picture .* cannot be read"),
        ("told", ["--init={file}", "--strength=0"], "strength must lie in .0, 1."),
        ("told", ["--class_labels=1"], "knows no classes"),
        ("told", ["--prompt=a", "--strength=0.5"], "give init too"),
        ("told", ["--prompt=a", "--guidance_rule=apg"], "no effect without guidance"),
        (
            "told",
            ["--prompt=a", "--guidance=2", "--guidance_rule=apg", "--guidance_option=etta=1"],
            "'etta' is unknown. Did you mean 'eta'",
        ),
        (
            "told",
            ["--prompt=a", "--guidance=2", "--guidance_rule=apg", "--guidance_option=momentum=3"],
            "apg.momentum must be less than 1 .got 3.",
        ),
        (
            "told",
            ["--prompt=a", "--guidance=2", "--guidance_option=rescale=x"],
            "rescale must be a number .got 'x'.",
        ),
        (
            "told",
            ["--prompt=a", "--guidance=2", "--guidance_option=threshold=2"],
            "threshold must be at most 1 .got 2",
        ),
        ("told", ["--prompt=a", "--guidance=2", "--against_step=7"], "without its checkpoints"),
        (
            "told",
            ["--prompt=a", "--guidance=2", "--against={weak}", "--negative_prompt=b"],
            "a negative prompt and another run .* exclude",
        ),
    ],
)
def test_a_wish_that_cannot_be_is_a_sentence(runs, run, flags, message, tmp_path, capsys):
    import re

    file = tmp_path / "p.txt"
    file.write_text("a\nb\nc\n")
    flags = [f.replace("{file}", str(file)).replace("{weak}", str(runs / "weak")) for f in flags]
    base = ["--workdir", str(runs / run), "--mode=sample", "--num_samples=2", "--device=cpu"]
    assert command(*base, *flags, f"--out={tmp_path / 'out'}") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and re.search(message, said), said


@pytest.mark.parametrize(
    "words", ["likelihood", "encode", "calibrate", "restore --task=inpaint", "diagnose"]
)
def test_a_run_that_enlarges_has_no_score_without_a_picture(runs, words, capsys):
    made = sorted(runs.rglob("*"))
    mode = [f"--mode={words.split()[0]}", *words.split()[1:]]
    assert command("--workdir", str(runs / "large"), *mode, "--device=cpu") == 2
    said = capsys.readouterr().err
    assert "was always told a picture (net.picture), and its score without one means" in said
    assert sorted(runs.rglob("*")) == made


@pytest.mark.parametrize("name", ["against", "prior", "classifier"])
@pytest.mark.parametrize("other", [3, "runs/x", lambda x, t: x])
def test_another_run_or_classifier_is_loaded_first(runs, name, other):
    run = load(runs / "told", device="cpu")
    with pytest.raises(UserError, match=f"{name} must be a .*load"):
        run.sample(2, prompt="a heart", guidance=2.0, **{name: other})


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "a").write_text("x\n\ny\n")
    with pytest.raises(UserError, match="line 2 of .* is empty"):
        read_prompts(tmp_path / "a", None)
    with pytest.raises(UserError, match="1 captions of prompt do not fit 2 samples"):
        load(make_run(tmp_path / "run", {"text": "words"}), device="cpu").sample(2, prompt=["a"])


@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE()], ids=lambda s: type(s).__name__)
def test_particles_reach_the_tilted_law_as_they_grow(sde):
    """On the line, against sums: guidance alone is biased, particles are not."""
    data = GaussianMixture([0.4, 0.2, 0.4], [[-1.0], [0.3], [1.0]], [0.2, 0.3, 0.3], [0, 0, 1])
    w, line = 3.0, torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    label = torch.zeros(len(line), dtype=torch.int64)
    log_q = w * data.log_prob(line, class_labels=label) + (1 - w) * data.log_prob(line)
    cdf = log_q.softmax(0).cumsum(0)
    score = data.score(sde)
    guided = guide(score.bind(class_labels=torch.tensor(0)), score.bind(), w)

    def distance(x):
        """Wasserstein-2 to the law, by its quantiles."""
        x = x.double().flatten().sort().values
        places = (torch.arange(len(x)) + 0.5) / len(x)
        exact = line[torch.searchsorted(cdf, places).clamp(max=len(line) - 1), 0]
        return float((x - exact).square().mean().sqrt())

    def mean(n, count):
        found = [sample_tilted(guided, (n, 1), steps=100, seeds=range(k * n, k * n + n),
                               dtype=torch.float64) for k in range(count)]  # fmt: skip
        return sum(distance(f.x) for f in found) / count

    few, many = mean(64, 8), mean(2048, 2)
    assert many < 0.5 * few and many < 0.06
    plain = sample(sde, guided, (2048, 1), method="dpmpp_2m_sde", steps=100, grid="logsnr",
                   seeds=range(2048), dtype=torch.float64)  # fmt: skip
    assert distance(plain) > 1.5 * many


def test_particles_at_scale_one_are_the_class_and_bad_settings_are_said():
    data = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.2, 0.3], [0, 1])
    score = data.score(VPSDE())
    c = score.bind(class_labels=torch.tensor(1))
    found = sample_tilted(guide(c, score.bind(), 1.0), (2000, 1), steps=60, seeds=range(2000))
    assert found.draws == 1 and found.smallest == pytest.approx(1.0) and found.nfe == 121
    assert abs(float(found.x.mean()) - 1) < 0.05 and abs(float(found.x.var()) - 0.3) < 0.04
    for options in ({"interval": (-1.0, 1.0)}, {"rule": "apg"}, {"rescale": 0.5}):
        with pytest.raises(UserError, match="that of a constant scale and the rule cfg"):
            sample_tilted(guide(c, score.bind(), 2.0, **options), (4, 1))
    with pytest.raises(UserError, match="share must be greater than 0"):
        sample_tilted(guide(c, score.bind(), 2.0), (4, 1), share=0.0)
