"""What is measured of pictures (..., C, H, W): channels, blocks, waves, rays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from score_sde.checks import Count, Positive, UserError, check_names, checked, real_tensor, require
from score_sde.restoration.operators import Operator, Shape, check_mask

WIDEST = 4096
"""Pixels to each side of the widest kernel that is made."""


class Grey(Operator):
    """One channel from several, sum_c weights_c x_c: (B, C, H, W) to (B, 1, H, W).

    weights: (C,); those of ITU-R BT.601 for red, green and blue unless given.
    """

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)):
        self.weights = real_tensor(weights, "the weights of channels").double()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.weights):
            raise UserError(f"{len(self.weights)} weights do not fit {x.shape[1]} channels.")
        return torch.einsum("c,bc...->b...", self.weights.to(x), x)[:, None]

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        return torch.einsum("c,b...->bc...", self.weights.to(u), u[:, 0])

    def gram(self, shape: Shape) -> float:
        return float(self.weights.square().sum())


class Pool(Operator):
    """Means of blocks of factor x factor pixels: what super-resolution measures."""

    @checked("")
    def __init__(self, factor: Count):
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise UserError(
                f"blocks of {self.factor} x {self.factor} do not divide states of shape "
                f"{tuple(x.shape[1:])}; choose a factor that divides height and width."
            )
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        f = self.factor
        return u.repeat_interleave(f, -1).repeat_interleave(f, -2) / f**2

    def gram(self, shape: Shape) -> float:
        return 1 / self.factor**2


class Downsample(Operator):
    """Every factor-th pixel, without a filter (`Compose(Blur(kernel), Downsample(f))` has one)."""

    @checked("")
    def __init__(self, factor: Count):
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        require(x.ndim == 4, f"Downsample takes pictures (C, H, W); got {tuple(x.shape[1:])}.")
        return x[..., :: self.factor, :: self.factor]

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        x = u.new_zeros(len(u), *shape)
        x[..., :: self.factor, :: self.factor] = u
        return x

    def gram(self, shape: Shape) -> float:
        return 1.0


@checked
def gaussian_kernel(std: Positive, size: Count | None = None) -> Tensor:
    """A kernel (size, size) of sum 1; size is odd, three standard deviations to each side."""
    require(size is None or size % 2 == 1, f"the size of a kernel must be odd (got {size}).")
    half = math.ceil(3 * std) if size is None else size // 2
    require(half <= WIDEST, f"a kernel of {half} pixels to each side is wider than any picture.")
    line = torch.exp(-torch.arange(-half, half + 1, dtype=torch.float64).square() / (2 * std**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


class Blur(Operator):
    """Convolution of each channel with a kernel (k, k) of odd size.

    padding: "periodic" (by FFT: eigenvectors are waves), "zeros" or "reflect".
    """

    def __init__(self, kernel: Tensor, padding: str = "periodic"):
        self.kernel = real_tensor(kernel, "the entries of the kernel").double()
        if self.kernel.ndim != 2 or not all(n % 2 for n in self.kernel.shape):
            raise UserError(f"kernel must be (k, k), k odd; got {tuple(self.kernel.shape)}.")
        check_names([padding], ("periodic", "zeros", "reflect"), "padding")
        self.padding = padding

    def transfer(self, shape: Shape) -> Tensor:
        """The factors (H, W // 2 + 1) on the waves of `torch.fft.rfft2`, for periodic padding."""
        height, width = shape[-2:]
        rows, columns = self.kernel.shape
        placed = torch.zeros(height, width, dtype=torch.float64)
        i = (torch.arange(rows) - rows // 2) % height
        j = (torch.arange(columns) - columns // 2) % width
        placed.index_put_((i[:, None], j[None]), self.kernel, accumulate=True)
        return torch.fft.rfft2(placed)

    def _by_waves(self, x: Tensor, factors: Tensor) -> Tensor:
        factors = factors.to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)
        return torch.fft.irfft2(torch.fft.rfft2(x) * factors.to(x.device), s=x.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == "periodic":
            return self._by_waves(x, self.transfer(tuple(x.shape)))
        rows, columns = self.kernel.shape
        most = 2 * min(x.shape[-2:]) - 1
        require(
            self.padding != "reflect" or max(rows, columns) <= most,
            f"a kernel {rows} x {columns} is too large to reflect states {tuple(x.shape[1:])}: "
            f"at most {most} x {most}, or padding='zeros'.",
        )
        pads = (columns // 2, columns // 2, rows // 2, rows // 2)
        padded = F.pad(x, pads, mode="constant" if self.padding == "zeros" else "reflect")
        channels = x.shape[1]
        weight = self.kernel.flip(0, 1).to(x).expand(channels, 1, rows, columns)
        return F.conv2d(padded, weight, groups=channels)

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        if self.padding == "periodic":
            return self._by_waves(u, self.transfer(shape).conj())
        return super().adjoint(u, shape)

    def pinv(self, u: Tensor, shape: Shape) -> Tensor:
        if self.padding != "periodic":
            return super().pinv(u, shape)
        factors = self.transfer(shape)
        seen = factors.abs() > 1e-6 * factors.abs().max()
        return self._by_waves(u, torch.where(seen, 1 / factors, 0))


class Fourier(Operator):
    """Coefficients of the orthonormal 2-D Fourier transform where ``mask`` (H, W) is True.

    The measurement has real and imaginary parts (B, C, m, 2), as sub-sampled MRI has; the mask
    counts from the lowest frequency, [0, 0], as `torch.fft.fft2` does.
    """

    def __init__(self, mask: Tensor):
        self.mask = check_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != tuple(self.mask.shape):
            raise UserError(
                f"the mask of frequencies is {tuple(self.mask.shape)}, states are "
                f"{tuple(x.shape[-2:])}."
            )
        return torch.view_as_real(torch.fft.fft2(x, norm="ortho")[..., self.mask.to(x.device)])

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        waves = torch.view_as_complex(u.contiguous())
        full = waves.new_zeros(len(u), *shape)
        full[..., self.mask.to(u.device)] = waves
        return torch.fft.ifft2(full, norm="ortho").real


class Radon(Operator):
    """Means along parallel rays at some angles (degrees): (B, C, H, H) to (B, C, angles, H)."""

    def __init__(self, angles: Sequence[float]):
        self.angles = real_tensor(angles, "the angles").double()
        finite = self.angles.ndim == 1 and len(angles) > 0 and bool(self.angles.isfinite().all())
        require(finite, f"give at least one angle in degrees, finite (got {angles}).")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != x.shape[-2]:
            raise UserError(f"Radon takes square pictures (C, H, H); got {tuple(x.shape[1:])}.")
        rays = []
        for angle in torch.deg2rad(self.angles).tolist():
            c, s = math.cos(angle), math.sin(angle)
            turn = torch.tensor([[c, -s, 0], [s, c, 0]], dtype=x.dtype, device=x.device)
            where = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
            rays.append(F.grid_sample(x, where, align_corners=False).mean(-2))
        return torch.stack(rays, -2)
