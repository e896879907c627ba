r"""A score and the trace of its Jacobian, from one evaluation.

    exact        tr J = sum_d e_d^T J e_d, D products
    hutchinson   v^T J v with E[v v^T] = I: unbiased, for one product a probe (1810.01367, eq. 7)

The products are vector-Jacobian ones, so the forward pass is shared by the score itself and by all
of them, and every network that can be trained can be used. With Rademacher probes (entries +1 and
-1) the diagonal of J adds no variance; Gaussian probes are there for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.scores import ScoreFn, check_like

CHUNK = 64  # products at a time for the exact trace, each as large as the network's activations


@dataclass(frozen=True)
class Traces:
    """score: like x. traces: (K, B), one row a probe, or one row of exact ones."""

    score: Tensor
    traces: Tensor


def score_and_traces(score: ScoreFn, x: Tensor, t: Tensor, probes: Tensor | None) -> Traces:
    """The score at (x, t) and the traces of its Jacobian there.

    probes: (K, B, ...) for v^T J v of each, or None for the exact trace.
    Raises UserError for a score that does not depend differentiably on x.
    """
    with torch.enable_grad():
        x, value = _with_graph(score, x, t)
        if probes is not None:
            traces = (products(value, x, probes) * probes).flatten(2).sum(2)
        else:
            traces = _exact(value, x)[None]
    return Traces(value.detach(), traces.detach())


def score_and_jacobian(score: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The score at (x, t), like x, and its Jacobian there, (B, D, D), by D products."""
    with torch.enable_grad():
        x, value = _with_graph(score, x, t)
        rows = torch.cat([products(value, x, basis).flatten(2) for basis in _bases(x)])
    return value.detach(), rows.detach().movedim(0, 1)


def _with_graph(score: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x to differentiate by, and the score there; UserError for one without a graph."""
    x = x.detach().requires_grad_(True)
    value = score(x, t)
    check_like(value, x, dtype=False)
    if not value.requires_grad:
        raise UserError(
            "the score cannot be differentiated by x: it was computed without a graph "
            "(under no_grad, detached, or through numpy)."
        )
    return x, value


def _bases(x: Tensor) -> Iterator[Tensor]:
    """The unit vectors of a state, for every sample (n, B, ...), `CHUNK` at a time."""
    dim = x[0].numel()
    for first in range(0, dim, CHUNK):
        here = torch.arange(first, min(first + CHUNK, dim), device=x.device)
        basis = torch.zeros(len(here), dim, dtype=x.dtype, device=x.device)
        basis[torch.arange(len(here)), here] = 1
        yield basis.reshape(len(here), 1, *x.shape[1:]).expand(-1, *x.shape)


def products(value: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v^T J for each of the vectors (K, B, ...)."""
    if len(vectors) == 1:
        return torch.autograd.grad(value, x, vectors[0], retain_graph=True)[0][None]
    try:
        return torch.autograd.grad(
            value, x, vectors, is_grads_batched=True, retain_graph=True
        )[0]  # fmt: skip
    except RuntimeError:  # an operation of the network that cannot be batched
        one = [torch.autograd.grad(value, x, v, retain_graph=True)[0] for v in vectors]
        return torch.stack(one)


def _exact(value: Tensor, x: Tensor) -> Tensor:
    """(B,) traces."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for basis in _bases(x):
        total = total + (products(value, x, basis) * basis).flatten(2).sum((0, 2))
    return total
