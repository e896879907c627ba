"""Figures show what they say: arrows are scores, paths are runs, colours are the samplers'."""

import sys

import matplotlib
import numpy as np
import pytest
import torch

from score_sde import SDE, VPSDE, FlowSDE, GaussianMixture, sample, verify
from score_sde.checks import UserError
from score_sde.data import DataSpec
from score_sde.nets import MLP
from score_sde.plotting import (
    PlottingError,
    image_grid,
    plot_convergence,
    plot_errors_over_noise,
    plot_map,
    plot_marginals,
    plot_points,
    plot_schedule,
    plot_score_field,
    plot_sweep,
    plot_trajectories,
    record_trajectory,
    sampler_style,
    style,
    subplots,
)
from score_sde.sampling import SAMPLERS

matplotlib.use("Agg")
VP = VPSDE()
pytestmark = pytest.mark.usefixtures("close_figures")


def luminance(colour) -> float:
    """Relative luminance of sRGB (WCAG 2)."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.fixture
def line() -> GaussianMixture:
    """Data on the line."""
    return GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.04)


def test_arrows_are_the_score(mixture):
    score = mixture.score(VP)
    ax = plot_score_field(score, 0.3, arrows=7, extent=2.0)
    arrows = ax.collections[0]
    points = torch.from_numpy(np.stack([arrows.X, arrows.Y], 1))
    want = score(points, torch.tensor(0.3, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), want, rtol=1e-5, atol=1e-6)
    # Nine in ten are at most 1.2 cells long, in units of the axes.
    assert np.quantile(np.hypot(arrows.U, arrows.V) / arrows.scale, 0.9) == pytest.approx(0.8)
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) == ((-2, 2), (-2, 2), 1)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("$x_1$", "$x_2$", "t = 0.3")


def test_a_sweep_marks_the_best_and_shows_errors():
    ax = plot_sweep(["20", "5", "10"], [1.0, 3.0, 2.0], [0.1, 0.2, 0.3], best=0, real=0.5)
    line, best, real = ax.lines[0], ax.lines[-2], ax.lines[-1]
    np.testing.assert_array_equal(line.get_xydata(), [[5, 3], [10, 2], [20, 1]])
    assert best.get_xydata().tolist() == [[20, 1]] and set(real.get_ydata()) == {0.5}
    (bars,) = ax.collections
    assert [s[:, 1].tolist() for s in bars.get_segments()][0] == pytest.approx([2.8, 3.2])
    named = plot_sweep(["ema", "model"], [1.0, 2.0], [0.1, 0.1])
    assert [t.get_text() for t in named.get_xticklabels()] == ["ema", "model"]
    with pytest.raises(PlottingError, match="1 values do not fit 2 points"):
        plot_sweep(["1", "2"], [1.0], [0.1, 0.1])


def test_errors_over_noise_are_ratios_and_leave_gaps():
    errors = {"model": [0.1, 0.4, 0.9], "held out": [0.2, None, 1.0], "trivial": [0.2, 0.8, 1.0]}
    ax = plot_errors_over_noise([0.1, 1.0, 10.0], errors, relative_to="trivial")
    model, held_out = ax.lines
    np.testing.assert_allclose(model.get_xydata(), [[0.1, 0.5], [1, 0.5], [10, 0.9]])
    np.testing.assert_allclose(held_out.get_xydata(), [[0.1, 1], [10, 1]])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    wild = plot_errors_over_noise([0.1, 1.0], {"model": [5.0, 1.0]})
    assert wild.get_yscale() == "log"
    with pytest.raises(PlottingError, match="2 errors of .* do not fit 3 noise levels"):
        plot_errors_over_noise([1.0, 2.0, 3.0], {"model": [1.0, 2.0]})


def test_a_given_scale_and_any_field(mixture):
    score = mixture.score(VP)
    ax = plot_score_field(lambda x, t: score.denoise(x, t) - x, 0.3, scale=1.0, arrows=5)
    arrows = ax.collections[0]
    assert arrows.scale == 1 and not ax.images  # a plain function brings no density
    tips = np.stack([arrows.X + arrows.U, arrows.Y + arrows.V], 1)
    points = torch.from_numpy(np.stack([arrows.X, arrows.Y], 1))
    want = score.denoise(points, torch.tensor(0.3, dtype=torch.float64))
    np.testing.assert_allclose(tips, want.numpy(), atol=1e-5)


def test_the_shade_is_the_root_of_the_density(mixture):
    ax = plot_score_field(mixture.score(VP), 0.2, extent=(-2, 2, -1, 3))
    shade = ax.images[0].get_array()
    y, x = np.unravel_index(shade.argmax(), shade.shape)
    assert shade.max() == 1
    t = torch.tensor(0.2, dtype=torch.float64)
    grid_x, grid_y = np.linspace(-2, 2, 128), np.linspace(-1, 3, 128)
    at = torch.tensor([[grid_x[x], grid_y[y]], [grid_x[20], grid_y[50]]])
    log_p = mixture.log_prob(at, VP, t)
    assert shade[50, 20] == pytest.approx(float(torch.exp(0.5 * (log_p[1] - log_p[0]))), rel=1e-4)


def test_stream_lines_follow_the_score(mixture):
    ax = plot_score_field(mixture.score(VP), 0.5, kind="stream")
    lines = ax.collections[0].get_segments()
    pieces = np.concatenate([np.stack([line[:-1], line[1:]], 1) for line in lines])
    middle, along = torch.from_numpy(pieces.mean(1)), pieces[:, 1] - pieces[:, 0]
    score = mixture.score(VP)(middle, torch.tensor(0.5, dtype=torch.float64)).numpy()
    lengths = np.linalg.norm(along, axis=1) * np.linalg.norm(score, axis=1)
    cosine = (along * score).sum(1)[lengths > 0] / lengths[lengths > 0]
    assert np.quantile(cosine, 0.1) > 0.99  # the lattice is coarse where the lines meet


def test_what_is_no_field_is_said_in_a_sentence(mixture, line):
    with pytest.raises(PlottingError, match=r"states \(B, 2\).*plot_marginals"):
        plot_score_field(line.score(VP), 0.5)
    with pytest.raises(PlottingError, match=r"built for states \(B, 3\).*image_grid"):
        plot_score_field(MLP(dim=3), 0.5)
    with pytest.raises(PlottingError, match=r"gave \(361, 1\) for states \(361, 2\)"):
        plot_score_field(lambda x, t: x[:, :1], 0.5)
    with pytest.raises(PlottingError, match="not finite"):
        plot_score_field(lambda x, t: x / 0, 0.5)
    with pytest.raises(UserError, match="'quiver' or 'stream'"):
        plot_score_field(mixture.score(VP), 0.5, kind="contour")
    with pytest.raises(UserError, match="arrows must be at least 2"):
        plot_score_field(mixture.score(VP), 0.5, arrows=1)
    for extent in (-1.0, (0, 1, 2), (1, 0, 0, 1)):
        with pytest.raises(PlottingError, match="half-width"):
            plot_score_field(mixture.score(VP), 0.5, extent=extent)
    with pytest.raises(PlottingError, match=r"states \(B, 1\).*plot_trajectories"):
        plot_marginals(VP, mixture.score(VP))
    with pytest.raises(PlottingError, match=r"need states \(B, 2\); got \(4, 1\)"):
        plot_trajectories(VP, line.score(VP), (4, 1))
    with pytest.raises(PlottingError, match=r"\(N, 2\); got \(4, 3\)"):
        plot_points(torch.zeros(4, 3))
    with pytest.raises(PlottingError, match="one value a point"):
        plot_map(lambda x: x)


@pytest.mark.parametrize("method", ["heun", "ancestral"])
def test_trajectories_are_what_sample_draws(mixture, method):
    score = mixture.score(VP)
    times, states = record_trajectory(VP, score, (5, 2), method=method, steps=12, denoise=True)
    x = sample(VP, score, shape=(5, 2), method=method, steps=12, seeds=range(5))
    assert torch.equal(states[-1], x)
    assert len(times) == len(states) == 14
    assert times[[0, -1]].tolist() == pytest.approx([VP.t_max, VP.t_min])
    ax = plot_trajectories(VP, score, (5, 2), method=method, steps=12)
    assert len(ax.lines) == 5
    np.testing.assert_allclose(ax.lines[2].get_xydata(), states[:-1, 2], rtol=1e-6)
    assert {line.get_color() for line in ax.lines} == {sampler_style(method)["color"]}


def test_an_explicit_grid_starts_where_it_says(mixture):
    times, states = record_trajectory(
        VP, mixture.score(VP), x_T=torch.ones(1, 2), method="ddim", grid=[0.5, 0.2, 0.1]
    )
    assert times.tolist() == [0.5, 0.2, 0.1] and torch.equal(states[0], torch.ones(1, 2))


def test_marginals_put_flow_over_noise_from_one_start(line):
    ax = plot_marginals(VP, line.score(VP), paths=3, steps=50)
    assert len(ax.lines) == 6 and (ax.get_xlabel(), ax.get_ylabel()) == ("t", "x")
    noisy, smooth = ax.lines[:3], ax.lines[3:]
    for one, other in zip(noisy, smooth, strict=True):
        assert one.get_ydata()[0] == other.get_ydata()[0] and other.zorder > one.zorder
        assert one.get_color() == sampler_style("euler_maruyama")["color"]
    for path in smooth:  # at the left are data
        assert min(abs(path.get_ydata()[-1] - 1), abs(path.get_ydata()[-1] + 1)) < 0.8
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "euler_maruyama (SDE)",
        "heun (ODE)",
    ]


def test_schedule_draws_alpha_sigma_and_log_snr(sde: SDE):
    left, right = plot_schedule(sde).axes
    unit = left.lines[0].get_xdata() * sde.t_max
    t = torch.from_numpy(np.asarray(unit))
    np.testing.assert_allclose(left.lines[0].get_ydata(), sde.alpha(t), rtol=1e-9)
    np.testing.assert_allclose(left.lines[1].get_ydata(), sde.sigma(t), rtol=1e-9)
    np.testing.assert_allclose(right.lines[0].get_ydata(), sde.log_snr(t), rtol=1e-9, atol=1e-9)
    assert left.get_yscale() == ("log" if float(sde.sigma(t).max()) > 3 else "linear")
    assert len(plot_schedule({"one": sde, "two": VP}).axes[1].lines) == 2


def test_convergence_draws_the_errors_of_reports():
    report = verify(FlowSDE(), "heun", steps=(8, 16))
    ax = plot_convergence({"heun": report.curve()}, order=2)
    assert ax.lines[0].get_xdata().tolist() == [row.nfe for row in report.rows] == [16, 32]
    assert ax.lines[0].get_ydata().tolist() == [row.error_rms for row in report.rows]
    guide = ax.lines[1].get_ydata()
    assert guide[0] / guide[1] == pytest.approx(4) and ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.lines[0].get_color() == sampler_style("heun")["color"]
    labelled = plot_convergence({"heun, karras": ([1, 2], [0.1, float("nan")])})
    assert labelled.lines[0].get_color() == sampler_style("heun")["color"]
    assert labelled.lines[0].get_xdata().tolist() == [1]
    with pytest.raises(PlottingError, match="2 numbers of evaluations and 1 errors"):
        plot_convergence({"heun": ([1, 2], [0.1])})
    with pytest.raises(PlottingError, match="at least one curve"):
        plot_convergence({})


def test_image_grid_shows_the_pixels():
    pixels = torch.arange(6 * 16, dtype=torch.uint8).reshape(6, 1, 4, 4)
    ax = image_grid(pixels, columns=3, row_labels=["first", "second"])
    shown = ax.images[0].get_array()
    assert shown.shape == (10, 16)
    np.testing.assert_array_equal(shown[6:10, 6:10], pixels[4, 0])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second"]
    spec = DataSpec((1, 4, 4), 0.0, 255.0, 256, shift=10.0, scale=50.0)
    shown = image_grid(spec.to_model(pixels), spec, columns=3).images[0].get_array()
    np.testing.assert_array_equal(shown[6:10, 6:10], pixels[4, 0])
    assert image_grid(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)).images[0].get_array().max()
    with pytest.raises(PlottingError, match="plot_points"):
        image_grid(torch.zeros(3, 2))
    with pytest.raises(PlottingError, match="3 row labels for 2 rows"):
        image_grid(pixels, columns=3, row_labels="abc")
    with pytest.raises(PlottingError, match="2 column labels for 3 columns"):
        image_grid(pixels, columns=3, column_labels=["a", "b"])
    halves = image_grid(torch.zeros(4, 1, 4, 4), columns=4, column_labels=["left", "right"])
    assert [t.get_text() for t in halves.get_xticklabels()] == ["left", "right"]
    assert halves.get_xticks().tolist() == [5.0, 17.0]  # the middles of two pictures and their gap


def test_colours_stand_out_on_both_pages_and_do_not_repeat():
    assert set(style.SAMPLER_COLOURS) == set(SAMPLERS), "each sampler has a colour of its own"
    assert len(set(style.SAMPLER_COLOURS.values())) == len(SAMPLERS)
    white, dark = 1.0, luminance("#1e2129")
    for colour in (*style.SAMPLER_COLOURS.values(), *style.CYCLE, style.TEXT):
        assert contrast(luminance(colour), white) > 3, colour
        assert contrast(luminance(colour), dark) > 3, colour
    shades = [luminance(c) for c in style.density_map()(np.linspace(0, 1, 64))]
    assert (np.diff(shades) < 0).all()  # reads in grey
    assert contrast(shades[-1], luminance(style.INK)) > 4.5  # arrows on the darkest shade
    assert sampler_style("ancestral")["linestyle"] == "--" != sampler_style("heun")["linestyle"]
    assert sampler_style("of_mine") == sampler_style("of_mine")


def test_subplots_are_transparent():
    figure, axes = subplots(2, 3, width=2.0)
    assert axes.shape == (2, 3) and figure.get_facecolor() == (0, 0, 0, 0)
    assert figure.get_size_inches().tolist() == [6, 4]
    label = axes[0, 0].xaxis.label.get_color()
    assert matplotlib.colors.to_hex(label) == style.TEXT
    assert matplotlib.rcParams["figure.facecolor"] != "none"  # nobody else's figures change


def test_no_matplotlib_is_an_error_that_names_the_extra(mixture, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(PlottingError, match=r"pip install 'score-sde\[plot\]'"):
        plot_score_field(mixture.score(VP), 0.5)


def test_no_display_is_an_error_that_says_what_to_set(monkeypatch):
    def headless(*args, **settings):  # what matplotlib raises, in its words
        raise ImportError("Cannot load backend 'TkAgg', as 'headless' is currently running")

    monkeypatch.setattr("matplotlib.pyplot.figure", headless)
    with pytest.raises(PlottingError, match=r"open a window.*MPLBACKEND=Agg"):
        subplots()
