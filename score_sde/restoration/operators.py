r"""What is measured of a state: maps A with y = A(x_0) + noise, their derivatives and adjoints.

An operator is called with states x (B, *shape) and gives (B, *measured). Linear ones have
`adjoint(u, shape)`, by a vector-Jacobian product where no closed form is written, so that any
function of tensors is an operator: `Linear(fn)`, `Nonlinear(fn)`.

What costs nothing to know is said by `gram`: the diagonal of A A' where A A' is diagonal (masks,
block means, channel weights), from which the pseudo-inverse is A' / gram.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.checks import UserError, checked, real_tensor, shown

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
        # As the derivative of u -> J' u: forward mode does not go through every network.
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            out = self.forward(at)
            u = torch.zeros_like(out).requires_grad_(True)
            pulled = torch.autograd.grad(out, at, u, create_graph=True)[0]
            return torch.autograd.grad(pulled, u, v)[0]

    def gram(self, shape: Shape) -> Tensor | float | None:
        """The diagonal of A A' if A A' is diagonal and that is known, a number or (*measured)."""
        return None

    def measured(self, shape: Shape) -> Shape:
        """The shape of the measurement of one state."""
        found = self.forward(torch.zeros(1, *shape))
        if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != 1:
            raise UserError(
                "the operator must return a tensor (B, ...) of measurements, one of each state; of "
                f"one state (1, {', '.join(map(str, shape))}) it returned {shown(found)}."
            )
        return tuple(found.shape[1:])

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


class Matrix(Operator):
    """y = M x of the flattened state; M (m, D)."""

    def __init__(self, M: Tensor):
        self.M = real_tensor(M, "the entries of M")
        if self.M.ndim != 2 or not bool(self.M.isfinite().all() and self.M.is_floating_point()):
            raise UserError(
                f"M must be (m, D) of floating point, all finite; got {tuple(self.M.shape)} of "
                f"{self.M.dtype}."
            )

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

    @checked("Linear")
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
    """Any differentiable function of states: phase retrieval, clipping, a codec's decoder.

    Rounding has the derivative 0. ``z + (q * (z / q).round() - z).detach()`` rounds z to steps of q
    and passes derivatives on as if it did not (in a JPEG z are the waves of blocks of pixels).
    """

    linear = False

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Compose(Operator):
    """One operator after another, the first one given first: `Compose(Blur(k), Pool(2))`."""

    def __init__(self, *operators: Operator):
        strange = [one for one in operators if not isinstance(one, Operator)]
        if strange or not operators:
            raise UserError(
                "Compose takes operators, one or more, and a function of your own as Linear(fn) or "
                f"Nonlinear(fn); got {shown(strange[0]) if strange else 'none'}."
            )
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
    mask = real_tensor(mask, "the values of the mask")
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
