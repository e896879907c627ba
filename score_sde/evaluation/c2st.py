r"""Can a classifier tell samples from real items? (C2ST, 1610.06545)

The accuracy of a small network at telling two sets apart, on items that it was not trained on: 1/2
if the laws are the same, and if they are not, at most 1 - (overlap of the densities)/2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.evaluation.jackknife import Estimate
from score_sde.noise import generator_of, seed_torch

FOLDS = 5


def two_sample_accuracy(x: Tensor, y: Tensor, most: int = 2000, seed: int = 0) -> Estimate:
    """Accuracy over five folds of a network of two layers 10 d wide, x (n, d) and y (m, d).

    As many of both, at most ``most``, scaled to unit variance together.
    """
    n = min(len(x), len(y), most)
    both = torch.cat([x[:n], y[:n]]).double()
    both = ((both - both.mean(0)) / both.std(0).clamp_min(1e-12)).float()
    truth = torch.arange(2 * n) >= n
    generator = generator_of(seed)
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed)  # for the layers
        fold = torch.randperm(n, generator=generator).remainder(FOLDS).repeat(2)
        right = [_accuracy(both, truth, fold != j, generator) for j in range(FOLDS)]
    value = sum(right) / FOLDS
    return Estimate(value, tuple((FOLDS * value - r) / (FOLDS - 1) for r in right), value)


def _accuracy(
    both: Tensor, truth: Tensor, train: Tensor, generator: torch.Generator, epochs: int = 60
) -> float:
    d = both.shape[1]
    width = min(max(10 * d, 20), 512)
    net = nn.Sequential(
        nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    x, label = both[train], truth[train].float()
    steps = epochs * -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            loss = F.binary_cross_entropy_with_logits(net(x[rows])[:, 0], label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        guess = net(both[~train])[:, 0] > 0
    return float((guess == truth[~train]).double().mean())
