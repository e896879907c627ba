"""What a data set is: shape, range, levels, classes, and the scaling to the model's range."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SCALINGS = ("symmetric", "unit", "standard", "none")


class DataError(ValueError):
    """Data that cannot be used; the message says what was found and what to do."""


@dataclass(frozen=True)
class DataSpec:
    """Facts about x_0 that travel with a model. The model sees (raw - shift) / scale.

    shape: of one item, (C, H, W) for images. low, high: bounds of raw values, None if unbounded.
    levels: number of discrete values between them (256 for 8-bit images), None if continuous.
    classes: names of the classes; () without labels. name: for people.
    """

    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None
    levels: int | None = None
    shift: float = 0.0
    scale: float = 1.0
    classes: tuple[str, ...] = ()
    name: str = "data"

    @property
    def is_image(self) -> bool:
        """Whether items are (C, H, W) with 1 to 4 channels and bounds."""
        return len(self.shape) == 3 and self.shape[0] <= 4 and self.low is not None

    def to_model(self, raw: Tensor) -> Tensor:
        """Raw values (B, *shape) in the model's range, float32."""
        return (raw.to(torch.float32) - self.shift) / self.scale

    def to_raw(self, x: Tensor) -> Tensor:
        """Values of the model in the data's own range, clamped to its bounds, like x."""
        raw = x * self.scale + self.shift
        return raw if self.low is None else raw.clamp(self.low, self.high)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Images of the model as uint8 on 0..255: scaled, rounded (not truncated), clamped."""
        raw = self.to_raw(x.to(torch.float32))
        unit = (raw - self.low) / (self.high - self.low)
        return (unit * 255).round().to(torch.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSpec:
        """The inverse of `to_dict`, also of what JSON made of it."""
        lists = {key: tuple(values[key]) for key in ("shape", "classes")}
        return cls(**{**values, **lists})


def scaling_of(kind: str, raw: Tensor, low: float | None, high: float | None) -> dict[str, float]:
    """shift and scale of a `DataSpec`: symmetric is [-1, 1], unit [0, 1], standard mean 0 std 1."""
    if kind not in SCALINGS:
        raise DataError(f"data.scaling {kind!r} is unknown; choose from {list(SCALINGS)}.")
    if kind == "none":
        return {"shift": 0.0, "scale": 1.0}
    if kind == "standard":
        values = raw.to(torch.float32)
        return {"shift": float(values.mean()), "scale": float(values.std())}
    if low is None or high is None:
        raise DataError(f"data.scaling={kind} needs bounded data. Set data.range=[low, high].")
    if kind == "unit":
        return {"shift": low, "scale": high - low}
    return {"shift": (low + high) / 2, "scale": (high - low) / 2}
