"""Films and sliders of figures, and what the figures say of wrong arguments."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from score_sde import VPSDE
from score_sde.checks import UserError
from score_sde.plotting import (
    PlottingError,
    animate,
    explore_score_field,
    plot_score_field,
    plot_trajectories,
    style,
    subplots,
)

matplotlib.use("Agg")
VP = VPSDE()
pytestmark = pytest.mark.usefixtures("close_figures")


def test_a_gif_has_a_picture_a_frame(mixture, tmp_path):
    score = mixture.score(VP)
    times = [0.9, 0.4, 0.1]
    path = animate(
        lambda ax, t: plot_score_field(score, t, ax=ax), times, tmp_path / "new" / "f.gif", fps=5
    )
    with Image.open(path) as film:
        assert film.n_frames == 3 and film.info["duration"] == 200
        first = np.asarray(film.convert("L"), dtype=float)
        film.seek(2)
        assert np.abs(np.asarray(film.convert("L"), dtype=float) - first).mean() > 1
    with pytest.raises(PlottingError, match=r"\.gif or an \.mp4"):
        animate(lambda ax, t: None, times, tmp_path / "f.avi")
    with pytest.raises(PlottingError, match="1 to 10000 frames"):
        animate(lambda ax, t: None, [], tmp_path / "g.gif")


def test_an_mp4_is_written_with_ffmpeg_or_refused_in_a_sentence(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    monkeypatch.setitem(matplotlib.rcParams, "animation.ffmpeg_path", ffmpeg)
    path = animate(lambda ax, i: ax.plot([0, i]), range(4), tmp_path / "f.mp4", width=3.33)
    assert path.read_bytes()[4:8] == b"ftyp"
    monkeypatch.setitem(matplotlib.rcParams, "animation.ffmpeg_path", "/nowhere/ffmpeg")
    with pytest.raises(PlottingError, match=r"needs the program ffmpeg.*write a \.gif"):
        animate(lambda ax, i: None, range(4), tmp_path / "g.mp4")


def test_the_slider_draws_its_time(mixture):
    pytest.importorskip("ipywidgets")
    box = explore_score_field(mixture.score(VP), [0.1, 0.5, 0.9])
    slider, image = box.children
    before = image.value
    slider.value = 2
    assert image.value != before and image.value[:8] == b"\x89PNG\r\n\x1a\n"
    box.update(0)
    assert image.value == before  # back at the first time: the same picture


def test_wrong_arguments_are_sentences(mixture, tmp_path):
    score, film = mixture.score(VP), tmp_path / "film.gif"
    wrong = {
        "frames must be": lambda: animate(print, 5, film),
        "draw must be a function": lambda: animate(3, [1], film),
        "fps must be at least 1": lambda: animate(print, [1], film, fps=0),
        "1 to 10000 frames": lambda: animate(print, [], film),
        "more than 10000": lambda: animate(print, itertools.count(), film),
        "times must be a list": lambda: explore_score_field(score, 5),
        r"times \(item 1\) must be finite": lambda: explore_score_field(score, [float("nan")]),
        "extent must be a number": lambda: explore_score_field(score, [0.1], extent="wide"),
        "shape must be a list": lambda: plot_trajectories(VP, score, 4),
        "sde must be of type SDE": lambda: plot_trajectories("vp", score),
        "colour of matplotlib": lambda: plot_trajectories(VP, score, colour="reddish"),
        "ax must be Axes": lambda: plot_score_field(score, 0.1, ax=3),
        "rows must be at least 1": lambda: subplots(0),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words):
            call()
    with pytest.raises(ZeroDivisionError):  # a mistake in draw is seen as what it is
        animate(lambda ax, i: 1 / i, [0, 1], film)
    assert not film.exists()


def test_shades_without_matplotlib_are_those_of_the_map():
    values = np.linspace(0, 1, 300).reshape(3, 100)
    there = 255 * style.density_map()(values)[..., :3]
    assert np.abs(style.shaded(values) - there).max() < 1


def test_the_slider_is_a_still_figure_without_the_extra(mixture, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    figure = explore_score_field(mixture.score(VP), [0.1, 0.2, 0.3, 0.4, 0.5, 0.9])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["t = 0.1", "t = 0.3", "t = 0.4", "t = 0.9"]
