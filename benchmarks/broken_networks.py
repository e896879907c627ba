"""Networks, and a weighting, with a fault in them, for `broken_runs.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from score_sde.nets import MLP


class Deaf(nn.Module):
    """A network that does not use its noise label."""

    def __init__(self, dim: int, width: int = 64, depth: int = 2):
        super().__init__()
        self.net = MLP(dim, width, depth)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """As an MLP told 0."""
        return self.net(x, torch.zeros_like(noise_label))


class Scaled(nn.Module):
    """A network whose output is not what it was trained to be."""

    def __init__(self, dim: int, width: int = 64, depth: int = 2, factor: float = 1.0):
        super().__init__()
        self.net, self.factor = MLP(dim, width, depth), factor

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """As an MLP, scaled."""
        return self.factor * self.net(x, noise_label)


class Left(nn.Module):
    """A network of which nothing is trained, or whose last layer stays at its zeros."""

    def __init__(self, dim: int, start: bool):
        super().__init__()
        self.net, self.unused = MLP(dim, 64, 2), nn.Parameter(torch.zeros(dim))
        self.net.requires_grad_(False)
        if start:
            nn.init.kaiming_uniform_(self.net.last.weight)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """As an MLP that no gradient reaches."""
        return self.net(x, noise_label) + 0 * self.unused


class Dropping(nn.Module):
    """A network whose dropout is never switched off."""

    def __init__(self, dim: int, width: int = 64, depth: int = 2):
        super().__init__()
        self.net = MLP(dim, width, depth)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """As an MLP, a tenth of it at random."""
        return nn.functional.dropout(self.net(x, noise_label), 0.1, training=True)


class Bounded(nn.Module):
    """A network that ends in a tanh."""

    def __init__(self, dim: int, width: int = 64, depth: int = 2):
        super().__init__()
        self.net = MLP(dim, width, depth)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """As an MLP, between -1 and 1."""
        return self.net(x, noise_label).tanh()


def neglectful(model: Any, t: Tensor) -> Tensor:
    """A weighting of large noise alone, as steep as one may write it by mistake."""
    return (-2 * model.sde.log_snr(t)).exp().clamp(max=1e4)


class Told(nn.Module):
    """A network that is told one of some classes."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classes, self.net = classes, MLP(dim + classes, 96, 2)

    def forward(self, x: Tensor, noise_label: Tensor, class_labels: Tensor) -> Tensor:
        """As an MLP that sees the class beside x."""
        told = nn.functional.one_hot(class_labels, self.classes).to(x.dtype)
        return self.net(torch.cat([x, told], 1), noise_label)[:, : x.shape[1]]
