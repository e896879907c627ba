"""Data whose score is known in closed form, for the benchmarks: mixtures of 2 to 100 coordinates.

Each problem is made by a seed, so that what is tuned on some can be tried on fresh ones.
"""

from typing import NamedTuple

import torch

from score_sde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowSDE,
    Gaussian,
    GaussianMixture,
    SubVPSDE,
)

F64 = torch.float64


class Problem(NamedTuple):
    """Data under a process."""

    name: str
    sde: SDE
    data: GaussianMixture


def ring(modes: int, std: float, seed: int) -> GaussianMixture:
    """Unequal modes of one width on a circle."""
    g = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * (torch.arange(modes) + 0.3 * torch.rand(modes, generator=g)) / modes
    means = 0.7 * torch.stack([angle.cos(), angle.sin()], 1).double()
    return GaussianMixture(0.5 + torch.rand(modes, generator=g), means, std**2)


def clusters(
    dim: int, modes: int, spread: float, seed: int, scale: float = 0.5, apart: float = 1.0
) -> GaussianMixture:
    """Modes of random axes whose stds are spread log-uniformly over ``spread``."""
    g = torch.Generator().manual_seed(seed)
    means = apart * torch.randn(modes, dim, generator=g, dtype=F64)
    axes = torch.linalg.qr(torch.randn(modes, dim, dim, generator=g, dtype=F64)).Q
    stds = spread ** -torch.rand(modes, dim, generator=g, dtype=F64)
    covariances = axes @ torch.diag_embed(stds**2) @ axes.mT
    weights = 0.3 + torch.rand(modes, generator=g, dtype=F64)
    unit = scale / GaussianMixture(weights, means, covariances).std()
    return GaussianMixture(weights, unit * means, unit**2 * covariances)


def stretched(dim: int, ratio: float, scale: float = 0.5) -> Gaussian:
    """A Gaussian of mean 0 whose stds are log-spaced over a ratio."""
    stds = torch.logspace(0, -torch.log10(torch.tensor(ratio)).item(), dim, dtype=F64)
    return Gaussian(torch.zeros(dim), (scale * stds / stds.square().mean().sqrt()) ** 2)


def digits(scale: float = 0.5) -> GaussianMixture:
    """A Gaussian a digit of scikit-learn's 8 x 8 images, 64-D: an ill-conditioned covariance each.

    Needs scikit-learn.
    """
    from sklearn.datasets import load_digits

    items = load_digits()
    x, labels = torch.from_numpy(items.data / 8 - 1), torch.from_numpy(items.target)
    parts = [x[labels == digit] for digit in range(10)]
    covariances = torch.stack([torch.cov(part.T) for part in parts])
    covariances = covariances + 1e-3 * torch.eye(64, dtype=F64)
    means = torch.stack([part.mean(0) for part in parts]) - x.mean(0)
    weights = torch.tensor([len(part) for part in parts], dtype=F64)
    unit = scale / GaussianMixture(weights, means, covariances).std()
    return GaussianMixture(weights, unit * means, unit**2 * covariances)


def problems(seed: int = 0) -> list[Problem]:
    """Ten of them: 2 to 100 coordinates, widths up to 200:1, every process."""
    return [
        Problem("ring5 2-D", VPSDE(), ring(5, 0.05, seed)),
        Problem("Gaussian 32-D 200:1", VPSDE(), stretched(32, 200)),
        Problem("wide and narrow 2-D 200:1", VPSDE(), clusters(2, 4, 200, seed + 1)),
        Problem("clusters 24-D 30:1", SubVPSDE(), clusters(24, 6, 30, seed + 2)),
        Problem("Gaussian 16-D 100:1", SubVPSDE(), stretched(16, 100, 0.2)),
        Problem("clusters 10-D 20:1", VESDE(sigma_max=200.0), clusters(10, 5, 20, seed + 3)),
        Problem("clusters 64-D, std 2", VESDE(), clusters(64, 8, 10, seed + 4, 2.0)),
        Problem("clusters 100-D 50:1", EDMSDE(), clusters(100, 8, 50, seed + 5)),
        Problem("clusters 5-D 8:1", CosineSDE(), clusters(5, 7, 8, seed + 6)),
        Problem("ring9 2-D", FlowSDE(), ring(9, 0.04, seed + 7)),
    ]
