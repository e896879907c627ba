"""Models that ship: there at once, small, ours, and never written to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from score_sde import load
from score_sde.checks import UserError
from score_sde.cli import main
from score_sde.conditioning import text
from score_sde.runs import pretrained
from score_sde.runs.narrow import narrowed, widened

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", list(pretrained.CONFIGS))
def test_it_is_small_ours_and_its_card_says_how_it_was_made(name):
    folder = pretrained.FOLDER / name
    assert (folder / "model.safetensors").stat().st_size < 4e6
    state = load_file(folder / "model.safetensors")
    assert {v.dtype for v in state.values() if v.ndim > 1} <= {torch.bfloat16, torch.int8}
    assert pretrained.is_ours(folder / "config.json")
    card = pretrained.card(folder)
    assert {"seed", "step", "commands", "figures"} <= card.keys()
    run = load(name, device="cpu")
    assert run.trusted and run.step == card["step"] and run.path == folder
    assert run.config["seed"] == card["seed"]
    assert {p.dtype for p in run.score.parameters()} == {torch.float32}


def test_without_its_text_encoder_it_draws_and_refuses_prompts_in_a_sentence(monkeypatch):
    emoji = load("emoji", device="cpu")
    assert emoji.sample(2, nfe=3).x.shape == (2, 3, 32, 32)
    monkeypatch.setitem(sys.modules, "transformers", None)
    text._load.cache_clear()
    with pytest.raises(UserError, match=r"captions need the library transformers, .*pip install"):
        emoji.sample(1, prompt="a blue heart", nfe=3)


def test_eight_bits_are_off_by_half_a_step_at_most():
    state = {
        "a": torch.randn(5, 3, 2),
        "b": torch.randn(4),
        "n": torch.arange(3),
        "0": torch.zeros(2, 2),
    }
    small = narrowed(state)
    assert small["a"].dtype == torch.int8 and small["b"] is state["b"] and small["n"] is state["n"]
    again = widened(small)
    assert again.keys() == state.keys() and torch.equal(again["0"], state["0"])
    step = state["a"].flatten(1).abs().amax(1) / 127
    assert bool(((again["a"] - state["a"]).abs().flatten(1).amax(1) <= 0.5001 * step).all())
    assert widened(state) == state  # nothing to widen: the same tensors


def test_samples_of_it_go_to_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(pretrained.FOLDER.rglob("*"))
    words = "x --workdir pretrained/fashion --mode sample --num_samples 4 --nfe 6 --device cpu"
    assert main(words.split()) == 0
    assert list(tmp_path.glob("pretrained/fashion/samples/*/grid.png"))
    assert load("pretrained/fashion").path == pretrained.FOLDER / "fashion"
    assert sorted(pretrained.FOLDER.rglob("*")) == before


def test_a_folder_of_that_name_comes_first_and_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "fashion"
    mine.mkdir()
    text = (pretrained.FOLDER / "fashion" / "config.json").read_text()
    (mine / "config.json").write_text(text)
    assert pretrained.find("fashion") == Path("fashion")
    assert not pretrained.is_ours(mine / "config.json")
    assert not pretrained.is_ours(Path("fashion") / "config.json")


def test_changed_files_are_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    (tmp_path / "fashion").mkdir()
    config = tmp_path / "fashion" / "config.json"
    config.write_text(json.dumps({"config": {"net": {"name": "os.system"}}}))
    assert not pretrained.is_ours(config)


def test_a_name_that_does_not_ship_is_named(capsys):
    assert main("x --workdir pretrained/fashoin --mode sample".split()) == 2
    assert "fashion" in capsys.readouterr().err


@pytest.mark.slow
def test_they_are_in_what_is_installed(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    models = [f"pretrained/{name}/model.safetensors" for name in pretrained.CONFIGS]
    for name in ("py.typed", *models, "configs/vp_fashion.py"):
        assert (tmp_path / "lib" / "score_sde" / name).is_file()
