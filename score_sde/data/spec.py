"""What a data set is: shape, range, levels, classes, and the scaling to the model's range."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from score_sde.checks import Count, ItemShape, Positive, UserError, check_varies

Scaling = Literal["symmetric", "unit", "standard", "columns", "none"]


class DataError(UserError):
    """Data that cannot be used; the message says what was found and what to do."""


@dataclass(frozen=True)
class DataSpec:
    """Facts about x_0 that travel with a model. The model sees (raw - shift) / scale.

    shape: of one item, (C, H, W) for images. low, high: bounds of raw values, None if unbounded.
    levels: number of discrete values between them (256 for 8-bit images), None if continuous.
    classes: names of the classes; () without labels. name: for people. shifts, scales: instead of
    shift and scale, one for each column of a table or channel of a signal; () for most data.
    columns: the names of a table's columns.
    """

    shape: ItemShape
    low: float | None = None
    high: float | None = None
    levels: Count | None = None
    shift: float = 0.0
    scale: Positive = 1.0
    classes: tuple[str, ...] = ()
    name: str = "data"
    shifts: tuple[float, ...] = ()
    scales: tuple[Positive, ...] = ()
    columns: tuple[str, ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        for values in (self.shifts, self.scales, self.columns):
            if values and len(values) != self.shape[0]:
                raise DataError(
                    f"shifts, scales and names of columns are one for each of {self.shape[0]} (got "
                    f"{len(values)})."
                )
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise DataError(f"low ({self.low:g}) must be below high ({self.high:g}).")

    @property
    def is_image(self) -> bool:
        """Whether items are (C, H, W) with 1 to 4 channels and bounds."""
        return len(self.shape) == 3 and self.shape[0] <= 4 and self.low is not None

    def to_model(self, raw: Tensor) -> Tensor:
        """Raw values (B, *shape) in the model's range, float32."""
        shift, scale = self._affine(raw)
        return (raw.to(torch.float32) - shift) / scale

    def _affine(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale as they broadcast against x (B, *shape)."""
        if not self.scales:
            return self.shift, self.scale
        kind = x.dtype if x.is_floating_point() else torch.float32
        both = torch.tensor([self.shifts, self.scales], dtype=kind, device=x.device)
        shift, scale = both.view(2, -1, *(1,) * (len(self.shape) - 1))
        return shift, scale

    def to_raw(self, x: Tensor) -> Tensor:
        """Values of the model in the data's own range, clamped to its bounds, like x."""
        shift, scale = self._affine(x)
        raw = x * scale + shift
        return raw if self.low is None else raw.clamp(self.low, self.high)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Images of the model as uint8 on 0..255: scaled, rounded (not truncated), clamped."""
        if self.low is None or self.high is None:
            raise DataError(f"{self.name} has no bounds, so it has no pixels; use to_raw.")
        raw = self.to_raw(x.to(torch.float32))
        unit = (raw - self.low) / (self.high - self.low)
        return (unit * 255).round().to(torch.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSpec:
        """The inverse of `to_dict`, also of what JSON made of it."""
        keys = ("shape", "classes", "shifts", "scales", "columns")
        lists = {key: tuple(values[key]) for key in keys if key in values}
        return cls(**{**values, **lists})


def make_spec(
    raw: Tensor,
    name: str,
    low: float | None = None,
    high: float | None = None,
    levels: int | None = None,
    scaling: str = "symmetric",
    classes: tuple[str, ...] = (),
) -> DataSpec:
    """The spec of raw items (N, *shape), with the scaling to the model's range by name.

    symmetric is [-1, 1] and unit [0, 1], both of which leave unbounded data as they are; standard
    has mean 0 and standard deviation 1; columns gives these to each column of a table and each
    channel of a signal by itself, and is standard for data with bounds; none changes nothing.
    """
    shift, scale = 0.0, 1.0
    shifts: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    if scaling == "columns" and low is None:
        columns = raw.transpose(0, 1).flatten(1).double()
        stds = columns.std(1)
        check_varies(stds, DataError)
        shifts = tuple(columns.mean(1).tolist())
        scales = tuple(stds.where(stds > 0, torch.ones_like(stds)).tolist())
    elif scaling in ("standard", "columns"):
        values = raw.to(torch.float32)
        shift, scale = float(values.mean()), float(values.std())
        check_varies(scale, DataError)
    elif low is not None and high is not None and scaling != "none":
        shift = low if scaling == "unit" else (low + high) / 2
        scale = high - low if scaling == "unit" else (high - low) / 2
    shape = tuple(raw.shape[1:])
    return DataSpec(shape, low, high, levels, shift, scale, classes, name, shifts, scales)
