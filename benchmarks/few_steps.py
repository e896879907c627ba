"""Error of a map of the flow against the exact flow of a mixture in the plane, over training time.

    python benchmarks/few_steps.py                # half of the way, the teacher in four steps
    python benchmarks/few_steps.py --gap 0        # the derivative itself
    python benchmarks/few_steps.py --scratch --gap 0.1   # from the data, without a teacher

The data are eight Gaussians on a ring of unit variance; the exact flow is that of their exact score
by 200 steps of adams in float64. Printed are the root mean square and the median distance of the
map's end points to those of the flow, in units of the data's standard deviation.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from score_sde import VPSDE, GaussianMixture, sample
from score_sde.models import FlowMap
from score_sde.nets import MLP
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.map_matching import MapMatching

SDE = VPSDE()
POINTS = 2000


def ring() -> GaussianMixture:
    """Eight Gaussians of variance 0.02 on a circle."""
    turns = torch.arange(8) * (2 * math.pi / 8)
    means = 1.386 * torch.stack([turns.cos(), turns.sin()], 1)
    return GaussianMixture([1 / 8] * 8, means, 0.02)


def errors(model: FlowMap, x_T: Tensor, exact: Tensor, std: float) -> str:
    """rms and median of the error of 1, 2 and 4 steps."""
    found = []
    for steps in (1, 2, 4):
        options = {"method": "flow_map", "data_std": model.data_std, "steps": steps}
        off = (sample(SDE, model, x_T=x_T, **options) - exact) / std
        rms = float(off.square().mean().sqrt())
        found.append(f"{rms:.4f} {float(off.norm(dim=1).median()):.4f}")
    return " | ".join(found)


def main(words: list[str] | None = None) -> None:
    """Train, and print the errors after an eighth, a quarter, half and all of the updates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--gap", type=float, default=0.5)
    parser.add_argument("--teacher_steps", type=int, default=4)
    parser.add_argument("--power", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--time_scale", type=float, default=5.0)
    parser.add_argument("--scratch", action="store_true", help="learn from the data alone")
    asked = parser.parse_args(words)
    data = ring()
    torch.manual_seed(0)
    net = MLP(2, asked.width, 3, second_time=True)
    model = FlowMap(net, SDE, target="F", time_input="log_sigma", time_scale=asked.time_scale)
    objective = MapMatching(gap=asked.gap, power=asked.power, same=0.5 * asked.scratch)
    if not asked.scratch:
        objective = objective.of_teacher(lambda: data.score(SDE), asked.teacher_steps)
    settings = TrainingSettings(asked.batch, steps=asked.updates, lr=asked.lr, betas=(0.9, 0.99),
                                warmup_steps=50, decay=0.7, ema_sigma_rel=0.1)  # fmt: skip
    trainer = Trainer(model, objective, settings, seed=1)
    x_T = SDE.prior_std() * torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(5))
    exact = sample(SDE, data.score(SDE), x_T=x_T.double(), method="adams", data_std=1.0, steps=200)
    averaged, marks = model.with_net(trainer.ema.net), [asked.updates // k for k in (8, 4, 2, 1)]
    print("| updates | CPU s | 1 step: rms, median | 2 steps | 4 steps |\n|---|---|---|---|---|")
    started, other = time.process_time(), 0.0
    for k in range(asked.updates):
        trainer.update(data.sample(asked.batch, seed=k).float())
        if k + 1 in marks:
            spent = time.process_time() - started - other
            found = errors(averaged, x_T, exact.float(), data.std())
            print(f"| {k + 1} | {spent:.0f} | {found} |", flush=True)
            other = time.process_time() - started - spent


if __name__ == "__main__":
    main()
