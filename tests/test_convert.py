"""Foreign checkpoints: the imported score is the peer's."""

import json
import zipfile

import numpy as np
import pytest
import torch
from foreign import (
    DIFFUSERS,
    SONG,
    WRAPPED,
    check_score,
    diffusers_folder,
    edm_file,
    ho_weights,
    openai_weights,
    song_file,
    time_of,
    tiny_checkpoint,
)
from golden_cases import GOLDEN, Case, gap

from score_sde import import_checkpoint, load
from score_sde.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", SONG)
def test_score_sde_pytorch(name, tmp_path):
    case = Case(name)
    model, side = case.settings["model"], case.settings["data"]["image_size"]
    path = song_file(case, tmp_path / "checkpoint_8.pth")
    ve = case.settings["training"]["sde"] == "vesde"
    centered, given = case.settings["data"]["centered"], {"size": side}
    if centered == ve:  # unlike all published settings
        given["centered"] = centered
    if name == "song_ncsnpp_ddpmpp_discrete":
        given["continuous"] = False
    run = import_checkpoint(path, tmp_path / "run", given)
    assert run.step == 7 and run.data_spec.shape == (3, side, side)
    raw = run.data_spec.to_raw(torch.tensor([0.0, 1.0]))
    assert raw.tolist() == ([127.5, 255] if centered else [0, 255])
    if ve:
        assert (run.sde.sigma_min, run.sde.sigma_max) == (0.01, float(model["sigma_max"]))
    for call in case.calls:
        x, label, _ = case.inputs(call)
        if ve:
            fourier = model["embedding_type"] == "fourier" and model["name"] == "ncsnpp"
            sigma = label if fourier else case.sigmas()[label.long()]
            check_score(run, x, time_of(run, sigma), case.output(call))
        else:  # labels 999 t of continuous training, and i of a table's i + 1
            discrete = run.config["sde"]["name"] == "table"
            t = (label.double() + 1) / 1000 if discrete else label.double() / 999
            sigma = run.sde.sigma(t)[:, None, None, None]
            check_score(run, x, t, -case.output(call) / sigma)


