"""Configs, run directories and the command line, as people use them."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import build, cli, load
from score_sde.checks import UserError
from score_sde.conditioning.classes import LabelError
from score_sde.data import DataSpec
from score_sde.runs.train import train
from score_sde.sampling import change_sampling, sampling_of
from score_sde.training.checkpoints import load_weights

CONFIGS = Path(__file__).parent.parent / "configs"
CIFAR = DataSpec((3, 32, 32), 0.0, 255.0, 256, 127.5, 127.5, name="cifar10")
TINY_NET = [
    "--config.net.width=16",
    "--config.net.blocks=1",
    "--config.net.decoder_blocks=1",
    "--config.training.batch_size=8",
    "--config.training.minutes=0",
    "--config.training.steps=4",
    "--config.training.tensorboard=False",
    "--config.training.sample_images=4",
]


def config_of(name: str, *variant: str) -> dict:
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*variant).to_dict()


def command(*arguments: str) -> int:
    return cli.main(["score-sde", *arguments])


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tiny run on garments."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    code = command("--config", "vp_fashion", "--workdir", str(workdir), *TINY_NET)
    assert code == 0
    return workdir


ALL_CONFIGS = [
    *[("vp_cifar", v) for v in ("vp", "subvp", "ddpm", "cosine", "iddpm", "flow", "small")],
    *[("ve_cifar", v) for v in ("ve", "small")],
    *[("edm_cifar", v) for v in ("edm", "small")],
    *[("toy2d", v) for v in ("ring8", "moons", "checkerboard", "swissroll")],
    ("vp_fashion",),
]


@pytest.mark.parametrize("config", ALL_CONFIGS, ids="-".join)
def test_every_config_builds(config):
    values = config_of(*config)
    build.check_sections(values)
    spec = CIFAR
    if config[0] == "toy2d":
        spec = DataSpec((2,))
    elif config[0] == "vp_fashion":
        spec = DataSpec((1, 28, 28), 0.0, 255.0, 256)
    with torch.device("meta"):
        net = build.build_net(values, spec)
    if config == ("vp_cifar", "vp"):
        assert sum(p.numel() for p in net.parameters()) == 61_804_419
    build.build_sde(values)
    build.build_objective(values), build.build_training(values), sampling_of(values["sampling"])


def test_a_wrong_config_name_is_explained():
    with pytest.raises(ValueError, match="vp_cifar has no variant 'vpp'; choose from vp, subvp"):
        config_of("vp_cifar", "vpp")


def test_misspelt_keys_from_python_are_explained():
    config = config_of("toy2d")
    config["training"]["learning_rat"] = 1.0
    with pytest.raises(UserError, match="training: the key 'learning_rat' is unknown"):
        build.build_training(config)
    config = config_of("toy2d")
    config["trainig"] = {}
    with pytest.raises(
        UserError, match="the section 'trainig' is unknown.*Did you mean 'training'"
    ):
        build.check_sections(config)
    config = config_of("toy2d")
    config["sde"]["sigma_max"] = 3.0
    with pytest.raises(UserError, match="sde: the key 'sigma_max' is unknown.*beta_max"):
        build.build_sde(config)
    config["sde"] = {"name": "vpp"}
    with pytest.raises(UserError, match="Did you mean 'vp'.*dotted path"):
        build.build_sde(config)
    config["sde"] = {"name": "nowhere.SDE"}
    with pytest.raises(UserError, match="cannot be imported"):
        build.build_sde(config)
    with pytest.raises(UserError, match="unet does not take items of shape .2,.*with mlp"):
        build.build_net({"net": {"name": "unet"}}, DataSpec((2,)))
    with pytest.raises(UserError, match="Height 28 is not divisible by 8"):
        build.build_net(config_of("vp_cifar"), DataSpec((1, 28, 28), 0.0, 255.0, 256))


def test_a_users_classes_are_found_by_dotted_path():
    sde = build.build_sde({"sde": {"name": "conftest.QuarterSDE", "t_max": 0.9}})
    assert sde.t_max == 0.9 and type(sde).__name__ == "QuarterSDE"


# Training and sampling ----------------------------------------------------------------------------


def test_a_run_directory_holds_everything(trained):
    saved = json.loads((trained / "config.json").read_text())
    assert saved["data_spec"]["shape"] == [1, 28, 28] and saved["config"]["net"]["width"] == 16
    assert (trained / "checkpoints" / "step_00000004" / "ema.safetensors").is_file()
    picture = Image.open(trained / "progress" / "step_00000004.png")
    assert picture.size == (9 * (2 * 28 + 2), 9 * (2 * 28 + 2))  # enlarged by a whole factor
    loaded = load(trained)
    assert loaded.step == 4 and loaded.data_spec.classes[0] == "t-shirt"
    x = torch.randn(2, 1, 28, 28)
    assert loaded.score(x, torch.tensor(0.5)).shape == x.shape
    raw = load(trained, weights="model")
    pairs = zip(loaded.score.parameters(), raw.score.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_exactly_as_many_files_as_asked_for(trained):
    for n in (50, 3):
        arguments = ["--workdir", str(trained), "--mode", "sample", "--num_samples", str(n)]
        assert command(*arguments, "--sampler", "heun", "--steps", "1", "--batch_size", "16") == 0
        (folder,) = (trained / "samples").glob(f"heun_1steps_seeds0-{n - 1}_*")
        names = sorted(p.name for p in folder.glob("0*.png"))
        assert names == [f"{i:06d}.png" for i in range(n)]
        pixels = np.load(folder / "samples.npz")["samples"]
        assert pixels.shape == (n, 28, 28, 1) and pixels.dtype == np.uint8
        assert np.array_equal(np.array(Image.open(folder / names[-1])), pixels[-1, ..., 0])
        assert Image.open(folder / "grid.png").mode == "L"
    facts = json.loads((folder / "settings.json").read_text())
    assert facts["nfe"] == 3 and facts["num_samples"] == 3 and facts["method"] == "heun"


@pytest.mark.parametrize("sampler", ["ancestral", "euler_maruyama", "ode"])
def test_the_missions_three_samplers(trained, capsys, sampler):
    arguments = ["--workdir", str(trained), "--mode", "sample", "--sampler", sampler]
    extra = [] if sampler == "ode" else ["--steps", "3"]
    loose = ["--option", "rtol=0.05", "--option", "atol=0.05"] if sampler == "ode" else []
    assert command(*arguments, *extra, *loose, "--num_samples", "2") == 0
    line = next(k for k in capsys.readouterr().out.splitlines() if k.startswith("2 samples:"))
    assert f"method={sampler}" in line and "NFE" in line and line.endswith("s")


def test_sampling_is_reproducible_by_seed_and_batch(trained):
    result = load(trained).sample(5, method="euler", steps=2)
    again = load(trained).sample(2, first_seed=3, method="euler", steps=2)
    torch.testing.assert_close(again.x, result.x[3:], atol=0.05, rtol=0.05)  # bf16 network


def test_resume_goes_on_bit_for_bit(work):
    """Two steps and two more are four steps: weights, average and log."""
    common = ["--config", "vp_fashion", "--config.model.precision=fp32", *TINY_NET]
    every = ["--config.training.log_every=1", "--config.training.save_every=2"]
    # The learning rate of a run depends on its length: stop a run of four steps after two.
    assert command(*common, *every, "--workdir", "whole") == 0
    assert command(*common, *every, "--workdir", "parts") == 0
    for kept in ("checkpoints/step_00000004",):
        shutil.rmtree(work / "parts" / kept)
    assert command(*common, *every, "--workdir", "parts", "--resume") == 0
    for name in ("model", "ema"):
        a, b = (load_weights(work / d / "checkpoints", 4, name) for d in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    logs = [
        [json.loads(k) for k in (work / d / "log.jsonl").read_text().splitlines()]
        for d in ("whole", "parts")
    ]
    for key in ("step", "loss", "loss_smooth", "grad_norm", "lr"):
        assert [k[key] for k in logs[0]] == [k[key] for k in logs[1]], key
    bins = [{k: v for k, v in line.items() if "/" in k} for log in logs for line in log]
    assert bins[:4] == bins[4:]
    for end in ("", "_raw"):
        a, b = (work / d / "progress" / f"step_00000004{end}.png" for d in ("whole", "parts"))
        assert a.read_bytes() == b.read_bytes()


def test_vectors_train_and_sample_too(work):
    small = ["--config.training.steps=3", "--config.sampling.steps=2"]
    fast = ["--config.training.tensorboard=False", "--config.training.batch_size=16"]
    assert command("--config", "toy2d:moons", *small, *fast, "--config.sampling.batch_size=50") == 0
    assert command("--workdir", "runs/toy2d_moons", "--mode", "sample", "--num_samples", "7") == 0
    folder = next((work / "runs" / "toy2d_moons" / "samples").iterdir())
    assert np.load(folder / "samples.npz")["samples"].shape == (7, 2)
    assert Image.open(folder / "grid.png").size == (256, 256)


def test_a_folder_of_users_images_from_start_to_end(work, capsys):
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (18, 30, 4), dtype=np.uint8)
        (work / "mine" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(work / "mine" / str(i % 2) / f"{i}.PNG")
    common = ["--config", "vp_cifar:small", *TINY_NET, "--config.net.attention=()"]
    assert command(*common, "--data", "mine", "--workdir", "a") == 2  # 18 does not divide by 4
    sized = ["--config.data.size=(20, 32)", "--config.data.resize=pad"]
    assert command(*common, *sized, "--data", "mine", "--workdir", "a", "--overwrite") == 0
    printed = capsys.readouterr().out
    assert "9 images are few" in printed and "2 classes found" in printed
    assert command("--workdir", "a", "--mode", "sample", "--num_samples", "2", "--nfe", "3") == 0
    picture = next((work / "a" / "samples").rglob("000001.png"))
    assert Image.open(picture).size == (32, 20)


# The command line ---------------------------------------------------------------------------------


def test_help_shows_modes_samplers_and_examples(capsys):
    assert command("--help") == 0
    text = capsys.readouterr().out
    for word in (
        "train ",
        "sample ",
        "ancestral",
        "euler_maruyama",
        "ode",
        "vp_fashion",
        "--resume",
    ):
        assert word in text
    assert text.count("score-sde --") >= 3
    assert command("--list_samplers") == 0
    assert "dpmpp_2m_sde" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config or --workdir"),
        (["--mode", "train"], "give --config or --workdir"),
        (["--config", "vp_fasion"], "No config 'vp_fasion'. Did you mean 'vp_fashion'"),
        (["--config", "vp_cifar:smal"], "no variant 'smal'; choose from vp"),
        (
            ["--config", "vp_fashion", "--mode", "trian"],
            "Unknown mode 'trian'. Did you mean 'train'",
        ),
        (
            ["--config", "vp_fashion", "--config.training.learning_rat=1"],
            "training.learning_rat: unknown config key",
        ),
        (["--config", "vp_fashion", "--config.training.stepz=1"], "Did you mean 'training.steps'"),
        (["--config", "vp_fashion", "--config.training.steps=many"], "steps"),
        (["--config", "vp_fashion", "--config.net.attention=(16,)"], r"heights \[14, 7\]"),
        (["--config", "vp_fashion", "--samplr", "ode"], "samplr"),
        (
            ["--config", "vp_fashion", "--sampler", "oed"],
            "sampler 'oed' is unknown. Did you mean 'ode'",
        ),
        (["--config", "vp_fashion", "train"], "unexpected argument 'train'"),
        (["--config", "vp_fashion", "--resume", "--workdir", "new"], "Nothing to resume in new"),
        (["--config", "vp_fashion", "--data", "gone/here"], "does not exist"),
        (["--config", "vp_fashion", "--device", "cuda:7"], "not available here"),
        (["--workdir", "nowhere", "--mode", "sample"], "nowhere is not a run directory"),
        (["--workdir", "w", "--mode", "train"], "--mode train needs --config"),
    ],
)
def test_bad_command_lines_get_a_sentence_and_exit_2(work, capsys, arguments, message):
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert captured.err.startswith("error: ")
    import re

    assert re.search(message, captured.err), captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be at least 1 \\(got 0\\)"),
        (["--num_samples", "0"], "num_samples must be at least 1"),
        (["--steps", "3", "--nfe", "3"], "not both"),
        (["--sampler", "heun", "--option", "eta=1"], "option of heun: 'eta' is unknown"),
        (["--option", "eta"], "must read name=value"),
        (["--weights", "averaged"], "weights 'averaged' is unknown.*ema.*model"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
    ],
)
def test_bad_sampling_gets_a_sentence(trained, capsys, arguments, message):
    import re

    assert command("--workdir", str(trained), "--mode", "sample", *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_overrides_count_when_sampling_or_are_refused(trained, capsys):
    sample = ["--config", "vp_fashion", "--workdir", str(trained), "--mode", "sample"]
    assert command(*sample, "--num_samples", "1", "--config.sampling.nfe=4") == 0
    assert "NFE 4" in capsys.readouterr().out
    assert command(*sample, "--config.sde.beta_max=10.0") == 2
    assert "--config.sde.beta_max has no effect in --mode sample" in capsys.readouterr().err


def test_a_new_method_comes_with_its_own_steps_and_grid():
    saved = {"method": "heun", "nfe": 39, "grid": "karras", "options": {"variable": "time"}}
    changed = change_sampling(saved, {"method": "ode", "grid": None})
    assert changed == {"method": "ode"}
    changed = change_sampling(saved, {"steps": 5})
    assert (changed["steps"], changed["nfe"], changed["grid"]) == (5, None, "karras")


def test_used_directories_are_refused_and_kept(trained, capsys):
    before = (trained / "config.json").read_text()
    assert command("--config", "vp_fashion", "--workdir", str(trained), *TINY_NET) == 2
    error = capsys.readouterr().err
    assert "holds a run at step 4. Use --resume, --overwrite or another --workdir" in error
    assert (trained / "config.json").read_text() == before
    other = [flag for flag in TINY_NET if "net.width" not in flag]
    other += ["--config.net.width=32", "--resume"]
    assert command("--config", "vp_fashion", "--workdir", str(trained), *other) == 2
    assert "does not fit: the config differs in net.width (16 there, 32 here)" in (
        capsys.readouterr().err
    )


def test_overwrite_keeps_the_old_run_when_the_new_config_is_wrong(trained, capsys):
    wrong = ["--overwrite", "--data", "gone/here"]
    assert command("--config", "vp_fashion", "--workdir", str(trained), *TINY_NET, *wrong) == 2
    assert load(trained).step == 4


def test_samples_never_delete_other_peoples_files(trained, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    arguments = ["--workdir", str(trained), "--mode", "sample", "--out", str(tmp_path)]
    assert command(*arguments, "--num_samples", "1", "--nfe", "3") == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_workdir_that_cannot_be_made_is_explained(work, capsys):
    (work / "file").write_text("")
    assert command("--config", "vp_fashion", "--workdir", "file/run", *TINY_NET) == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_cifar_network_runs_two_steps(work, monkeypatch):
    """61.8 M parameters on images of CIFAR-10's shape, two updates and a resumable checkpoint."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.save(work / "images.npy", pixels)
    arguments = ["--config", "vp_cifar", "--data", "images.npy", "--config.training.steps=2"]
    small = ["--config.training.batch_size=4", "--config.training.sample_images=1"]
    quick = ["--sampler", "euler", "--steps", "2", "--config.training.tensorboard=False"]
    assert command(*arguments, *small, *quick) == 0
    assert load("runs/vp_cifar").step == 2


def test_training_refuses_a_network_that_wants_classes(work):
    config = config_of("vp_fashion")
    config["net"]["classes"] = 10
    with pytest.raises(LabelError, match="net.classes is 10, but training tells the network no"):
        train(config, "w", device="cpu")
    assert not (work / "w").exists()
