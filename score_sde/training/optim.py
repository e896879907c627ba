"""Adam, Muon, and the learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adam", "muon")


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by a quintic Newton-Schulz iteration.

    matrices (N, rows, columns) -> the same shape with singular values near 1, in bfloat16 where
    the iteration runs. Coefficients of Jordan et al. (2024), "Muon".
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight matrix is orthogonalised (Jordan et al., 2024).

    For weights of at least two axes; convolutions count as matrices (out, in * kernel). Weights
    of equal shape are orthogonalised together.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.03, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; ``closure`` is part of the interface and not used."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (rows, columns), params in by_shape.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    gradient = cast(Tensor, p.grad)
                    momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    nesterov = gradient.lerp(momentum, group["momentum"])
                    updates.append(nesterov.reshape(rows, columns))
                scale = max(1.0, rows / columns) ** 0.5
                for p, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
                    p.add_(update.reshape(p.shape).to(p.dtype), alpha=-group["lr"] * scale)


def make_optimizers(
    net: nn.Module,
    name: str,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    muon_lr: float,
) -> list[torch.optim.Optimizer]:
    """Adam for everything, or Muon for the inner weight matrices and Adam for the rest.

    The first and last layer and embeddings stay with Adam: their columns are not alike.
    """
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
        optimizers.append(Muon(matrices, lr=muon_lr))
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
