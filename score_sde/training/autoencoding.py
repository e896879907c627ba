"""Training of autoencoders: pictures in, the same pictures back.

    loss   a mean |x - y| + b mean (x - y)^2 + c KL(q(z | x) || N(0, 1)) / numbers of x

All else is that of any run (`Trainer`): the order of the data, averages, checkpoints, resumption.
In the place of the noise of the process is that with which latents are drawn.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from score_sde import distributed
from score_sde.checks import NonNegative, require, validated
from score_sde.losses import LossTerms
from score_sde.models import PRECISIONS
from score_sde.nets.autoencoder import KLAutoencoder, kl_to_normal
from score_sde.nets.codec import Moments
from score_sde.noise import StepRandomness
from score_sde.training.trainer import Trainer


class AutoencoderModel(nn.Module):
    """An autoencoder and the precision that it is trained in; what a `Trainer` asks of a model."""

    def __init__(self, net: KLAutoencoder, precision: str = "fp32"):
        super().__init__()
        self.net, self.precision = net, precision

    def with_net(self, net: nn.Module) -> AutoencoderModel:
        """The same around another network, for instance averaged weights."""
        other = copy.copy(self)
        other._modules = {**self._modules, "net": net}
        return other

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Moments]:
        """Pictures x (B, C, H, W) as they come back, and the moments of their latents."""
        kind = PRECISIONS[self.precision]
        with torch.autocast(x.device.type, dtype=kind, enabled=kind != torch.float32):
            back, moments = self.net(x, noise)
        return back.float(), Moments(moments.mean.float(), moments.std.float())


@validated("reconstruction")
@dataclass(frozen=True)
class Reconstruction:
    """The objective of an autoencoder, see the module.

    absolute, square: weights of the mean absolute and the mean squared error.
    kl: of the divergence of the latents from N(0, 1), in nats a number of the picture. A small one
        only keeps latents bounded.
    precision: "fp32", or "bf16" autocast around the network.
    """

    measures: ClassVar[str] = "square_error"
    absolute: NonNegative = 1.0
    square: NonNegative = 1.0
    kl: NonNegative = 1e-4
    precision: str = "fp32"

    def __post_init__(self) -> None:
        require(
            self.absolute + self.square > 0,
            "reconstruction.absolute and .square are both 0: nothing would come back.",
        )
        require(
            self.precision in ("fp32", "bf16"),
            f"reconstruction.precision must be fp32 or bf16 (got {self.precision!r}).",
        )

    def __call__(
        self, model: AutoencoderModel, x: Tensor, t: Tensor, noise: Tensor, **condition: Any
    ) -> LossTerms:
        """The loss and the mean squared error of each x (B, C, H, W); t is passed on."""
        back, moments = model(x, noise)
        error = (back - x).flatten(1)
        square = error.square().mean(1)
        loss = self.absolute * error.abs().mean(1) + self.square * square
        loss = loss + self.kl * kl_to_normal(moments) / error.shape[1]
        return LossTerms(loss, t, square.detach())


class MeanError:
    """The mean squared error of what came back since the last look; stands where `NoiseBins` is."""

    def __init__(self) -> None:
        self._sums = [0.0, 0.0]
        self._here: list[Tensor] = []  # (2,) each, on the device

    def add(self, square: Tensor) -> None:
        """One batch (B,). Values that are not finite are left out."""
        finite = torch.isfinite(square)
        kept = torch.where(finite, square, 0.0)
        self._here.append(torch.stack([finite.sum().to(kept), kept.sum()]))

    def sums(self) -> list[float]:
        """Of all processes, for a checkpoint."""
        if self._here:
            added = torch.stack(self._here).cpu().double().sum(0).tolist()
            self._sums = [a + b for a, b in zip(self._sums, added, strict=True)]
            self._here = []
        return distributed.total(self._sums)

    def restore(self, sums: list[float]) -> None:
        """Go on from the sums of a checkpoint; one process takes them."""
        if distributed.is_writer():
            self._sums = list(sums)

    def pop(self) -> dict[str, float]:
        """The mean since the last call, which all processes make."""
        count, total = self.sums()
        self._sums = [0.0, 0.0]
        return {"square_error": total / count} if count else {}


class AutoencoderTrainer(Trainer):
    """`Trainer` of an `AutoencoderModel` and a `Reconstruction`."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.bins = MeanError()  # type: ignore[assignment]

    def _draw(self, x0: Tensor, random: StepRandomness) -> tuple[Tensor, Tensor]:
        shape: tuple[int, ...] = self.model.net.latent_shape  # type: ignore[assignment]
        like = x0.new_empty(len(x0), *shape)
        return x0.new_zeros(len(x0)), random.noise(like, self.rows)

    def _count(self, terms: LossTerms) -> None:
        self.bins.add(terms.error)  # type: ignore[call-arg]

    def _place_of(self, t: Tensor) -> str:
        return ""
