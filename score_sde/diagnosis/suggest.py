r"""What the data say of the settings: `suggest`.

    scale        data_std; sigma_max is the largest distance of two items (2006.09011, technique 1)
    detail       the smallest spread s, by local principal components; at noise sigma the density is
                 off by log(1 + sigma^2/s^2)/2 <= sigma^2/(2 s^2) nats a direction, which sets t_min
    the end      KL( p(x_T) || prior ) of a Gaussian with the data's moments
    symmetry     whether mirrored images are as near to the others as images are

Every choice carries the figure and the reason that it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import Seed, check_finite, check_varies, checked, real_tensor
from score_sde.checks.memory import machine_memory
from score_sde.data import ArrayData, Data, DataSpec
from score_sde.data.spec import DataError, make_spec
from score_sde.evaluation.memorisation import mann_whitney_z, nearest
from score_sde.noise import generator_of
from score_sde.processes.sdes import VPSDE

MOST = 2000  # items that are looked at
TRUNCATION = 1e-3  # nats a dimension that stopping at t_min may cost
FEWEST = 10
SMALLEST = 8  # pixels along a side of a U-Net's last level
ACTIVATIONS = 80  # values that an update keeps for each pixel and channel of the first level, about


@dataclass(frozen=True)
class Choice:
    """A setting, and the reason with the figure behind it."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Advice:
    """What `suggest` found; all values are of the data in the model's range.

    scaling, data_std, sigma_max, sigma_min, t_min, terminal, log_sigma_mean, log_sigma_std, snr,
    flip, net, width, levels, batch_size, batch_per_device, steps: a `Choice` each. name, shape: of
    the data.
    """

    name: str
    shape: tuple[int, ...]
    n: int
    scaling: Choice
    data_std: Choice
    sigma_max: Choice
    sigma_min: Choice
    t_min: Choice
    terminal: Choice
    log_sigma_mean: Choice
    log_sigma_std: Choice
    snr: Choice
    flip: Choice
    net: Choice
    width: Choice
    levels: Choice
    batch_size: Choice
    batch_per_device: Choice
    steps: Choice

    def choices(self) -> Iterator[tuple[str, Choice]]:
        """All of them by name."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Choice):
                yield field.name, value

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.n} items of shape {self.shape}"]
        for name, choice in self.choices():
            value = f"{choice.value:.4g}" if isinstance(choice.value, float) else choice.value
            lines.append(f"  {name:15s} {value!s:10s} {choice.reason}")
        return "\n".join(lines)

    def config(self) -> dict[str, Any]:
        """A config that trains, as a plain dictionary (VP process, target F)."""
        images = len(self.shape) == 3
        std, t_min = float(self.data_std.value), float(self.t_min.value)
        width, levels = int(self.width.value), int(self.levels.value)
        net: dict[str, Any] = {"name": "mlp", "width": width, "depth": levels}
        if images:
            multipliers = (1, *(2,) * (levels - 1))
            net = {"name": "unet", "width": width, "multipliers": multipliers, "blocks": 2,
                   "attention": ()}  # fmt: skip
        sampling = {"method": "heun", "nfe": 39, "grid": "karras", "batch_size": 250}
        return {
            "data": {"name": self.name, "scaling": self.scaling.value, "flip": self.flip.value},
            "sde": {"name": "vp", "t_min": t_min},
            "net": net,
            "model": {"target": "F", "data_std": std, "time_input": "log_sigma"},
            "loss": {
                "weighting": "edm", "times": "lognormal", "t_min": t_min, "stratified": True,
                "log_sigma_mean": float(self.log_sigma_mean.value),
                "log_sigma_std": float(self.log_sigma_std.value),
            },
            "training": {
                "batch_size": int(self.batch_size.value),
                "batch_per_device": int(self.batch_per_device.value),
                "steps": int(self.steps.value),
                "lr": 1e-3, "warmup_steps": 100, "decay": 0.5, "ema_sigma_rel": 0.1,
            },
            "sampling": sampling,
            "seed": 0,
        }  # fmt: skip


@checked
def suggest(data: Data | Tensor | np.ndarray, seed: Seed = 0) -> Advice:
    """Settings for data, from the data alone.

    data: a set of `load_data`, or items (n, ...) as they are: uint8 images (n, C, H, W) or floats.
    At most 2000 items are looked at, at random by seed. Raises DataError for fewer than 10 items,
    values that are not finite, and data that do not vary.
    """
    n, spec, raw = _items(data, seed)
    x = spec.to_model(raw).double().flatten(1)
    check_varies(x.std(), DataError)
    dim = x.shape[1]
    std, far = float(x.std()), largest_distance(x)
    spread, spread_reason = smallest_spread(x, spec)
    sigma_min = spread * math.sqrt(TRUNCATION)
    sde = VPSDE(t_min=1e-9)
    log_snr = torch.tensor(-2 * math.log(sigma_min), dtype=torch.float64)
    t_min = max(float(sde.time_of_log_snr(log_snr)), 1e-7)
    end = terminal_kl(x, sde)
    snr = min(0.16, 0.16 * (3072 / dim) ** 0.18)
    flip, flip_reason = mirrored(raw) if spec.is_image else (False, "not images")
    images = len(spec.shape) == 3
    batch = 128 if images else 512
    width, levels, fits = _network(spec.shape, batch)
    return Advice(
        spec.name, spec.shape, n,
        Choice(_scaling(spec), "bounded images are put on [-1, 1]" if spec.is_image else
               "mean 0 and standard deviation 1, for which the VP process is made"),
        Choice(std, "standard deviation over all values, in the model's range"),
        Choice(far, "largest distance of two items: noise of this size hides where an item was "
               "(2006.09011); of VE and EDM processes"),
        Choice(sigma_min, f"{math.sqrt(TRUNCATION):.3f} of the smallest spread {spread:.3g} "
               f"({spread_reason}): at most {TRUNCATION / 2:.0e} nats a dimension are lost"),
        Choice(t_min, "where the VP process has this sigma/alpha"),
        Choice(end, f"nats between x_T and the prior of the VP process, {end / dim:.1e} a "
               "dimension"),
        Choice(math.log(std) - 0.5, "EDM's -1.2 is for a data_std of 0.5: log(data_std) - 0.5"),
        Choice(1.4, "wide enough for noise from 1/16 to 16 times the mean level"),
        Choice(snr, f"of Langevin correctors: 0.16 at 3072 dimensions, 0.075 at 196 608, by a "
               f"power law at {dim} (2011.13456)"),
        Choice(flip, flip_reason),
        Choice("unet" if images else "mlp", "images" if images else "vectors"),
        width, levels,
        Choice(batch, "items an update; more does not change what is learned"), fits,
        Choice(max(2000, min(200_000, 60 * n // batch + 1500)), "about 60 passes over the items, "
               "and 1500 updates"),
    )  # fmt: skip


def _network(shape: tuple[int, ...], batch: int) -> tuple[Choice, Choice, Choice]:
    """Width and levels of a network for items of a shape, and how many items a pass can take."""
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else machine_memory()
    machine = f"{'a GPU' if cuda else 'a CPU'} with {memory / 2**30:.0f} GiB"
    if len(shape) != 3:
        return (Choice(128, "of the MLP"), Choice(3, "its layers"),
                Choice(batch, f"all at once on {machine}"))  # fmt: skip
    width, levels, sides = 128 if cuda else 64, 1, shape[1:]
    while all(side % 2**levels == 0 and side >> levels >= SMALLEST for side in sides):
        levels += 1
    last = " x ".join(str(side >> (levels - 1)) for side in sides)
    item = 4 * ACTIVATIONS * width * math.prod(sides)
    fits = max(min(batch, 2 ** int(math.log2(max(memory / 2 / item, 1)))), 1)
    return (
        Choice(width, f"channels of the first level, for {machine}"),
        Choice(levels, f"resolutions, the last {last}: halves as long as they are whole"),
        Choice(fits, f"items a pass, some {fits * item / 2**30:.1f} GiB of activations; an update "
               "adds up the gradients of several"),
    )  # fmt: skip


def _scaling(spec: DataSpec) -> str:
    return "symmetric" if spec.is_image else "standard"


def _items(data: Any, seed: int) -> tuple[int, DataSpec, Tensor]:
    """How many there are, their spec in the scaling that is suggested, and some of them."""
    is_array = isinstance(data, Tensor | np.ndarray)
    if is_array and data.ndim == 0 or len(data) < FEWEST:
        count = 0 if is_array and data.ndim == 0 else len(data)
        raise DataError(f"suggest needs at least {FEWEST} items (got {count}).")
    if is_array:
        raw = real_tensor(data, "the data")
        raw = raw[:, None] if raw.ndim == 1 else raw
        check_finite(raw, "the data", DataError)
        raw = raw if raw.dtype == torch.uint8 else raw.float()
        spec = _spec_of(raw)
        data = ArrayData(raw, {}, spec)
    n = len(data)
    chosen = torch.randperm(n, generator=generator_of(seed))[:MOST].sort().values
    raw = torch.cat([data.raw_items(range(int(i), int(i) + 1)) for i in chosen])
    old = data.spec
    spec = make_spec(raw, old.name, old.low, old.high, old.levels,
                     _scaling(old), old.classes)  # fmt: skip
    return n, spec, raw


def _spec_of(raw: Tensor) -> DataSpec:
    if raw.dtype == torch.uint8 and raw.ndim == 4:
        return make_spec(raw, "data", 0.0, 255.0, 256)
    if raw.ndim == 4:
        return make_spec(raw, "data", float(raw.min()), float(raw.max()))
    return make_spec(raw, "data", scaling="standard")


def largest_distance(x: Tensor) -> float:
    """Of two of these items x (n, D)."""
    return max(float(torch.cdist(part, x).max()) for part in x.split(500))


def smallest_spread(x: Tensor, spec: DataSpec) -> tuple[float, str]:
    """The smallest standard deviation of the data in any direction, near any item, and its source.

    Principal components of the nearest neighbours of items; where values are discrete, nothing
    finer than a level is looked for.
    """
    level = 0.0
    if spec.levels and spec.low is not None and spec.high is not None:
        level = (spec.high - spec.low) / (spec.levels - 1) / spec.scale
    dim = x.shape[1]
    if dim > 64:
        if level:
            return level, "one level of the values"
        values = torch.linalg.eigvalsh(torch.cov(x.T)).clamp_min(0)
        kept = values[values > 1e-10 * values.max()]
        return float(kept.min().sqrt()), "smallest principal component"
    distinct = x.unique(dim=0)
    whole = torch.linalg.eigvalsh(torch.cov(x.T).reshape(dim, dim)).clamp_min(0)
    k = min(len(distinct) - 1, 4 * dim + 16)
    anchors = distinct[:: max(1, len(distinct) // 200)]
    near = torch.cdist(anchors, distinct).topk(k + 1, largest=False).indices
    local = distinct[near]  # (anchors, k + 1, D)
    local = local - local.mean(1, keepdim=True)
    # Of k draws in dim dimensions the smallest comes out too small by about 1 - sqrt(dim/k).
    few = max(1 - math.sqrt(dim / k), 0.1) if k > dim else 0.1
    least = torch.linalg.svdvals(local)[:, min(dim, k) - 1] / math.sqrt(k) / few
    found = min(float(least.quantile(0.1)), math.sqrt(float(whole[0])) or math.inf)
    if level > found or found <= 0:
        return max(level, 1e-3 * float(x.std())), "one level of the values"
    return found, f"principal components of {k} neighbours"


def terminal_kl(x: Tensor, sde: VPSDE) -> float:
    """KL( N(alpha m, alpha^2 C + sigma^2) || prior ) at t_max in nats, C by its eigenvalues."""
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    alpha, sigma, prior = float(sde.alpha(t)), float(sde.sigma(t)), sde.prior_std()
    centred = x - x.mean(0)
    values = torch.linalg.svdvals(centred).square() / (len(x) - 1)
    ratio = torch.full((x.shape[1],), sigma**2, dtype=torch.float64)
    ratio[: len(values)] += alpha**2 * values[: x.shape[1]]
    ratio /= prior**2
    shift = alpha**2 * float(x.mean(0).square().sum()) / prior**2
    return 0.5 * (float((ratio - 1 - ratio.log()).sum()) + shift)


def mirrored(raw: Tensor) -> tuple[bool, str]:
    """Whether images may be flipped: mirrored ones are as near to the others as images are."""
    half = len(raw) // 2
    x, others = raw[:half].float(), raw[half:].float().flatten(1)
    if half < 20:
        return False, "too few images to tell"
    usual = nearest(x.flatten(1), others).distances[:, 0]
    flipped = nearest(x.flip(-1).flatten(1), others).distances[:, 0]
    z, further = mann_whitney_z(flipped, usual), float(flipped.median() / usual.median())
    said = f"mirrored images are {further:.2f} times as far from the others (z = {z:.1f})"
    return z < 3, said
