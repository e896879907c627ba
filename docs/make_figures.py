"""Make the figures of the README and of the docs, in docs/images.

python docs/make_figures.py                           # all but quick_start.png: a minute
python docs/make_figures.py --run runs/vp_fashion     # quick_start.png too, from a trained run
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import torch
from palette import with_palette
from PIL import Image

matplotlib.use("Agg")

from score_sde import (  # noqa: E402  (after the choice of a backend that needs no display)
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowSDE,
    GaussianMixture,
    SubVPSDE,
    load,
    plotting,
    verify,
)
from score_sde.plotting.pictures import grid_array  # noqa: E402
from score_sde.runs.film import film  # noqa: E402
from score_sde.runs.plane import closed_forms  # noqa: E402

FOLDER = Path(__file__).parent / "images"
MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.3], [0.8, 0.9], [0.2, -1.1]],
    [[[0.10, 0.05], [0.05, 0.08]], [[0.05, -0.03], [-0.03, 0.12]], [[0.20, 0.0], [0.0, 0.02]]],
)
LINE = GaussianMixture([0.6, 0.4], [[-1.0], [1.2]], [0.05, 0.03])
SDE = VPSDE()


def score_field():
    """The score at three times, on the density."""
    figure, panels = plotting.subplots(1, 3, width=3.0)
    for ax, t in zip(panels, (0.03, 0.15, 0.6), strict=True):
        plotting.plot_score_field(MIXTURE.score(SDE), t, ax=ax, arrows=17)
        ax.label_outer()
    return figure


def marginals():
    """Density over time, paths of the reverse SDE and of the probability flow."""
    return plotting.plot_marginals(SDE, LINE.score(SDE), paths=7).figure


def trajectories():
    """The same starts through four samplers."""
    figure, panels = plotting.subplots(1, 4, width=2.6)
    methods = {"ddim": 20, "heun": 20, "adams": 10, "euler_maruyama": 60}
    for ax, (method, steps) in zip(panels, methods.items(), strict=True):
        options = {"data_std": MIXTURE.std()} if method == "adams" else {}
        plotting.plot_trajectories(
            SDE, MIXTURE.score(SDE), (14, 2), method=method, steps=steps, extent=2.8, ax=ax,
            **options,
        )  # fmt: skip
        ax.label_outer()
    return figure


def schedules():
    """alpha, sigma and log-SNR of the processes with sigma up to 1."""
    return plotting.plot_schedule(
        {"VP": SDE, "sub-VP": SubVPSDE(), "cosine": CosineSDE(), "flow": FlowSDE()}
    )


def schedules_ve():
    """The same of the processes whose noise grows."""
    return plotting.plot_schedule({"VE": VESDE(), "EDM": EDMSDE()})


def convergence():
    """End point error over evaluations, on Gaussian data under VP."""
    methods = ("euler", "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "adams")
    curves = {m: verify(SDE, m, steps=(8, 16, 32, 64, 128)).curve() for m in methods}
    return plotting.plot_convergence(curves, ylabel="endpoint error, relative").figure


def field(path: Path) -> None:
    """The field of two moons from noise to data and back, and points that follow it."""
    data = closed_forms()["moons"]
    score = data.score(SDE)
    x_T = torch.randn(220, 2, generator=torch.Generator().manual_seed(1))
    u = torch.linspace(0, 1, 25, dtype=torch.float64)
    times = ((1 - u) * SDE.t_max**0.5 + u * SDE.t_min**0.5) ** 2
    _, states = plotting.record_trajectory(SDE, score, x_T=x_T, method="heun", grid=times)
    pictures = []
    for t, x in zip(times.tolist(), states, strict=True):
        figure, ax = plotting.subplots(width=3.2)
        plotting.plot_score_field(score, t, ax=ax, arrows=15, extent=2.6)
        plotting.plot_points(x, extent=2.6, colour="#fe5322", ax=ax)
        ax.set(title=f"t = {t:.2f}", xticks=[], yticks=[], xlabel="", ylabel="")
        pictures.append(picture_of_figure(figure))
    save_film(pictures, path, pauses=[90] * (len(pictures) - 1) + [1500])


def garments(path: Path) -> None:
    """Nine garments of the model that ships, on their way out of noise."""
    run = load("fashion", device="cpu")
    found = film(run, 9, 0, frames=21, method="dpmpp_2m", steps=20)
    pictures = []
    for x in found.states[5:]:  # before, all is noise
        x = x / x.flatten(1).std(1)[:, None, None, None].clamp(min=1)
        pixels = grid_array(run.data_spec.to_uint8(x)).repeat(3, 0).repeat(3, 1)
        pictures.append(Image.fromarray(pixels))
    save_film(pictures, path, pauses=[150] * (len(pictures) - 1) + [2000])


def picture_of_figure(figure) -> Image.Image:
    """A figure as a picture on white."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100, facecolor="white")
    matplotlib.pyplot.close(figure)
    return Image.open(file).convert("RGB")


def save_film(pictures: list[Image.Image], path: Path, pauses: list[int]) -> None:
    """A small .gif: one palette of 48 colours for all pictures."""
    sheet = Image.new("RGB", (pictures[0].width, pictures[0].height * len(pictures)))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), (0, i * picture.height))
    palette = sheet.quantize(48)
    first, *rest = [p.convert("RGB").quantize(palette=palette, dither=0) for p in pictures]
    first.save(path, save_all=True, append_images=rest, duration=pauses, loop=0, optimize=True)


FILMS = (field, garments)
FIGURES = (score_field, marginals, trajectories, schedules, schedules_ve, convergence)


def quick_start(run_directory: str) -> Path:
    """64 garments of a trained run, as they are drawn in training: pixels without margins."""
    from score_sde.plotting.pictures import picture_of, save_png

    run = load(run_directory)
    path = FOLDER / "quick_start.png"
    save_png(picture_of(run.sample(64).x, run.data_spec), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", help="a trained run of configs/vp_fashion.py")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for make in FIGURES:
        torch.manual_seed(0)
        path = FOLDER / f"{make.__name__}.png"
        make().savefig(path, dpi=160)
        path.write_bytes(with_palette(path.read_bytes()))
        print(f"wrote {path}")
    for draw in FILMS:
        path = FOLDER / f"{draw.__name__}.gif"
        draw(path)
        print(f"wrote {path}")
    if args.run:
        print(f"wrote {quick_start(args.run)}")


if __name__ == "__main__":
    main()
