"""Nothing runs because a file names it: only the user's own runs may name foreign code."""

import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from score_sde import cli, export_run, load
from score_sde.checks import UserError
from score_sde.nets import MLP
from score_sde.runs import signature
from score_sde.runs.items import items_of
from score_sde.runs.train import train

CONFIG = {
    "data": {"name": "moons"},
    "sde": {"name": "vp"},
    "net": {"name": "test_trust.Mine", "width": 8},
    "training": {"steps": 2, "batch_size": 8, "tensorboard": False, "minutes": 0},
    "sampling": {"method": "ancestral", "steps": 2, "batch_size": 1},
    "seed": 0,
}
MADE = []


class Mine(nn.Module):
    """A network of the user's own."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        MADE.append("Mine")
        self.layer = nn.Linear(dim, dim)

    def forward(self, x, noise_label):
        return self.layer(x)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a network of the user's own."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "settings"))
        train(CONFIG, folder / "run", device="cpu")
        yield folder / "run"


def elsewhere(run, to, **sections):
    """The run as it arrives at another user's, its config changed."""
    shutil.copytree(run, to, dirs_exist_ok=True)
    (to / "config.sig").unlink(missing_ok=True)
    saved = json.loads((to / "config.json").read_text())
    saved["config"] |= sections
    (to / "config.json").write_text(json.dumps(saved))
    return to


def test_a_run_trained_here_is_known_by_its_signature(trained):
    assert load(trained).trusted and MADE
    key = signature.key_path()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    assert cli.main(["score-sde", "--workdir", str(trained), "--mode", "sample",
                     "--num_samples", "2"]) == 0  # fmt: skip


def test_a_moved_run_and_an_export_keep_their_trust(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "moved")
    assert load(tmp_path / "moved").trusted
    assert load(export_run(trained, tmp_path / "export")).trusted


@pytest.mark.parametrize("change", ["config", "signature", "key", "readable_key", "other_user"])
def test_a_signature_holds_for_this_config_this_key_and_this_user_only(
    trained, tmp_path, monkeypatch, change
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = tmp_path / "settings" / "score_sde"
    shutil.copytree(signature.key_path().parent, settings)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert signature.is_signed(run / "config.json")
    if change == "config":
        with (run / "config.json").open("a") as file:
            file.write(" ")
    elif change == "signature":
        (run / "config.sig").write_text("0" * 64)
    elif change == "key":
        (settings / "signing.key").write_bytes(os.urandom(32))
    elif change == "readable_key":
        (settings / "signing.key").chmod(0o644)
    else:
        shutil.rmtree(settings)
    assert not signature.is_signed(run / "config.json")
    MADE.clear()
    with pytest.raises(UserError, match="net.name asks for 'test_trust.Mine'.*--trust"):
        load(run)
    assert not MADE


def test_trust_is_given_by_flag_and_by_argument(trained, tmp_path, capsys):
    run = elsewhere(trained, tmp_path / "run")
    command = ["score-sde", "--workdir", str(run), "--mode", "sample", "--num_samples", "2"]
    assert cli.main(command) == 2
    assert "net.name asks for 'test_trust.Mine'" in capsys.readouterr().err
    assert cli.main([*command, "--trust"]) == 0
    with pytest.raises(UserError, match="trust=True"):
        load(run)
    assert load(run, trust=True).trusted


PLACES = {
    "sde": lambda name: {"sde": {"name": name}},
    "net": lambda name: {"net": {"name": name}},
    "data": lambda name: {"data": {"name": name}},
    "method": lambda name: {"sampling": {"method": name}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "os.system",
        "score_sde.runs.exchange.shutil.rmtree",
        "score_sde.runs.exchange.Path",
        "score_sde.cli.main",
        "score_sde.build.importlib",
        "test_trust.Mine",
        "torch.nn.Linear",
    ],
)
def test_a_folder_from_elsewhere_names_no_code(trained, tmp_path, place, name):
    kept = {"net": {"name": "mlp"}} if place != "net" else {}
    run = elsewhere(trained, tmp_path / "run", **(kept | PLACES[place](name)))
    if place not in ("sde", "net"):  # the weights are of another network: they are made to fit
        weights(run)
    MADE.clear()
    with pytest.raises(UserError, match="asks for .*--trust|unknown|no file"):
        loaded = load(run)
        if place == "method":
            loaded.sample(2)
        elif place == "data":
            items_of(loaded, "train", 2, None)
    assert not MADE


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_a_command_draws_by_no_code_of_a_folder_from_elsewhere(trained, tmp_path, mode, capsys):
    mark = tmp_path / "touched"
    asked = {"args": ["touch", str(mark)]}
    for method, options in (("test_trust.Mine", {}), ("subprocess.Popen", asked)):
        sampling = {"method": method, "steps": 2, "batch_size": 60, "options": options}
        run = elsewhere(trained, tmp_path / "run", net={"name": "mlp"}, sampling=sampling)
        if (run / "checkpoints").exists():
            weights(run)
        MADE.clear()
        more = ["--measures=energy"] if mode == "evaluate" else []
        words = ["--workdir", str(run), "--mode", mode, "--num_samples", "60", *more]
        assert cli.main(["score-sde", *words]) == 2
        assert "asks for" in capsys.readouterr().err
        assert not MADE and not mark.exists()
        shutil.rmtree(run)


def weights(run):
    """Weights of the package's own network, in an exported folder."""
    shutil.rmtree(run / "checkpoints")
    save_file(MLP(dim=2).state_dict(), run / "model.safetensors")


def test_what_the_user_says_of_a_folder_from_elsewhere_is_his_own_word(trained, tmp_path):
    run = elsewhere(trained, tmp_path / "run", net={"name": "mlp"})
    weights(run)
    loaded = load(run)
    assert not loaded.trusted
    sampled = loaded.sample(2, method="score_sde.sampling.predictors.DDIM", steps=2)
    assert bool(torch.isfinite(sampled.x).all())
    with pytest.raises(UserError, match="cannot be imported"):
        loaded.sample(2, method="no_such_package.Sampler", steps=2)
