"""How far guidance is from the law that it is said to sample, on a labelled mixture in the plane.

The law is p(x|c)^w p(x)^(1-w), of which exact draws exist (`GaussianMixture.sample_tilted`). Sliced
Wasserstein-2 distances to 4 096 of them, mean over the seeds, in units of the floor: the distance
of two independent exact sets.

    python benchmarks/guidance.py [--particles 4096] [--seeds 4] [--scales 3 6]
    python benchmarks/guidance.py --cost

The second says how long one guided evaluation of a network takes beside one plain evaluation of as
many samples, and of twice as many: guidance doubles the batch and should cost nothing beside.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from score_sde import VPSDE, GaussianMixture, ScoreModel, guide, sample
from score_sde.conditioning.particles import sample_tilted
from score_sde.conditioning.rules import PlusPlus
from score_sde.nets import UNet

CENTRES = [[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9], [-1.0, 0.0], [0.5, -0.9], [0.5, 0.9]]
WEIGHTS = [0.25, 0.15, 0.1, 0.1, 0.15, 0.25]
VARIANCES = [0.25, 0.2, 0.15, 0.2, 0.2, 0.25]
DATA = GaussianMixture(WEIGHTS, CENTRES, VARIANCES, labels=[0, 0, 0, 1, 1, 1])


def sliced_w2(a: torch.Tensor, b: torch.Tensor, directions: int = 64) -> float:
    """Root of the mean squared W2 distance over directions of two sets (n, 2) of equal size."""
    angles = (torch.arange(directions, dtype=torch.float64) + 0.5) * math.pi / directions
    lines = torch.stack([angles.cos(), angles.sin()])
    left, right = ((x.double() @ lines).sort(0).values for x in (a, b))
    return float((left - right).square().mean().sqrt())


def rows(w: float, n: int, steps: int):
    """(name, a function from a seed to n samples) of each way to guide by w."""
    sde = VPSDE()
    score = DATA.score(sde)
    c, u = score.bind(class_labels=torch.tensor(0)), score.bind()
    given = {"steps": steps, "grid": "logsnr", "dtype": torch.float64}

    def drawn(score, method="dpmpp_2m_sde", **changes):
        options = {**given, "method": method, **changes}
        return lambda seed: sample(
            sde, score, (n, 2), seeds=range(seed * n, (seed + 1) * n), **options
        )

    def tilted(**options):
        score = guide(c, u, w)
        return lambda seed: (
            sample_tilted(
                score, (n, 2), seeds=range(seed * n, (seed + 1) * n), dtype=torch.float64, **options
            ).x
        )

    levels = torch.linspace(*sde.log_snr(torch.tensor([1.0, 1e-3])).tolist(), 26).double()
    times = sde.time_of_log_snr(levels)
    times[0], times[-1] = 1.0, 1e-3
    middle = (-2 * math.log(1.61), -2 * math.log(0.19))
    return [
        ("the law of the class itself", drawn(c)),
        ("cfg, SDE", drawn(guide(c, u, w))),
        ("cfg, ODE", drawn(guide(c, u, w), "dpmpp_2m")),
        ("cfg for sigma/alpha in (0.19, 1.61)", drawn(guide(c, u, w, interval=middle))),
        ("apg", drawn(guide(c, u, w, rule="apg"))),
        ("cfg++ 0.6, ddim 25", drawn(guide(c, u, PlusPlus.of(sde, times)), "ddim", grid=times,
                                     steps=None)),
        ("particles without Langevin steps", tilted(steps=steps, langevin=0.0)),
        ("particles", tilted(steps=steps)),
    ]  # fmt: skip


@torch.no_grad()
def cost(rounds: int = 40) -> None:
    """Print the fastest guided evaluation of 32 images beside plain ones, turn by turn."""
    net = UNet(1, (28, 28), classes=10, width=48, multipliers=(1, 2), blocks=2, patch=2,
               attention=(7,), heads=2, group_channels=16)  # fmt: skip
    model = ScoreModel(net.eval(), VPSDE())
    x, t = torch.randn(32, 1, 28, 28), torch.tensor(0.4)
    one, two = (model.bind(class_labels=torch.zeros(n, dtype=torch.int64)) for n in (32, 64))
    guided, twice = guide(one, model.bind(), 2.0), torch.cat([x, x])
    ways = {"guided": (guided, x), "plain": (one, x), "plain, twice as many": (two, twice)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (score, given) in ways.items():
            started = time.perf_counter()
            score(given, t)
            seconds[name].append(time.perf_counter() - started)
    fastest = {name: min(values) for name, values in seconds.items()}
    for name, value in fastest.items():
        print(
            f"{name:22s} {1000 * value:7.1f} ms, guided takes {fastest['guided'] / value:.2f} of it"
        )


def main() -> None:
    """Print the table, or the cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--particles", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scales", type=float, nargs="+", default=[3.0, 6.0])
    parser.add_argument("--cost", action="store_true")
    asked = parser.parse_args()
    if asked.cost:
        return cost()
    n, seeds = asked.particles, range(asked.seeds)
    for w in asked.scales:
        exact = [DATA.sample_tilted(0, w, n, seed=100 + i) for i in range(4 * asked.seeds)]
        pairs = list(zip(exact[::2], exact[1::2], strict=True))
        floor = sum(sliced_w2(a, b) for a, b in pairs) / len(pairs)
        print(f"w = {w:g}, {n} samples, {asked.steps} steps: floor {floor:.4f}")
        for name, draw in rows(w, n, asked.steps):
            found = [sliced_w2(draw(seed), exact[seed]) for seed in seeds]
            mean = sum(found) / len(found)
            each = " ".join(f"{d:.3f}" for d in found)
            print(f"  {name:38s} {mean:.4f}  {mean / floor:5.2f} x floor   ({each})", flush=True)


if __name__ == "__main__":
    main()
