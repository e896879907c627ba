"""Adam, Muon, and the learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from score_sde.checks import checked
from score_sde.training.sharding import as_part, local, rows_of, whole

FUSED = ("cpu", "cuda")  # devices on which Adam is one kernel


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by a quintic Newton-Schulz iteration.

    matrices (N, rows, columns) -> the same shape with singular values near 1, in ``dtype``, in
    which the iteration runs. Coefficients of Jordan et al. (2024), "Muon".
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _memory_order(weight: Tensor) -> tuple[int, ...]:
    """Axes in the order they have in memory. Orthogonalisation does not mind that of columns."""
    last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (0, 2, 3, 1) if last else tuple(range(weight.ndim))


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight matrix is orthogonalised (Jordan et al., 2024).

    For weights of at least two axes; convolutions count as matrices (out, in * kernel). Weights
    of equal shape are orthogonalised together, in ``dtype``; of sharded weights all processes do so
    with the whole matrices of one shape, and each keeps its rows.
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
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; ``closure`` is part of the interface and not used."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            gradients = [local(cast(Tensor, p.grad)) for p in params]
            bad = self.found_inf
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [local(self.state[p]["momentum"]) for p in params]
            if bad is not None:  # a lerp from the momenta to themselves changes nothing
                gradients = [
                    torch.where(bad, m, g) for m, g in zip(momenta, gradients, strict=True)
                ]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p, update in zip(params, nesterov, strict=True):
                shape = (p.shape[0], p.numel() // p.shape[0])
                by_shape.setdefault(shape, []).append((p, update))
            for (rows, columns), pairs in by_shape.items():
                scale = max(1.0, rows / columns) ** 0.5
                weights, matrices = [], []
                for p, update in pairs:
                    order = _memory_order(p)
                    weights.append(local(p).permute(order).view(-1, columns))
                    matrix = whole(as_part(update.to(self.dtype), p)).permute(order)
                    matrices.append(matrix.reshape(rows, columns))
                updates = orthogonalize(torch.stack(matrices), dtype=self.dtype)
                updates = updates if bad is None else updates * ~bad
                parts = [rows_of(u, p) for u, (p, _) in zip(updates, pairs, strict=True)]
                torch._foreach_add_(
                    weights, [u.to(weights[0].dtype) for u in parts], alpha=-group["lr"] * scale
                )


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step, which changes nothing where ``bad`` () is True, without asking whether it is.

    The device looks at it itself, in `Muon` and in fused Adam; other optimisers wait for it.
    """
    one: Any = optimizer
    if isinstance(one, Muon):
        one.found_inf = bad
    elif one.defaults.get("fused"):
        one.found_inf = bad.float()
    elif bool(bad):
        return
    one.step()


@checked
def make_optimizers(
    net: nn.Module,
    name: Literal["adam", "muon"],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    muon_lr: float,
    muon_dtype: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """Adam for everything, or Muon for the weights of convolutions and Adam for the rest."""
    named = list(net.named_parameters())
    matrices = [p for n, p in named if p.ndim >= 3] if name == "muon" else []
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    fused = rest[0].device.type in FUSED
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