def under_numpy1(path, target):
    """The same file with NumPy's scalars under the name that NumPy 1 gave them."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in data
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            new.writestr(item, data)
    return target


@pytest.mark.parametrize("numpy", [1, 2])
def test_a_checkpoint_that_score_sde_pytorch_itself_wrote(numpy, tmp_path, capsys):
    path = tiny_checkpoint(tmp_path / "checkpoint.pth")
    if numpy == 1:
        path = under_numpy1(path, tmp_path / "old.pth")
    meta = json.loads((GOLDEN / "song_checkpoint_tiny.json").read_text())
    gold = np.load(GOLDEN / "song_checkpoint_tiny.npz")
    import_checkpoint(path, tmp_path / "run", {"size": 16})
    said = capsys.readouterr().out
    assert "score_sde_pytorch: 48,763 parameters, step 3" in said and "Fourier" in said
    x, sigma, _ = Case("song_checkpoint_tiny").inputs(meta["calls"][0])
    for weights, array in (("ema", "ema"), ("model", "raw")):
        run = load(tmp_path / "run", weights)
        check_score(run, x, time_of(run, sigma), torch.from_numpy(gold[array]))


def test_what_a_checkpoint_does_not_say_can_be_said(tmp_path):
    path = song_file(Case("song_ncsnpp_ddpmpp_nf16"), tmp_path / "c.pth")
    run = import_checkpoint(path, tmp_path / "a", {"size": 16, "process": "subvp"})
    assert run.config["sde"]["name"] == "subvp"
    run = import_checkpoint(path, tmp_path / "b", {"size": 16, "continuous": False})
    assert run.config["sde"] == {"name": "table", "table": "linear", "steps": 1000, "t_min": 1e-3}
    run = import_checkpoint(path, tmp_path / "c")  # attention at 16 pixels, not at 8
    assert run.data_spec.shape == (3, 32, 32)


@pytest.mark.parametrize("name", WRAPPED)
def test_edm(name, tmp_path, edm_modules):
    case = Case(name)
    run = import_checkpoint(edm_file(case, tmp_path / "net.pkl"), tmp_path / "run")
    assert not (tmp_path / "executed").exists()
    assert len(run.data_spec.classes) == 10 and run.data_spec.shape == (3, 16, 16)
    for call in case.calls:
        x, sigma, condition = case.inputs(call)
        t = run.sde.time_of_log_snr(-2 * sigma.double().log())
        alpha = run.sde.alpha(t)[:, None, None, None]  # VP sees x / sqrt(1 + sigma^2)
        got = run.score.denoise(alpha * x.double(), t, **condition)
        assert gap(got, case.output(call).double()) <= call["tolerance"]["relative"]
        level = sigma.double()[:, None, None, None]
        score = run.score(alpha * x.double(), t, **condition)
        want = (case.output(call).double() - x.double()) / (alpha * level**2)
        scale = (1 / (alpha * level)).flatten()  # that of the score: D cancels x where it is small
        error = (score - want).flatten(1).abs().amax(1) / scale
        assert float(error.max()) < 1e-4


@pytest.mark.parametrize(
    ("name", "old_names"), [*((name, False) for name in DIFFUSERS), (DIFFUSERS[1], True)]
)
def test_diffusers(name, old_names, tmp_path):
    case = Case(name)
    folder = diffusers_folder(case, tmp_path / "hub", old_names=old_names)
    run = import_checkpoint(folder, tmp_path / "run")
    for call in case.calls:
        x, label, _ = case.inputs(call)
        if "ncsnpp" in name:
            check_score(run, x, time_of(run, label), case.output(call))
        else:
            t = (label.double() + 1) / 1000
            sigma = run.sde.sigma(t)[:, None, None, None]
            alpha_bars = (1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0)
            torch.testing.assert_close(run.sde.alpha(t) ** 2, alpha_bars[label], rtol=1e-5, atol=0)
            check_score(run, x, t, -case.output(call) / sigma)


def test_pytorch_versions_of_hos_ddpm(tmp_path):
    case = Case("diffusers_ddpm_cifar10")
    torch.save(ho_weights(), tmp_path / "model-790000.ckpt")
    run = import_checkpoint(tmp_path / "model-790000.ckpt", tmp_path / "run")
    assert run.data_spec.shape == (3, 32, 32)
    for call in case.calls:
        x, label, _ = case.inputs(call)
        t = (label.double() + 1) / 1000
        check_score(run, x, t, -case.output(call) / run.sde.sigma(t)[:, None, None, None])


SAMPLED = ["song", "ho", "diffusers", "diffusers_ncsnpp_w128", "openai", *WRAPPED]


@pytest.mark.parametrize("layout", SAMPLED)
def test_import_and_sample_from_the_command_line(layout, tmp_path, capsys, edm_modules):
    option = []
    if layout == "song":
        path, option = tiny_checkpoint(tmp_path / "c.pth"), ["--option", "size=16"]
    elif layout in WRAPPED:
        path = edm_file(Case(layout), tmp_path / "net.pkl")
    elif layout.startswith("diffusers"):
        name = layout if "ncsnpp" in layout else "diffusers_unet_defaults"
        path = diffusers_folder(Case(name), tmp_path / "hub")
    else:
        path, option = tmp_path / "m.ckpt", ["--option", "size=16"]
        weights = openai_weights(Case("edm_precond_iddpm")) if layout == "openai" else ho_weights()
        torch.save(weights, path)
    work = str(tmp_path / "run")
    command = ["main.py", "--workdir", work, "--device", "cpu"]
    assert main([*command, "--mode", "import", "--checkpoint", str(path), *option]) == 0
    assert "parameters" in capsys.readouterr().out
    sampler = ["--sampler", "adams", "--nfe", "10", "--num_samples", "2"]
    assert main([*command, "--mode", "sample", *sampler]) == 0
    files = np.load(next((tmp_path / "run" / "samples").glob("adams_nfe10_*/samples.npz")))
    assert files["samples"].shape == (2, 16, 16, 3)
    assert ("class_labels" in files) == (layout in ("openai", *WRAPPED))
    assert main([*command, "--mode", "import", "--checkpoint", str(path), *option]) == 2
    assert "in use" in capsys.readouterr().err


def test_edm_networks_that_lost_their_labels_at_times_need_none(tmp_path, edm_modules):
    case = Case("edm_precond_edm_ddpmpp")
    said = {**case.settings, "label_dropout": 0.1}
    always = import_checkpoint(edm_file(case, tmp_path / "a.pkl"), tmp_path / "a", device="cpu")
    times = import_checkpoint(
        edm_file(case, tmp_path / "b.pkl", said), tmp_path / "b", device="cpu"
    )
    assert times.score.net.class_dropout == 0.1 and times.class_labels(None, range(3)) is None
    assert len(always.class_labels(None, range(3))) == 3
    assert times.class_labels(7, range(3)).tolist() == [7, 7, 7]
