"""Adam, Muon, and the learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from score_sde.training.sharding import as_part, is_sharded, local, rows_of, whole

OPTIMIZERS = ("adam", "muon")


def orthogonalize(
    batches: Sequence[Tensor], steps: int = 5, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """The nearest semi-orthogonal matrices, roughly: singular values near 1, in ``dtype``.

    batches: (N, rows, columns) each. Jordan et al. (2024), "Muon", multiply X of norm 1 by
    a I + b G + c G^2 with G = X X^T, again and again. All these factors are polynomials of the
    first G, so what is multiplied here are they, small and in float32, and X once by their product.
    """
    wide = [x.to(dtype) if x.shape[1] <= x.shape[2] else x.to(dtype).mT for x in batches]
    grams = [x.float() @ x.float().mT for x in wide]
    factors: dict[int, Tensor] = {}  # by side, for all matrices of this side at once
    for side in {len(gram[0]) for gram in grams}:
        alike = torch.cat([gram for gram in grams if len(gram[0]) == side])
        factors[side] = _factor(alike, steps).to(dtype)
    found = []
    for x, given in zip(wide, batches, strict=True):
        here, factors[x.shape[1]] = factors[x.shape[1]].tensor_split([len(x)])
        y = here @ x
        found.append(y if y.shape == given.shape else y.mT)
    return found


def _factor(gram: Tensor, steps: int) -> Tensor:
    """Q (N, m, m) that makes the singular values of Q X near 1, of G = X X^T (N, m, m)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7
    one = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    gram, product = gram / norm**2, one / norm
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * one
        product = factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product


def _memory_order(weight: Tensor) -> tuple[int, ...]:
    """Axes in the order they have in memory. Orthogonalisation does not mind that of columns."""
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (0, 2, 3, 1) if last else tuple(range(weight.ndim))


def _shape(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix."""
    return weight.shape[0], weight.numel() // weight.shape[0]


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight matrix is orthogonalised (Jordan et al., 2024).

    For weights of at least two axes; convolutions count as matrices (out, in * kernel), in
    ``dtype``. Of sharded weights all processes orthogonalise the whole matrices of one shape, and
    each keeps its rows.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.03,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; ``closure`` is part of the interface and not used."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            gradients = [local(cast(Tensor, p.grad)) for p in params]
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [local(self.state[p]["momentum"]) for p in params]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p, update in zip(params, nesterov, strict=True):
                by_shape.setdefault(_shape(p), []).append((p, update))
            # Of a sharded network few matrices are to be whole at a time.
            sharded = any(map(is_sharded, params))
            for part in (
                [[pairs] for pairs in by_shape.values()] if sharded else [by_shape.values()]
            ):
                self._update(list(part), group["lr"])

    def _update(self, alike: list[list[tuple[Tensor, Tensor]]], lr: float) -> None:
        """Take a step with weights and their momenta, in lists of equal shape."""
        stacks = []
        for pairs in alike:
            matrices = []
            for p, update in pairs:
                matrix = whole(as_part(update.to(self.dtype), p)).permute(_memory_order(p))
                matrices.append(matrix.reshape(_shape(p)))
            stacks.append(torch.stack(matrices))
        for pairs, updates in zip(alike, orthogonalize(stacks, dtype=self.dtype), strict=True):
            rows, columns = updates.shape[1:]
            weights = [local(p).permute(_memory_order(p)).view(-1, columns) for p, _ in pairs]
            parts = [rows_of(u, p) for u, (p, _) in zip(updates, pairs, strict=True)]
            torch._foreach_add_(
                weights,
                [u.to(weights[0].dtype) for u in parts],
                alpha=-lr * max(1.0, rows / columns) ** 0.5,
            )


def make_optimizers(
    net: nn.Module,
    name: str,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    muon_lr: float,
    muon_dtype: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """Adam for everything, or Muon for the weights of convolutions and Adam for the rest."""
    if name not in OPTIMIZERS:
        raise ValueError(f"training.optimizer {name!r} is unknown; choose from {OPTIMIZERS}.")
    named = list(net.named_parameters())
    matrices = [p for n, p in named if p.ndim >= 4] if name == "muon" else []
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    fused = rest[0].device.type in ("cpu", "cuda")
    adam = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizers: list[torch.optim.Optimizer] = [
        adam(rest, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay, fused=fused)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=muon_lr, dtype=muon_dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(step: int, warmup_steps: int, progress: float, decay: float) -> float:
    """Factor on the learning rate of update ``step`` (from 0): linear up, flat, linear to 0.

    progress is the fraction of the run that is over; ``decay`` the fraction spent falling.
    """
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    fall = min(1.0, (1.0 - progress) / decay) if decay > 0 else 1.0
    return warm * max(fall, 0.0)
