"""Make the figures of the README and of the docs, in docs/images.

python docs/make_figures.py                           # all but the garments: half a minute
python docs/make_figures.py --run runs/vp_fashion     # quick_start.png too, from a trained run
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

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


FIGURES = (score_field, marginals, trajectories, schedules, schedules_ve, convergence)


def quick_start(run_directory: str) -> Path:
    """64 garments of a trained run, as they are drawn in training: pixels without margins."""
    from score_sde.data.pictures import picture_of, save_png

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
        make().savefig(path, dpi=110)
        print(f"wrote {path}")
    if args.run:
        print(f"wrote {quick_start(args.run)}")


if __name__ == "__main__":
    main()
