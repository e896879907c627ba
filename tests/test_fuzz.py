"""Whatever is given wrong, to a public function or a flag, ends in one sentence."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot

import score_sde
from score_sde import cli, plotting
from score_sde.build import build_data, build_net, build_sde
from score_sde.checks import UserError, machine_memory
from score_sde.data import DataSpec
from score_sde.losses import ScoreMatching
from score_sde.nets import MLP, Transformer, UNet
from score_sde.restoration import Matrix
from score_sde.runs.configs import load_config
from score_sde.sampling import SamplingSettings, make_sampler
from score_sde.training import TrainingSettings

SDE = score_sde.VPSDE()
DATA = score_sde.Gaussian([0.0, 0.0], 0.25)
SCORE, X = DATA.score(SDE), torch.zeros(2, 2)
POINTS = DATA.sample(64, seed=1).float()

# A call that is right, of which one argument at a time is made wrong.
CALLS = {
    "sample": (score_sde.sample, dict(
        sde=SDE, score=SCORE, shape=(2, 2), method="ddim", steps=2, nfe=None, grid="uniform",
        seeds=[1, 2], denoise=True, noise="seeded", noise_scale=1.0, batch_size=2, hook=None,
        progress=False, dtype=None)),
    "log_likelihood": (score_sde.log_likelihood, dict(
        sde=SDE, score=SCORE, x=X, divergence="exact", probes=1, nfe=8, rtol=1e-2, atol=1e-2,
        batch_size=2, data_std=0.5, seeds=[1, 2])),
    "vp": (score_sde.VPSDE, dict(beta_min=0.1, beta_max=20.0, t_min=1e-3, t_max=1.0)),
    "ve": (score_sde.VESDE, dict(sigma_min=0.01, sigma_max=50.0, t_min=1e-5, t_max=1.0)),
    "edm": (score_sde.EDMSDE, dict(t_min=0.002, t_max=80.0)),
    "cosine": (score_sde.CosineSDE, dict(offset=0.008, t_max=0.99)),
    "table": (score_sde.TableSDE, dict(table="linear", steps=10, t_min=0.01)),
    "model": (score_sde.ScoreModel, dict(
        net=MLP(2, 8, 1), sde=SDE, target="eps", data_std=1.0, time_input="time", time_scale=None,
        scale_input=None, precision="fp32", time_shift=0.0, time_table=None, center_input=False,
        learned_variance=False)),
    "loss": (ScoreMatching, dict(
        weighting="simple", times="uniform", t_min=1e-3, steps=10, log_sigma_mean=-1.2,
        log_sigma_std=1.2, stratified=False, reduction="mean", variance_weight=0.0)),
    "training": (TrainingSettings, dict(
        batch_size=8, batch_per_device=None, steps=10, minutes=0.0, optimizer="adam", lr=1e-3,
        betas=(0.9, 0.99), weight_decay=0.0, muon_lr=0.03, warmup_steps=1, decay=0.0, grad_clip=1.0,
        ema_decay=0.99, keep=1, keep_every=0, log_every=1, save_every=1, sample_every=1,
        max_bad_steps=1, compile=False, sharding="none", tensorboard=False)),
    "sampling": (SamplingSettings, dict(
        method="ddim", steps=2, nfe=None, grid=None, denoise=True, batch_size=2, options=None)),
    "sampler": (make_sampler, dict(method="heun")),
    "unet": (UNet, dict(
        channels=1, size=(8, 8), width=8, multipliers=(1, 2), blocks=1, attention=(), heads=1,
        dropout=0.0, patch=1, classes=0, class_dropout=0.0, groups=2, norm_eps=1e-6)),
    "transformer": (Transformer, dict(
        channels=1, size=(8, 8), width=16, depth=1, heads=2, patch=2, classes=0, dropout=0.0)),
    "mlp": (MLP, dict(dim=2, width=8, depth=1)),
    "data": (score_sde.data.load_data, dict(
        name="moons", split="train", size=None, resize=None, convert="auto", channels=None,
        range=None, scaling="standard", flip=False, strict=False, workers=0, options=None)),
    "load": (score_sde.load, dict(path="no/such/run", weights="ema", device="cpu", trust=False)),
    "export": (score_sde.export_run, dict(workdir="no/such/run", layout="safetensors")),
    "import": (score_sde.import_checkpoint, dict(path="no/such/file", workdir="no/such/run")),
    "calibrate": (score_sde.calibrate, dict(
        sde=SDE, score=SCORE, shape=(32, 2), nfe=2, data_std=0.5, denoise=True, thorough=False,
        seed=0, device="cpu")),
    "verify": (score_sde.verify, dict(
        sde=SDE, method="heun", steps=[2], data=DATA, grid=None, denoise=False, seed=0,
        monte_carlo=0)),
    "restore": (score_sde.restore, dict(
        sde=SDE, score=SCORE, y=torch.zeros(1), operator=Matrix(torch.ones(1, 2)), noise_std=0.1,
        gaussian=DATA, method="dps", n=2, nfe=4, seeds=[1, 2], group=2, batch_size=2,
        shape=(2,), device="cpu")),
    "guide": (score_sde.guide, dict(
        conditional=SCORE, against=SCORE, scale=2.0, interval=(-5.0, 5.0), rule="cfg", rescale=0.0,
        threshold=None, bounds=(-1.0, 1.0), sde=SDE)),
    "evaluate": (score_sde.evaluate, dict(
        samples=POINTS, reference=POINTS + 0.1, features=None, train=None, held_out=None,
        measures=["sliced_w2"], blocks=4, seed=0, few=False, labels=None, reference_labels=None)),
    "suggest": (score_sde.suggest, dict(data=POINTS, seed=0)),
    "diagnose": (score_sde.diagnose, dict(
        run="no/such/run", data=None, num_samples=2, items=2, weights="ema", device="cpu")),
    "train": (score_sde.train, dict(
        config="no_such_config", workdir="no/such/run", resume=False, overwrite=False,
        device="cpu", resume_changed=False)),
    "score_field": (plotting.plot_score_field, dict(
        score=SCORE, t=0.5, kind="quiver", density=None, extent=3.0, arrows=3, scale=None)),
    "points": (plotting.plot_points, dict(x=X, extent=2.0, colour="red")),
    "map": (plotting.plot_map, dict(
        values=lambda x: x[:, 0], extent=3.0, label="", n=4, vmin=0.0, vmax=1.0)),
    "schedule": (plotting.plot_schedule, dict(processes=SDE)),
    "convergence": (plotting.plot_convergence, dict(
        curves={"heun": ([10, 20], [0.1, 0.02])}, order=2.0, ylabel="error")),
    "style": (plotting.sampler_style, dict(name="heun")),
    "trajectory": (plotting.record_trajectory, dict(
        sde=SDE, score=SCORE, shape=(2, 2), x_T=None, denoise=False, seeds=[1, 2])),
    "grid": (plotting.image_grid, dict(
        images=torch.zeros(2, 1, 4, 4), spec=None, columns=2, row_labels=["a"], title="")),
    "build_sde": (build_sde, dict(config={"sde": {"name": "vp"}})),
    "build_net": (build_net, dict(config={"net": {"name": "mlp"}}, spec=DataSpec((2,)))),
    "build_data": (build_data, dict(config={"data": {"name": "moons"}})),
}  # fmt: skip
WRONG = [
    "5", "", "nan", "Nonsense", "os.system", "a..b", "\n", "é", True, False, 0, -1, 1.5, -0.5,
    10**10, 2**70, math.nan, math.inf, -math.inf, 1e300, [], [1, "a"], (1.5,), {}, {"a": 1},
    b"x", object(), torch.tensor([1.0, 2.0]), torch.tensor(math.nan), np.array(["a"]),
    np.float32(-1), range(0), Ellipsis, 1j,
]  # fmt: skip
FIELDS = [(name, field) for name, (_, right) in CALLS.items() for field in right]
OPEN = ("sample", "sampler", "verify", "restore", "train", "build_sde", "build_net", "build_data",
        "trajectory")  # fmt: skip
OWN_CODE = {("guide", "rule"), ("evaluate", "features")}  # a path of theirs is called as it is
SECTIONS = {"build_sde": "sde", "build_net": "net", "build_data": "data"}


def outcome(name, field, value):
    """Call with one argument made wrong: its sentence, or None where the value is a right one."""
    call, right = CALLS[name]
    changed = {**right, field: value}
    if name in SECTIONS and field == "config":
        changed = {**right, "config": {SECTIONS[name]: value}}
    elif (name, field) == ("build_net", "spec"):
        return None
    elif (name, field) in OWN_CODE and value == "os.system":
        return None
    try:
        call(**changed)
    except UserError as error:
        message = str(error)
        assert message and "\n" not in message.strip(), (name, field, message)
        return message
    return None


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_end_in_a_sentence(name):
    drawn, said = random.Random(name), 0
    for field in CALLS[name][1]:
        for value in drawn.sample(WRONG, 4):
            said += outcome(name, field, value) is not None
        said += name not in OPEN and outcome(name, f"{field}x", 1) is not None
    assert said
    pyplot.close("all")


@pytest.fixture(scope="module")
def a_gigabyte():
    """A gigabyte of address space beyond what is there; whatever asks for more fails."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    machine_memory.cache_clear()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    machine_memory.cache_clear()


