r"""Any network as a score function.

Whatever a network predicts is one row ``a x_0 + b eps`` of a table, and with
x_t = alpha x_0 + sigma eps two equations give both unknowns:

    eps = (alpha out - a x) / (alpha b - a sigma),
    x_0 = (b x - sigma out) / (alpha b - a sigma),      score = -eps / sigma.

    target        a                 b
    eps           0                 1                 2006.11239
    x0            1                 0
    v             -sigma            alpha             2202.00512
    velocity      alpha'            sigma'            2210.02747
    score         0                 -1/sigma          2011.13456
    scaled_score  0                 -1                2011.13456
    F             sigma / (sd r)    -alpha sd / r     2206.00364

scaled_score is sigma * score: networks that are divided by sigma to give the score (NCSN++).
F is EDM's preconditioned output, written for any alpha: F = (x_0 - c_skip x/alpha) / c_out, with
r^2 = sigma^2 + alpha^2 sd^2 and sd the standard deviation of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.sdes import SDE
from score_sde.states import expand

Row = tuple[Tensor, Tensor]


def _eps(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.zeros_like(t), torch.ones_like(t)


def _x0(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.ones_like(t), torch.zeros_like(t)


def _v(sde: SDE, t: Tensor, data_std: float) -> Row:
    return -sde.sigma(t), sde.alpha(t)


def _velocity(sde: SDE, t: Tensor, data_std: float) -> Row:
    return sde.derivatives(t)


def _score(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.zeros_like(t), -1 / sde.sigma(t)


def _scaled_score(sde: SDE, t: Tensor, data_std: float) -> Row:
    return torch.zeros_like(t), -torch.ones_like(t)


def _preconditioned(sde: SDE, t: Tensor, data_std: float) -> Row:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    radius = torch.sqrt(sigma**2 + (alpha * data_std) ** 2)
    return sigma / (data_std * radius), -alpha * data_std / radius


TARGETS: dict[str, Callable[[SDE, Tensor, float], Row]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "velocity": _velocity,
    "score": _score,
    "scaled_score": _scaled_score,
    "F": _preconditioned,
}
TIME_SCALES = {"time": 999.0, "log_sigma": 0.25, "nearest": 1.0}
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class ScoreModel(nn.Module):
    """The score function of a network: `model(x, t)` is grad log p_t(x).

    net: `net(x, label, **condition)` -> like x, with the noise label of shape (B,). Of a result
        with more channels the first are taken.
    target: what the network predicts, a key of `TARGETS`.
    data_std: standard deviation of x_0, used by the target F and by `scale_input`.
    time_input: the label is ``time_scale`` times t ("time") or log(sigma/alpha) ("log_sigma");
        time_scale defaults to DDPM's 999 for the first and EDM's 1/4 for the second. "nearest"
        is for networks that know discrete levels only: i where ``time_table[i]`` is nearest to
        sigma/alpha. ``time_shift`` is added to any of them.
    scale_input: the network sees x / sqrt(alpha^2 data_std^2 + sigma^2), EDM's c_in, of unit
        variance at every t; on for the target F unless said otherwise.
    center_input: the network sees 2 x - 1, for data in [0, 1].
    learned_variance: the network has twice the channels, and the second half says where the
        variance of a reverse step lies: v = (out + 1)/2 in beta^v beta~^(1 - v) (2102.09672,
        eq. 15), for `ancestral` with variance=learned and for bounds.
    precision: "fp32", "tf32" (CUDA), "bf16" or "fp16": autocast around the network alone; all else
        stays as it is.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        target: str = "eps",
        data_std: float = 1.0,
        time_input: str = "time",
        time_scale: float | None = None,
        scale_input: bool | None = None,
        precision: str = "fp32",
        time_shift: float = 0.0,
        time_table: Sequence[float] | None = None,
        center_input: bool = False,
        learned_variance: bool = False,
    ):
        super().__init__()
        for name, value, choices in (
            ("target", target, TARGETS),
            ("time_input", time_input, TIME_SCALES),
            ("precision", precision, PRECISIONS),
        ):
            if value not in choices:
                raise ValueError(f"model.{name} {value!r} is unknown; choose from {list(choices)}.")
        if not data_std > 0:
            raise ValueError(f"model.data_std must be positive (got {data_std}).")
        if (time_input == "nearest") != (time_table is not None):
            raise ValueError("model.time_table goes with model.time_input = 'nearest', only there.")
        self.net, self.sde, self.target, self.data_std = net, sde, target, float(data_std)
        self.time_input = time_input
        self.time_scale = TIME_SCALES[time_input] if time_scale is None else float(time_scale)
        self.scale_input = target == "F" if scale_input is None else scale_input
        self.precision, self.time_shift, self.center_input = precision, time_shift, center_input
        self.learned_variance = learned_variance
        self.time_table = None if time_table is None else tuple(float(v) for v in time_table)

    def with_net(self, net: nn.Module) -> ScoreModel:
        """The same score model around another network, for instance averaged weights."""
        return ScoreModel(
            net, self.sde, self.target, self.data_std, self.time_input, self.time_scale,
            self.scale_input, self.precision, self.time_shift, self.time_table, self.center_input,
            self.learned_variance,
        )  # fmt: skip

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """What the network itself says at (x, t) of its target, like x."""
        return self._outputs(x, t, **condition)[:, : x.shape[1]]

    def _outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """All channels of the network at (x, t), in the dtype of x."""
        t = torch.as_tensor(t)
        label = self.time_scale * self._time(t) + self.time_shift
        label = label.to(torch.float32).to(x.device).expand(x.shape[0])
        inputs = 2 * x - 1 if self.center_input else x
        if self.scale_input:
            variance = (self.sde.alpha(t) * self.data_std) ** 2 + self.sde.sigma(t) ** 2
            inputs = inputs * expand(variance.rsqrt(), x)
        low = PRECISIONS[self.precision] != torch.float32
        with torch.autocast(x.device.type, dtype=PRECISIONS[self.precision], enabled=low):
            out = self.net(inputs.to(torch.float32), label, **condition)
        return out.to(x.dtype)

    def _time(self, t: Tensor) -> Tensor:
        if self.time_input == "time":
            return t
        if self.time_table is None:
            return -0.5 * self.sde.log_snr(t)
        table = torch.tensor(self.time_table, dtype=t.dtype, device=t.device)
        return (table - torch.exp(-0.5 * self.sde.log_snr(t))[..., None]).abs().argmin(-1)

    def row(self, t: Tensor) -> Row:
        """(a, b) with output = a x_0 + b eps at time t, each like t."""
        return TARGETS[self.target](self.sde, t, self.data_std)

    def split(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The predicted (x_0, eps) behind x, each like x, from one evaluation of the network."""
        return self._split(x, torch.as_tensor(t), self.output(x, t, **condition))

    def _split(self, x: Tensor, t: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.row(t)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        determinant = alpha * b - a * sigma
        x0 = expand(b / determinant, x) * x - expand(sigma / determinant, x) * out
        eps = expand(alpha / determinant, x) * out - expand(a / determinant, x) * x
        return x0, eps

    def eps(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The predicted noise, like x."""
        return self.split(x, t, **condition)[1]

    def eps_and_share(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The predicted noise and v of ``learned_variance``, each like x, from one evaluation."""
        if not self.learned_variance:
            raise ValueError(
                "this model has no learned variances (model.learned_variance is False); use "
                "variance=posterior or transition."
            )
        eps, share = self._outputs(x, t, **condition).chunk(2, dim=1)
        return self._split(x, torch.as_tensor(t), eps)[1], (share + 1) / 2

    def score_and_share(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The score and v of ``learned_variance``, each like x, from one evaluation."""
        eps, share = self.eps_and_share(x, t, **condition)
        return -eps / expand(self.sde.sigma(torch.as_tensor(t)), x), share

    def denoise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The predicted E[x_0 | x_t = x], like x."""
        return self.split(x, t, **condition)[0]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The score at x (B, ...) and t () or (B,), like x."""
        return -self.eps(x, t, **condition) / expand(self.sde.sigma(torch.as_tensor(t)), x)
