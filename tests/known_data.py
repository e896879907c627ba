"""Data in the plane and in 64 dimensions whose density at any time is known."""

import math

import torch

from score_sde import VESDE, VPSDE, GaussianMixture, SubVPSDE

F64 = torch.float64
SONG = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}


def ring(modes=8, std=0.056):
    angle = torch.arange(modes, dtype=F64) * 2 * math.pi / modes
    means = 0.7 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1
    return GaussianMixture(torch.ones(modes), means, std**2)


def grid25(seed=0):
    """25 stretched and turned components, their axes from 0.018 to 0.14."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.linspace(-0.7, 0.7, 5, dtype=F64)
    means = torch.cartesian_prod(places, places)
    stds = 0.018 * 8 ** torch.rand(25, 2, generator=generator, dtype=F64)
    angle = math.pi * torch.rand(25, generator=generator, dtype=F64)
    axes = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(25, 2, 2)
    weights = 0.5 + torch.rand(25, generator=generator)
    return GaussianMixture(weights, means, axes @ torch.diag_embed(stds**2) @ axes.mT)


def clusters(dim=64, k=10, smallest=0.03, seed=0):
    """Full covariances with a wide spectrum around far means, of overall std 0.5."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.3 * torch.randn(k, dim, generator=generator, dtype=F64)
    axes = torch.linalg.qr(torch.randn(k, dim, dim, generator=generator, dtype=F64))[0]
    stds = torch.logspace(math.log10(0.9), math.log10(smallest), dim, dtype=F64)
    weights = torch.rand(k, generator=generator) + 0.3
    return GaussianMixture(weights, means, (axes * stds**2) @ axes.mT)


DATA = {"ring": ring(), "grid25": grid25(), "clusters": clusters()}


def at_t_min(data, sde, x):
    """log density of x_{t_min}/alpha at x."""
    t = torch.tensor(sde.t_min, dtype=F64)
    return data.log_prob(sde.alpha(t) * x, sde, t) + data.dim * sde.alpha(t).log()


class Counting:
    def __init__(self, score):
        self.score, self.calls = score, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.score(x, t)
