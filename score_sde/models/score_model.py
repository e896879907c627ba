r"""Any network as a score function.

Whatever a network predicts is ``a x_0 + b eps``, and with
x_t = alpha x_0 + sigma eps two equations give both unknowns:

    eps = (alpha out - a x) / (alpha b - a sigma),
    x_0 = (b x - sigma out) / (alpha b - a sigma),      score = -eps / sigma.

whose rows (a, b) are in `processes.targets`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from score_sde.checks import Positive, UserError, check_count, checked, lookup, real_tensor
from score_sde.devices import moved
from score_sde.processes.expand import as_time, expand, on_rows
from score_sde.processes.sdes import SDE
from score_sde.processes.targets import TARGETS, Row
from score_sde.scores import Rows, ScoreError, conditions_of, nothing_like

TIME_SCALES = {"time": 999.0, "log_sigma": 0.25, "nearest": 1.0}
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def check_classes(net: nn.Module, labels: Tensor) -> None:
    """UserError unless labels are classes of the network, -1 for none, or rows of numbers."""
    classes = getattr(getattr(net, "module", net), "classes", None)
    if labels.is_floating_point() or labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if labels.dtype == torch.bool or low < -1 or (isinstance(classes, int) and high >= classes):
        there = f"0 to {classes - 1}" if isinstance(classes, int) else "whole numbers from 0"
        raise UserError(
            f"class_labels must be classes of the network, {there}, or -1 for none (got {low} to "
            f"{high}, {labels.dtype})."
        )


class ScoreModel(nn.Module):
    """The score function of a network: `model(x, t)` is grad log p_t(x).

    net: `net(x, noise_label, **condition)` -> like x, with the noise label (B,). Of a result with
        more channels the first are taken.
    target: what the network predicts, a key of `TARGETS`.
    data_std: standard deviation of x_0, used by the target F and by `scale_input`.
    time_input: the label is ``time_scale`` times t ("time") or log(sigma/alpha) ("log_sigma");
        time_scale defaults to DDPM's 999 for the first and EDM's 1/4 for the second. "nearest"
        is for networks that know discrete levels only: i where ``time_table[i]`` is nearest to
        sigma/alpha. ``time_shift`` is added to any of them.
    scale_input: the network sees x / sqrt(alpha^2 data_std^2 + sigma^2), EDM's c_in, of unit
        variance at every t; on for the target F unless said otherwise.
    center_input: the network sees 2 x - 1, for data in [0, 1].
    center: the network is about what is left of the mean m of the data, or of the class that it is
        told: with output = a x_0 + b eps it is net(x - alpha m) + a m. The means are the network's
        buffer ``means`` (classes + 1, ...), that of all data last.
    learned_variance: the network has twice the channels, and the second half says where the
        variance of a reverse step lies: v = (out + 1)/2 in beta^v beta~^(1 - v) (2102.09672,
        eq. 15), for `ancestral` with variance=learned and for bounds.
    precision: "fp32", "tf32" (CUDA), "bf16" or "fp16": autocast around the network alone; all else
        stays as it is.
    """

    @checked("model")
    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        target: str = "eps",
        data_std: Positive = 1.0,
        time_input: Literal["time", "log_sigma", "nearest"] = "time",
        time_scale: Positive | None = None,
        scale_input: bool | None = None,
        precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
        time_shift: float = 0.0,
        time_table: Sequence[float] | None = None,
        center_input: bool = False,
        learned_variance: bool = False,
        center: bool | None = None,
    ):
        super().__init__()
        self.row_of = lookup(TARGETS, target, "model.target")
        if (time_input == "nearest") != (time_table is not None):
            raise UserError("model.time_table goes with model.time_input = 'nearest', only there.")
        if center and (learned_variance or not hasattr(net, "means")):
            raise UserError(
                "model.center=True needs a network with a buffer `means` of the data, and none "
                "that learns variances: set model.learned_variance=False."
            )
        self.net, self.sde, self.target, self.data_std = net, sde, target, float(data_std)
        self.time_input = time_input
        self.time_scale = TIME_SCALES[time_input] if time_scale is None else float(time_scale)
        self.scale_input = target == "F" if scale_input is None else scale_input
        self.precision, self.time_shift, self.center_input = precision, time_shift, center_input
        self.learned_variance, self.center = learned_variance, bool(center)
        self.condition: dict[str, Tensor] = {}
        self.time_table = None if time_table is None else tuple(float(v) for v in time_table)

    def with_net(self, net: nn.Module) -> ScoreModel:
        """The same score model around another network, for instance averaged weights."""
        other = copy.copy(self)
        other._modules = {**self._modules, "net": net}
        return other

    def bind(self, **condition: Tensor | None) -> ScoreModel:
        """The score given a condition: this model, told the same beside (x, t) at every call.

        Each value is a tensor (B, ...) with a row for each sample, for instance
        ``class_labels`` (B,), or a tensor () for all of them; None is left out. What is bound
        already is replaced: ``model.bind()`` is the unconditional score. Numbers and lists are
        taken as tensors. Raises UserError for what the network does not take, and for classes
        that it does not have.
        """
        given = {
            name: real_tensor(value, f"the values of {name}")
            for name, value in condition.items()
            if value is not None
        }
        taken = conditions_of(self.net)
        for name in given:
            if taken is not None and name not in taken:
                raise UserError(
                    f"this network is not told {name!r}; it takes {', '.join(taken) or 'nothing'} "
                    "beside x and the noise label."
                )
        if "class_labels" in given:
            check_classes(self.net, given["class_labels"])
        bound = copy.copy(self)
        bound.condition = given
        return bound

    def take(self, rows: Rows) -> ScoreModel:
        """The score of some samples of the batch that the condition is for, see `scores.take`."""
        if not self.condition:
            return self
        part = copy.copy(self)
        part.condition = {
            name: value
            if value.ndim == 0
            else value[rows if isinstance(rows, slice) else rows.to(value.device)]
            for name, value in self.condition.items()
        }
        return part

    def joins(self, other: Any) -> bool:
        """Whether `joined` can be: another score of the same network, with conditions that agree.

        They agree where both are told the same things, or where the network ``knows_nothing``: it
        takes rows of `nothing_like` for no condition.
        """
        if type(other) is not type(self) or other.net is not self.net:
            return False
        mine, theirs = vars(self), vars(other)
        plain = [name for name in mine if name not in ("condition", "_modules")]
        if any(mine[name] is not theirs[name] and mine[name] != theirs[name] for name in plain):
            return False
        alike = self.condition.keys() == other.condition.keys()
        return alike or bool(getattr(self.net, "knows_nothing", False))

    def joined(self, other: ScoreModel, n: int) -> ScoreModel:
        """This score of n samples and another of n as one of 2n, so as to be evaluated at once."""
        pair = copy.copy(self)
        pair.condition = {}
        for name in {**self.condition, **other.condition}:
            both = [
                None if value is None else value.expand(n) if value.ndim == 0 else value
                for value in (self.condition.get(name), other.condition.get(name))
            ]
            first, second = (
                nothing_like(both[1 - i]) if value is None else value  # type: ignore[arg-type]
                for i, value in enumerate(both)
            )
            pair.condition[name] = torch.cat([first, second.to(first.device)])
        return pair

    def _bound(self, x: Tensor) -> dict[str, Tensor]:
        """The bound condition for the samples x, checked to be as many."""
        for name, value in self.condition.items():
            if value.ndim:
                check_count(len(value), len(x), f"rows of {name}", ScoreError)
        return {
            name: moved(value if value.ndim else value.expand(len(x)), x.device)
            for name, value in self.condition.items()
        }

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """What the network itself says at (x, t) of its target, like x."""
        return self._outputs(x, t, **condition)[:, : x.shape[1]]

    def _outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """All channels of the network at (x, t), in the dtype of x."""
        t, dtype = as_time(t), self.dtype
        noise_label = on_rows(self._label(t), x)
        told = {**self._bound(x), **condition}
        numbers = (n for n, v in told.items() if isinstance(v, Tensor) and v.is_floating_point())
        told |= {name: told[name].to(dtype) for name in numbers}
        mean = self._mean(x, told.get("class_labels")) if self.center else None
        inputs = x if mean is None else x - expand(self.sde.alpha(t), x) * mean
        inputs = 2 * inputs - 1 if self.center_input else inputs
        if self.scale_input:
            variance = (self.sde.alpha(t) * self.data_std) ** 2 + self.sde.sigma(t) ** 2
            inputs = inputs * expand(variance.rsqrt(), x)
        low = PRECISIONS[self.precision] != torch.float32
        with torch.autocast(x.device.type, PRECISIONS[self.precision]) if low else nullcontext():
            out = self.net(inputs.to(dtype), noise_label, **told)
        out = out.to(x.dtype)
        return out if mean is None else out + expand(self.row(t)[0], x) * mean

    def _mean(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The mean of the data that each of x is told of, like x or (1, ...)."""
        net: Any = getattr(self.net, "module", self.net)  # of a network on many processes
        means = net.means.to(x.dtype)
        if labels is None or len(means) == 1:
            return means[-1:]
        if not labels.is_floating_point():
            return means[labels]  # -1, no class, is the last: of all
        shares = torch.cat([labels, 1 - labels.sum(1, keepdim=True)], 1).to(x.dtype)
        return torch.tensordot(shares, means, 1)

    def _label(self, t: Tensor) -> Tensor:
        """What the network is told of t, like t."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return (self.time_scale * self._time(t) + self.time_shift).to(wide)

    def log_variance(self, t: Tensor) -> Tensor:
        """How uncertain the network says it is at times t (B,): log of a variance (B,).

        Raises UserError for a network that does not learn it.
        """
        net: Any = getattr(self.net, "module", self.net)  # of a network on many processes
        if not hasattr(net, "log_variance"):
            raise UserError(
                f"{type(net).__name__} does not learn how uncertain it is: set "
                "loss.uncertainty=False, or use net.name=edm2 with net.log_variance=True."
            )
        return net.log_variance(self._label(as_time(t)))

    @property
    def classes(self) -> int:
        """How many classes the network knows, 0 if it has no such number."""
        classes = getattr(self.net, "classes", 0)
        return classes if isinstance(classes, int) else 0

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in: the dtype of its parameters."""
        parameters = (p.dtype for p in self.net.parameters() if p.is_floating_point())
        return next(parameters, torch.float32)

    def _time(self, t: Tensor) -> Tensor:
        if self.time_input == "time":
            return t
        if self.time_table is None:
            return -0.5 * self.sde.log_snr(t)
        table = moved(torch.tensor(self.time_table, dtype=t.dtype), t.device)
        return (table - torch.exp(-0.5 * self.sde.log_snr(t))[..., None]).abs().argmin(-1)

    def row(self, t: Tensor) -> Row:
        """(a, b) with output = a x_0 + b eps at time t, each like t."""
        return self.row_of(self.sde, t, self.data_std)

    def split(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The predicted (x_0, eps) behind x, each like x, from one evaluation of the network."""
        return self._split(x, t, self.output(x, t, **condition))

    def _split(self, x: Tensor, t: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        a, b = self.row(t)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        determinant = alpha * b - a * sigma
        x0 = expand(b / determinant, x) * x - expand(sigma / determinant, x) * out
        eps = expand(alpha / determinant, x) * out - expand(a / determinant, x) * x
        return x0, eps

    def eps(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The predicted noise, like x."""
        return self.split(x, t, **condition)[1]

    def eps_and_v(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The predicted noise and v of ``learned_variance``, each like x, from one evaluation."""
        if not self.learned_variance:
            raise UserError(
                "this model has no learned variances (model.learned_variance is False); use "
                "variance=posterior or transition."
            )
        eps, v = self._outputs(x, t, **condition).chunk(2, dim=1)
        return self._split(x, t, eps)[1], (v + 1) / 2

    def score_and_v(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The score and v of ``learned_variance``, each like x, from one evaluation."""
        eps, v = self.eps_and_v(x, t, **condition)
        return -eps / expand(self.sde.sigma(t), x), v

    def denoise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The predicted E[x_0 | x_t = x], like x."""
        return self.split(x, t, **condition)[0]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The score at x (B, ...) and t () or (B,), like x."""
        return -self.eps(x, t, **condition) / expand(self.sde.sigma(t), x)
