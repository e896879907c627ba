r"""Classifier guidance: a classifier of noisy samples makes any score a conditional one.

By Bayes' rule, at every time (2011.13456, section 5; 2105.05233, section 4),

    grad log p_t(x | y) = grad log p_t(x) + grad log p_t(y | x),

and the last term is the gradient of a classifier that is shown x_t and told t. Their sum,
`NoisyClassifier.told`, is a conditional score like any other: `guide(told, score, w)` is
score + w grad log p_t(y | x), the guidance of ADM and GLIDE, with any rule, interval and sampler.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from score_sde.checks import Positive, UserError, checked
from score_sde.devices import moved
from score_sde.models.score_model import PRECISIONS
from score_sde.processes.expand import as_time, expand, on_rows
from score_sde.processes.sdes import SDE
from score_sde.scores import Rows, ScoreFn, take


class NoisyClassifier(nn.Module):
    """log p_t(class | x_t) of a network, and its gradient in x_t.

    net: `net(x, noise_label)` -> logits (B, classes), with a number ``classes``. It sees x_t scaled
        to unit variance, and the label time_scale log(sigma/alpha).
    data_std: standard deviation of x_0. precision: of the network, see `ScoreModel`.
    """

    @checked("model")
    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        data_std: Positive = 1.0,
        time_scale: Positive = 30.0,
        precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
    ):
        super().__init__()
        self.net, self.sde, self.data_std = net, sde, float(data_std)
        self.time_scale, self.precision = float(time_scale), precision

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.net.classes)  # type: ignore[arg-type]

    def with_net(self, net: nn.Module) -> NoisyClassifier:
        """The same around another network, for instance averaged weights."""
        other = copy.copy(self)
        other._modules = {**self._modules, "net": net}
        return other

    def log_probs(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(class | x) of x (B, ...) at t () or (B,), in nats, (B, classes)."""
        t = as_time(t)
        label = on_rows(-0.5 * self.time_scale * self.sde.log_snr(t), x)
        variance = (self.sde.alpha(t) * self.data_std) ** 2 + self.sde.sigma(t) ** 2
        wide = next((p.dtype for p in self.net.parameters()), torch.float32)
        inputs, low = (x * expand(variance.rsqrt(), x)).to(wide), PRECISIONS[self.precision]
        with torch.autocast(x.device.type, dtype=low, enabled=low != torch.float32):
            logits = self.net(inputs, label.to(wide))
        return logits.to(x.dtype).log_softmax(1)

    def gradient(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        """grad log p_t(y | x) in x (B, ...), like x; class_labels (B,) or ()."""
        onward = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            x = x if onward else x.detach().requires_grad_()
            log_probs = self.log_probs(x, t)
            rows = moved(class_labels, x.device).expand(len(x))[:, None]
            chosen = log_probs.gather(1, rows).sum()
            return torch.autograd.grad(chosen, x, create_graph=onward)[0]

    def told(self, score: ScoreFn, class_labels: Tensor) -> ByBayes:
        """The conditional score that the classifier makes of ``score``; class_labels (B,) or ().

        Raises UserError for classes that the classifier does not know, and for a score of another
        process.
        """
        class_labels = torch.as_tensor(class_labels, dtype=torch.int64)
        if (
            class_labels.numel()
            and not 0 <= class_labels.min() <= class_labels.max() < self.classes
        ):
            raise UserError(
                f"class_labels must lie in 0 to {self.classes - 1}, the classes of the classifier "
                f"(got {sorted(set(class_labels.flatten().tolist()))})."
            )
        if getattr(score, "sde", self.sde) != self.sde:
            raise UserError(
                f"the classifier knows samples of {self.sde}, and the score is of "
                f"{score.sde}: they must share the process."  # type: ignore[attr-defined]
            )
        return ByBayes(score, self, class_labels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """As `log_probs`."""
        return self.log_probs(x, t)


@dataclass(frozen=True)
class ByBayes:
    """score + grad log p_t(y | x), see `NoisyClassifier.told`."""

    score: ScoreFn
    classifier: NoisyClassifier
    class_labels: Tensor

    @property
    def sde(self) -> SDE:
        """The process."""
        return self.classifier.sde

    def take(self, rows: Rows) -> ByBayes:
        """The score of some samples, see `scores.take`."""
        labels = self.class_labels if self.class_labels.ndim == 0 else self.class_labels[rows]
        return ByBayes(take(self.score, rows), self.classifier, labels)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(y | x), like x."""
        return self.classifier.gradient(x, t, self.class_labels)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.score(x, t) + self.gradient(x, t)

    def score_and_v(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score, and the learned variances of the one that it is made of."""
        score, v = self.score.score_and_v(x, t)  # type: ignore[attr-defined]
        return score + self.gradient(x, t), v

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x, y], like x."""
        return self.sde.denoise(x, torch.as_tensor(t), self(x, t))

    def joins(self, other: Any) -> bool:
        """Whether the other score is the one that this is made of, and need not be asked twice."""
        return other is self.score

    def joined(self, other: ScoreFn, n: int) -> _Both:
        """This score of n samples, and after them the other of the same n."""
        return _Both(self, n)


@dataclass(frozen=True)
class _Both:
    """The conditional and the unconditional score of n samples x, given as [x, x]."""

    told: ByBayes
    n: int

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        x, t = x[: self.n], t[: self.n] if t.ndim else t
        plain = self.told.score(x, t)
        return torch.cat([plain + self.told.gradient(x, t), plain])

    def score_and_v(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x, t = x[: self.n], t[: self.n] if t.ndim else t
        plain, v = self.told.score.score_and_v(x, t)  # type: ignore[attr-defined]
        return torch.cat([plain + self.told.gradient(x, t), plain]), torch.cat([v, v])
