"""How near is every restoration method to the posterior, at what cost?

    python benchmarks/restoration.py                                # the table of the docs
    python benchmarks/restoration.py --methods particles,dps --nfe 20 --draws 256
    python benchmarks/restoration.py --calibrate 100 --methods particles,hybrid
    python benchmarks/restoration.py --error 0.1                    # with an imperfect denoiser
    python benchmarks/restoration.py --aside                        # problems nothing was chosen on

`score_sde.restoration.verify` on mixtures of Gaussians: geometric means over its problems of
sw2_x and wsw2_x (1 is perfect), the mean error of mode weights, and the mean fit. Cost is
evaluations plus vector-Jacobian products for each draw. --error: a smooth error of the denoiser of
that share of min(nu, std), the posterior that is scored against staying the exact one. --aside: two
problems of other dimensions, data, operators and noise, on which no setting was ever chosen.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from score_sde import GaussianMixture, restore
from score_sde.processes.expand import expand
from score_sde.restoration import METHODS
from score_sde.restoration.verify import Problem, RestorationReport, verify_restoration


class Wrong:
    """A score whose denoiser is off by error * alpha std nu / sqrt(std^2 + nu^2), smoothly."""

    def __init__(self, sde, score, dim: int, std: float, error: float):
        g = torch.Generator().manual_seed(99)
        self.sde, self.score, self.std, self.error = sde, score, std, error
        self.w = torch.randn(dim, dim, generator=g, dtype=torch.float64) * (1.5 / dim**0.5)
        self.phase = torch.rand(dim, generator=g, dtype=torch.float64) * 2 * math.pi

    def __call__(self, x, t):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        scale = ((alpha * self.std) ** 2 + sigma**2).sqrt()
        size = self.error * alpha * self.std / (sigma * scale)
        wave = torch.sin(x / expand(scale, x) @ self.w.to(x) + self.phase.to(x))
        return self.score(x, t) + expand(size, x) * wave


def with_error(method: str, error: float):
    """`restore` by a method, of a prior whose denoiser is wrong."""

    def call(sde, score, y, operator, *, gaussian, **options):
        wrong = Wrong(sde, score, gaussian.dim, gaussian.std(), error)
        return restore(sde, wrong, y, operator, gaussian=gaussian, method=method,
                       dtype=torch.float64, **options)  # fmt: skip

    call.__name__ = method
    return call


def aside() -> dict[str, Problem]:
    """Stretched clusters in five dimensions by two projections; blurred signals of 24 steps."""
    g = torch.Generator().manual_seed(77)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    turns = torch.linalg.qr(normal(9, 5, 5))[0]
    spreads = torch.tensor([0.5, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    clusters = GaussianMixture(0.2 + torch.rand(9, generator=g, dtype=torch.float64),
                               1.5 * normal(9, 5), (turns * spreads**2) @ turns.mT)  # fmt: skip
    steps = torch.arange(24, dtype=torch.float64)
    apart = steps[:, None] - steps
    rough = torch.exp(-apart.abs() / 6) * 0.2 + 0.01 * torch.eye(24)
    waves = torch.stack([torch.sin(2 * math.pi * k * steps / 24 + k) for k in (1, 2, 3, 4)])
    signals = GaussianMixture([0.4, 0.3, 0.2, 0.1], waves, rough.expand(4, 24, 24))
    blur = torch.exp(-apart.square() / 8)
    blur = (blur / blur.sum(1, keepdim=True))[::4]
    cases = {"clusters": (clusters, normal(2, 5) / 2, 0.25), "signals": (signals, blur, 0.3)}
    found = {}
    for name, (data, A, noise) in cases.items():
        y = A @ data.sample(1, seed=5)[0] + noise * normal(len(A))
        found[name] = Problem(name, data, A, noise, y)
    return found


def line(report: RestorationReport, nfe: int) -> str:
    fits = [row.fit for row in report.rows if row.nfe == nfe]
    cells = [f"{report.mean('sw2_x', nfe):.2f}", f"{report.mean('wsw2_x', nfe):.2f}"]
    cells += [f"{report.mean('modes', nfe):.3f}", f"{sum(fits) / len(fits):.2f}"]
    cells += [f"{v:.2f}" for v in report.calibration.values()]
    return f"| {report.method} | {nfe} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--nfe", default="20,60")
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--calibrate", type=int, default=0)
    parser.add_argument("--error", type=float, default=0.0)
    parser.add_argument("--aside", action="store_true")
    parser.add_argument("--output", default=None)
    given = parser.parse_args()
    costs = [int(c) for c in given.nfe.split(",")]
    print("| method | cost | sw2_x | wsw2_x | modes | fit |" + " sbc_x | tarp_x | spread |"
          * bool(given.calibrate))  # fmt: skip
    print("|---" * (6 + 3 * bool(given.calibrate)) + "|")
    reports = []
    for method in given.methods.split(","):
        asked = with_error(method, given.error) if given.error else method
        report = verify_restoration(asked, nfe=costs, n=given.draws, seeds=range(given.seeds),
                                    calibrate=given.calibrate,
                                    cases=aside() if given.aside else None)  # fmt: skip
        reports.append(asdict(report))
        for nfe in costs:
            print(line(report, nfe), flush=True)
    if given.output:
        Path(given.output).write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
