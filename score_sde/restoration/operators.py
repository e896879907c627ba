r"""What is measured of a state: maps A with y = A(x_0) + noise, their derivatives and adjoints.

An operator is called with states x (B, *shape) and gives (B, *measured). Linear ones have
`adjoint(u, shape)`, by a vector-Jacobian product where no closed form is written, so that any
function of tensors is an operator: `Linear(fn)`, `Nonlinear(fn)`.

What costs nothing to know is said by `gram`: the diagonal of A A' where A A' is diagonal (masks,
block means, channel weights), from which the pseudo-inverse is A' / gram.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from score_sde.checks import UserError

Shape = tuple[int, ...]
DENSE = 4096
"""Entries of a state up to which an operator may be written as a matrix."""


class Operator:
    """A map of states (B, *shape) to measurements (B, *measured).

    Subclasses write `forward`; linear ones may write `adjoint` and `gram`.
    """

    linear = True

    def forward(self, x: Tensor) -> Tensor:
        """A(x), (B, *measured)."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        """A' u, (B, *shape), of u (B, *measured)."""
        return self.vjp(torch.zeros(len(u), *shape, dtype=u.dtype, device=u.device), u)

    def vjp(self, x: Tensor, u: Tensor) -> Tensor:
        """J' u with J the derivative of A at x."""
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            return torch.autograd.grad(self.forward(at), at, u)[0]

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """J v with J the derivative of A at x."""
        if self.linear:
            return self.forward(v)
        return torch.func.jvp(self.forward, (x.contiguous(),), (v.contiguous(),))[1]

    def gram(self, shape: Shape) -> Tensor | float | None:
        """The diagonal of A A' if A A' is diagonal and that is known, a number or (*measured)."""
        return None

    def measured(self, shape: Shape) -> Shape:
        """The shape of the measurement of one state."""
        return tuple(self.forward(torch.zeros(1, *shape)).shape[1:])

    def matrix(self, shape: Shape) -> Tensor:
        """A as a matrix (m, D) of float64; UserError beyond `DENSE` entries."""
        size = math.prod(shape)
        if size > DENSE:
            raise UserError(
                f"states of {size} entries are too many for a matrix (at most {DENSE})."
            )
        unit = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        return self.forward(unit).reshape(size, -1).T.contiguous()

    def pinv(self, u: Tensor, shape: Shape) -> Tensor:
        """The least-squares solution of least norm of A x = u, (B, *shape)."""
        gram = self.gram(shape)
        if gram is not None:
            return self.adjoint(u / gram, shape)
        inverse = torch.linalg.pinv(self.matrix(shape), rtol=1e-6).to(u)
        return (u.flatten(1) @ inverse.T).reshape(len(u), *shape)


class Mask(Operator):
    """The entries of a state where ``mask`` is True, in order: y (m,).

    mask: bool, of the shape of a state or of its last axes; (H, W) is for all channels.
    """

    def __init__(self, mask: Tensor):
        self.mask = check_mask(mask)

    def _places(self, shape: Shape) -> Tensor:
        if self.mask.shape != shape[len(shape) - self.mask.ndim :]:
            raise UserError(
                f"the mask has shape {tuple(self.mask.shape)}, states have {tuple(shape)}; the "
                "mask must be like a state or like its last axes."
            )
        return self.mask.expand(shape).flatten().nonzero()[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._places(tuple(x.shape[1:])).to(x.device)]

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        x = u.new_zeros(len(u), math.prod(shape))
        x[:, self._places(shape).to(u.device)] = u
        return x.reshape(len(u), *shape)

    def gram(self, shape: Shape) -> float:
        return 1.0


class Grey(Operator):
    """One channel from several, sum_c weights_c x_c: (B, C, H, W) to (B, 1, H, W).

    weights: (C,); those of ITU-R BT.601 for red, green and blue unless given.
    """

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)

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

    def __init__(self, factor: int):
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

    def __init__(self, factor: int):
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.factor, :: self.factor]

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        x = u.new_zeros(len(u), *shape)
        x[..., :: self.factor, :: self.factor] = u
        return x

    def gram(self, shape: Shape) -> float:
        return 1.0


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """A kernel (size, size) of sum 1; size is odd, three standard deviations to each side."""
    half = math.ceil(3 * std) if size is None else size // 2
    line = torch.exp(-torch.arange(-half, half + 1, dtype=torch.float64).square() / (2 * std**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


class Blur(Operator):
    """Convolution of each channel with a kernel (k, k) of odd size.

    padding: "periodic" (by FFT: eigenvectors are waves), "zeros" or "reflect".
    """

    def __init__(self, kernel: Tensor, padding: str = "periodic"):
        self.kernel = torch.as_tensor(kernel, dtype=torch.float64)
        if self.kernel.ndim != 2 or not all(n % 2 for n in self.kernel.shape):
            raise UserError(f"kernel must be (k, k), k odd; got {tuple(self.kernel.shape)}.")
        if padding not in ("periodic", "zeros", "reflect"):
            raise UserError(f"padding {padding!r}: choose from periodic, zeros, reflect.")
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
        self.angles = torch.as_tensor(angles, dtype=torch.float64)

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


class Matrix(Operator):
    """y = M x of the flattened state; M (m, D)."""

    def __init__(self, M: Tensor):
        self.M = torch.as_tensor(M)
        if self.M.ndim != 2 or not self.M.is_floating_point():
            raise UserError(f"M must be (m, D) of floating point; got {tuple(self.M.shape)}.")

    def forward(self, x: Tensor) -> Tensor:
        if math.prod(x.shape[1:]) != self.M.shape[1]:
            raise UserError(f"M {tuple(self.M.shape)} does not fit states {tuple(x.shape[1:])}.")
        return x.flatten(1) @ self.M.to(x).T

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        return (u @ self.M.to(u)).reshape(len(u), *shape)


class Linear(Operator):
    """Any linear function of states, with its adjoint(u, shape) if that is known.

    `checks.check_operator` tries both once: that fn is linear, that the adjoint is one.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ):
        self.fn, self.given_adjoint = fn, adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        return super().adjoint(u, shape) if self.given_adjoint is None else self.given_adjoint(u)


class Nonlinear(Operator):
    """Any differentiable function of states: phase retrieval, clipping, a codec's decoder."""

    linear = False

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Compose(Operator):
    """One operator after another, the first one given first: `Compose(Blur(k), Pool(2))`."""

    def __init__(self, *operators: Operator):
        self.operators = operators
        self.linear = all(one.linear for one in operators)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.operators:
            x = one(x)
        return x

    def adjoint(self, u: Tensor, shape: Shape) -> Tensor:
        shapes = [shape]
        for one in self.operators[:-1]:
            shapes.append(one.measured(shapes[-1]))
        for one, before in zip(reversed(self.operators), reversed(shapes), strict=True):
            u = one.adjoint(u, before)
        return u


def check_mask(mask: Tensor) -> Tensor:
    """The mask as bool; UserError for values that are not 0 and 1, and for one that hides all."""
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool:
        values = mask.unique()
        if not set(values.tolist()) <= {0, 1}:
            found = f"from {float(values.min()):g} to {float(values.max()):g}"
            raise UserError(
                f"the mask has values {found}; it must be bool, True where the state is seen: "
                "mask > 0.5, or mask > 127 of an 8-bit picture."
            )
        mask = mask.bool()
    if not bool(mask.any()):
        raise UserError("the mask is False everywhere: nothing is seen. True is seen.")
    return mask
