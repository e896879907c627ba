"""Data of the plane whose score is known: fields to look at, beside which learned ones are held."""

from __future__ import annotations

import torch

from score_sde.data import TOYS
from score_sde.exact import GaussianMixture


def closed_forms() -> dict[str, GaussianMixture]:
    """Three correlated Gaussians, and toy sets as a small Gaussian around each of 200 points."""
    three = GaussianMixture(
        [0.5, 0.3, 0.2],
        [[-1.0, 0.3], [0.8, 0.9], [0.2, -1.1]],
        [[[0.10, 0.05], [0.05, 0.08]], [[0.05, -0.03], [-0.03, 0.12]], [[0.20, 0.0], [0.0, 0.02]]],
    )
    found = {"three Gaussians": three}
    for name, draw in TOYS.items():
        points = draw(200, torch.Generator().manual_seed(0))
        found[name] = GaussianMixture([1.0] * len(points), points.double(), 0.06**2)
    return found