# What is right but merely long, a million steps, is not drawn.
NUMBERS = st.integers(-(2**70), 64) | st.integers(2**40, 2**70) | st.floats()


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIELDS), st.sampled_from(WRONG) | NUMBERS | st.text())
@pytest.mark.usefixtures("a_gigabyte")
def test_any_wrong_argument_ends_in_a_sentence(place, value):
    outcome(*place, value)


# The command line ---------------------------------------------------------------------------------

TEXTS = ["", "nan", "-1", "x", "1e999", "[", "0", "1.5", "None", "true", "é", "../..", "a=b"]


def command(capsys, *words):
    """The exit code of a command and what it says of an error."""
    code = cli.main(["score-sde", *words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return code, lines


def flags():
    return [(mode, flag.name) for mode, row in cli.MODES.items() for flag in row.flags]


@pytest.mark.parametrize("mode", cli.MODES)
def test_wrong_flags_end_in_a_sentence(mode, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.Command, "run", lambda self: None)  # what is read right is not done
    drawn = random.Random(mode)
    for (_, flag), text in itertools.product(
        [f for f in flags() if f[0] == mode], drawn.sample(TEXTS, 5)
    ):
        words = ["--mode", mode, "--workdir", "run", f"--{flag}={text}"]
        code, lines = command(capsys, *words, f"--{flag}x=1")
        assert code == 2 and len(lines) == 1, words
        code, lines = command(capsys, *words)
        assert code in (0, 2) and len(lines) == code // 2, words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("section", ["data", "sde", "model", "loss", "training", "sampling", "net"])
def test_wrong_fields_of_a_config_end_in_a_sentence_and_make_nothing(
    section, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = load_config("toy2d").to_dict()
    for field in config[section]:
        for text in ("x y", "[", "-1e400"):
            words = ["--config", "toy2d", "--workdir", "run", f"--config.{section}.{field}={text}"]
            code, lines = command(capsys, *words, "--config.training.steps=0")
            assert code == 2 and len(lines) == 1, words
    assert not (tmp_path / "run").exists()
