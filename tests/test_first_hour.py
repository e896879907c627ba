"""What a newcomer sees: pictures in notebooks, films, pixels large enough, names at the top."""

import io
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import score_sde
from score_sde import VESDE, VPSDE, load
from score_sde.checks import UserError
from score_sde.cli import main
from score_sde.plotting.pictures import enlarged
from score_sde.runs.film import film
from score_sde.sampling import Recipe

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def fashion():
    return load("fashion", device="cpu")


def test_samples_processes_and_recipes_show_themselves(fashion):
    found = fashion.sample(4, nfe=4)
    picture = Image.open(io.BytesIO(found._repr_png_()))
    assert min(picture.size) >= 500 and len(repr(found)) < 400
    assert fashion.sample(1, nfe=4)._repr_png_() != found._repr_png_()
    for sde in (VPSDE(), VESDE(sigma_max=5.0)):
        assert f"{sde}" in sde._repr_html_() and sde._repr_html_().count("polyline") == 2
    recipe = Recipe((1.0, 0.5, 0.001), 2, 1.0, "VPSDE()")
    assert "polyline" in recipe._repr_html_()


def test_wrong_numbers_of_samples_are_sentences(fashion):
    for n, words in (
        (0, "n must be at least 1"),
        ("5", "n must be a whole number"),
        (1.5, "n must"),
    ):
        with pytest.raises(UserError, match=words):
            fashion.sample(n)
    with pytest.raises(UserError, match="first_seed must be at least 0"):
        fashion.sample(1, -1)


def test_small_pictures_are_enlarged_by_whole_factors():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    large = enlarged(pixels, 10)
    assert large.shape == (9, 12) and np.array_equal(large[1::3, 1::3], pixels)
    assert enlarged(np.zeros((600, 20, 3), np.uint8)).shape == (600, 20, 3)


def test_a_film_is_the_way_of_the_same_samples(fashion):
    found = film(fashion, 2, 5, frames=4, method="heun", steps=6)
    again = fashion.sample(2, 5, method="heun", steps=6)
    assert torch.equal(found.result.x, again.x)
    assert found.states.shape == found.denoised.shape == (4, 2, 1, 28, 28)
    assert float(found.times[0]) == fashion.sde.t_max and bool((found.times.diff() < 0).all())
    x, t = found.states[1], found.times[1]
    assert torch.allclose(fashion.sde.denoise(x, t, fashion.score), found.denoised[1], atol=0.02)
    with pytest.raises(UserError, match="at most 64"):
        film(fashion, 65)


def test_a_film_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "x --workdir fashion --mode sample --num_samples 2 --nfe 4 --film --device cpu"
    assert main(words.split()) == 0
    (path,) = tmp_path.glob("pretrained/fashion/samples/*/film.gif")
    assert Image.open(path).n_frames >= 3
    assert main([*words.split(), "--init", "a.png"]) == 2
    assert "--init" in capsys.readouterr().err


def test_the_names_people_look_for_are_at_the_top():
    for name in ("plotting", "UNet", "MLP", "ScoreMatching", "train", "evaluate", "sample", "load"):
        assert hasattr(score_sde, name)


def documented():
    """Objects that the reference shows, by its directives."""
    text = (DOCS / "reference.md").read_text()
    for name, members in re.findall(
        r"^::: (\S+)(?:\n +options: .*members: \[(.*?)\])?", text, re.M
    ):
        found = pkgutil.resolve_name(name)
        yield from [getattr(found, m) for m in members.split(", ")] if members else [found]


def test_the_names_of_the_lecture_are_there_and_linked():
    """Each name of docs/lecture.md has a docstring, and a place in the reference to link to."""
    links = re.findall(r"\[`(score_sde[\w.]+)`\]\[(.*?)\]", (DOCS / "lecture.md").read_text())
    assert len(links) > 12
    shown = list(documented())
    for name, target in links:
        found, owner = pkgutil.resolve_name(name), pkgutil.resolve_name(name.rpartition(".")[0])
        assert name == target and found.__doc__, name
        assert any(one is found or one is owner for one in shown), name
