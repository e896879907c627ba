r"""The reference Gaussian: mean and covariance of the data, along axes that make it diagonal.

Conditioning asks what x_0 may still be when x_t is known. For Gaussian data N(mu, C) that is

    Cov[x_0 | x_t] = C_nu = (C^{-1} + I / nu^2)^{-1},   nu = sigma / alpha,

which in C's axes is lambda nu^2 / (lambda + nu^2): elementwise. `score_sde.Gaussian` has the axes
of a full covariance, up to some thousands of entries; `SmoothGaussian` has those of pictures of any
size, waves (the cosine transform) in each of a few mixtures of the channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from score_sde.checks import Fraction, UserError, check_finite, check_varies, checked, reading
from score_sde.exact import Gaussian
from score_sde.writing import whole_file

FULL_UP_TO = 4096
"""Entries of a state up to which the covariance is full."""


class Reference(Protocol):
    """What restoration needs of a Gaussian; states are flat here, (B, D)."""

    shape: tuple[int, ...]

    def mean(self) -> Tensor:
        """E[x_0], (*shape)."""

    def std(self) -> float:
        """Root of the mean variance over the coordinates."""

    @property
    def axis_variances(self) -> Tensor:
        """Variances lambda along the axes, (D,)."""

    def to_axes(self, v: Tensor) -> Tensor:
        """Coordinates (B, D) of v (B, D) along the axes, which are orthonormal."""

    def from_axes(self, z: Tensor) -> Tensor:
        """The inverse of `to_axes`."""


class SmoothGaussian:
    """A Gaussian of pictures (C, H, W) whose covariance is diagonal in waves and mixed channels.

    mean: (C, H, W). variances: (C, H, W), of the coefficients. mixing: (C, C) orthonormal, its
    columns are mixtures of the channels.
    """

    def __init__(self, mean: Tensor, variances: Tensor, mixing: Tensor):
        self._mean, self._variances, self._mixing = (v.double() for v in (mean, variances, mixing))
        self.shape = tuple(mean.shape)
        self._rows, self._columns = _cosines(self.shape[1]), _cosines(self.shape[2])

    def mean(self) -> Tensor:
        """E[x_0], (C, H, W), float64."""
        return self._mean

    def std(self) -> float:
        """Root of the mean variance over the coordinates."""
        return float(self._variances.mean().sqrt())

    @property
    def axis_variances(self) -> Tensor:
        """Variances along the axes, (D,)."""
        return self._variances.flatten()

    def to_axes(self, v: Tensor) -> Tensor:
        """Coordinates (B, D) of v (B, D) along the axes."""
        x = v.reshape(-1, *self.shape)
        x = self._rows.to(v) @ x @ self._columns.to(v).T
        return torch.einsum("ck,bchw->bkhw", self._mixing.to(v), x).reshape(v.shape)

    def from_axes(self, z: Tensor) -> Tensor:
        """The inverse of `to_axes`."""
        x = torch.einsum("ck,bkhw->bchw", self._mixing.to(z), z.reshape(-1, *self.shape))
        return (self._rows.to(z).T @ x @ self._columns.to(z)).reshape(z.shape)


def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n numbers, (n, n)."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


ReferenceGaussian: TypeAlias = "Gaussian | SmoothGaussian"
"""What data are compared with: of a full covariance, or of the covariances of pictures."""


@checked
def reference_gaussian(x: Tensor, shrink: Fraction = 0.1) -> ReferenceGaussian:
    """The Gaussian of data x (N, *shape) in the model's range.

    shrink: the share of the covariance that is replaced by its mean variance in all directions. An
    empirical covariance has directions of almost no variance (the border of pictures, and all that
    N items do not span), and a posterior would believe them. UserError for fewer than two items,
    or more entries than `FULL_UP_TO` in states that are not pictures.
    """
    if x.ndim < 2 or len(x) < 2:
        raise UserError(f"the data must be (N, *shape), N >= 2; got {tuple(x.shape)}.")
    check_finite(x, "the data")
    shape, size = tuple(x.shape[1:]), math.prod(x.shape[1:])
    mean = x.mean(0, dtype=torch.float64)
    if size <= FULL_UP_TO:
        total = torch.zeros(size, size, dtype=torch.float64)
        for part in x.split(4096):
            off = (part.double() - mean).flatten(1)
            total += off.T @ off
        covariance = total / (len(x) - 1)
        level = covariance.diagonal().mean()
        check_varies(level)
        return Gaussian(mean, (1 - shrink) * covariance + shrink * level * torch.eye(size))
    if len(shape) != 3:
        raise UserError(
            f"states of {size} entries are too many for a full covariance (at most {FULL_UP_TO}), "
            f"and {shape} is no picture (C, H, W); give a Gaussian of your own."
        )
    return _smooth(x, mean, shrink)


def _smooth(x: Tensor, mean: Tensor, shrink: float) -> SmoothGaussian:
    channels = mean.shape[0]
    between = torch.zeros(channels, channels, dtype=torch.float64)
    for part in x.split(256):
        off = (part.double() - mean).transpose(0, 1).flatten(1)
        between += off @ off.T
    mixing = torch.linalg.eigh(between)[1]
    gaussian = SmoothGaussian(mean, torch.ones_like(mean), mixing)
    variances = torch.zeros(mean.numel(), dtype=torch.float64)
    for part in x.split(256):
        variances += gaussian.to_axes((part.double() - mean).flatten(1)).square().sum(0)
    variances = variances / (len(x) - 1)
    variances = (1 - shrink) * variances + shrink * variances.mean()
    return SmoothGaussian(mean, variances.reshape(mean.shape), mixing)


def save_gaussian(gaussian: ReferenceGaussian, path: Path, of: str) -> None:
    """A file of the Gaussian, float32 tensors as safetensors; of: of which data it is."""
    if isinstance(gaussian, SmoothGaussian):
        parts = {"variances": gaussian._variances, "mixing": gaussian._mixing}
    else:
        parts = {"covariance": gaussian.covariance()}
    parts["mean"] = gaussian.mean()
    with whole_file(path) as partial:
        tensors = {name: v.float().contiguous() for name, v in parts.items()}
        save_file(tensors, partial, {"of": of})


def load_gaussian(path: Path, of: str) -> ReferenceGaussian | None:
    """That of a file of `save_gaussian`; None if there is none, or one of other data.

    A file that does not say of which is taken as it is. UserError for a file that
    holds no Gaussian.
    """
    if not path.is_file():
        return None
    with reading(path, "a Gaussian of the data; delete it, it is made again"):
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("of", of) != of:
                return None
        parts = load_file(path)
        if "covariance" in parts:
            return Gaussian(parts["mean"], parts["covariance"])
        return SmoothGaussian(parts["mean"], parts["variances"], parts["mixing"])


class White:
    """N(0, std^2 I), for methods that know nothing of the data."""

    def __init__(self, shape: tuple[int, ...], std: float = 1.0):
        self.shape, self._std = tuple(shape), std

    def mean(self) -> Tensor:
        """Zeros, (*shape)."""
        return torch.zeros(self.shape, dtype=torch.float64)

    def std(self) -> float:
        """The one standard deviation."""
        return self._std

    @property
    def axis_variances(self) -> Tensor:
        """The same for all axes, (D,)."""
        return torch.full((math.prod(self.shape),), self._std**2, dtype=torch.float64)

    def to_axes(self, v: Tensor) -> Tensor:
        """v itself."""
        return v

    def from_axes(self, z: Tensor) -> Tensor:
        """z itself."""
        return z
