"""What all converters share: what a foreign file becomes, and the moving of tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.data import DataSpec
from score_sde.nets import UNet

State = dict[str, Tensor]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ConversionError(UserError):
    """A checkpoint that cannot be imported, or a run that cannot be exported; says which part."""


@dataclass
class Foreign:
    """A foreign checkpoint in our words.

    layout: what was found. net, sde, model: arguments of `UNet`, a process and `ScoreModel`, the
    first two with their names. averaged, trained: weights under our names. notes: what was
    assumed, and how to say otherwise.
    """

    layout: str
    net: dict[str, Any]
    sde: dict[str, Any]
    model: dict[str, Any]
    spec: DataSpec
    data_std: float
    averaged: State
    trained: State
    step: int = 0
    notes: list[str] = field(default_factory=list)


def image_spec(
    channels: int, size: tuple[int, int], unit: bool = False, classes: int = 0, name: str = "images"
) -> DataSpec:
    """8-bit images that the model sees in [-1, 1], or with ``unit`` in [0, 1]."""
    shift, scale = (0.0, 255.0) if unit else (127.5, 127.5)
    names = tuple(str(i) for i in range(classes))
    return DataSpec((channels, *size), 0, 255, 256, shift, scale, names, name)


def as_pair(size: Any) -> tuple[int, int]:
    """A side or (H, W) as (H, W)."""
    pair = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or any(not isinstance(side, int) or side < 1 for side in pair)
    ):
        raise ConversionError(f"size {size!r} must be a side in pixels, or (height, width).")
    return pair[0], pair[1]


def strip_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The state with the prefix taken off every name that has it."""
    return {key.removeprefix(prefix): value for key, value in state.items()}


class Transfer:
    """Tensors on their way from a peer's names to ours, for one `UNet`.

    Every method takes our name of a module and the peer's; `finish` returns our state, once
    nothing is missing, left over or of another shape.
    """

    def __init__(self, net: UNet, theirs: Mapping[str, Tensor], layout: str):
        self.net, self.theirs, self.layout = net, theirs, layout
        self.ours: State = {}
        self.used: set[str] = set()
        self.shares: dict[str, State] = {}

    def take(self, key: str) -> Tensor:
        """A tensor of theirs, in float32."""
        if key not in self.theirs:
            raise ConversionError(self._misfit(f"lacks {key}"))
        value = self.theirs[key]
        if not isinstance(value, Tensor) or value.dtype not in FLOATS:
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise ConversionError(f"{key} holds {kind}, not floating-point weights.")
        self.used.add(key)
        return value.detach().to("cpu", torch.float32)

    def copy(self, ours: str, theirs: str, leaves: Iterable[str] = ("weight", "bias")) -> None:
        """A layer with the same layout."""
        for leaf in leaves:
            self.ours[f"{ours}.{leaf}"] = self.take(f"{theirs}.{leaf}")

    def pixelwise(self, ours: str, theirs: str, transpose: bool = False) -> None:
        """A 1 x 1 convolution that they hold as a matrix or a convolution of any rank."""
        weight, bias = ("W", "b") if transpose else ("weight", "bias")
        matrix = self.take(f"{theirs}.{weight}").flatten(1)
        self.ours[f"{ours}.weight"] = (matrix.mT if transpose else matrix)[:, :, None, None]
        self.ours[f"{ours}.bias"] = self.take(f"{theirs}.{bias}")

    def share(self, ours: str, theirs: str) -> None:
        """A block's linear map of the embedding, a share of our one for all."""
        self.shares[ours] = {leaf: self.take(f"{theirs}.{leaf}") for leaf in ("weight", "bias")}

    def qkv(self, ours: str, three: list[State]) -> None:
        """Query, key and value, each with a matrix (C, C) and a bias (C,), as one layer."""
        self.ours[f"{ours}.weight"] = torch.cat([p["weight"] for p in three])[:, :, None, None]
        self.ours[f"{ours}.bias"] = torch.cat([p["bias"] for p in three])

    def finish(self, ignored: Iterable[str] = ()) -> State:
        """Our state of the network; ConversionError says what of theirs does not fit."""
        left = sorted(set(self.theirs) - self.used - set(ignored))
        if left:
            raise ConversionError(
                self._misfit(f"has {len(left)} tensors that nothing uses (such as {left[0]})")
            )
        order = [name for name, block in self.net.modulated() if block.modulation_channels]
        for leaf in ("weight", "bias"):
            self.ours[f"modulation.{leaf}"] = torch.cat([self.shares[n][leaf] for n in order])
        for name, value in self.net.state_dict().items():
            if self.ours[name].shape != value.shape:
                raise ConversionError(
                    f"this {self.layout} checkpoint holds {tuple(self.ours[name].shape)} where "
                    f"the network it describes has {tuple(value.shape)} ({name})."
                )
        return {name: self.ours[name].clone().contiguous() for name in self.net.state_dict()}

    def _misfit(self, what: str) -> str:
        return (
            f"this {self.layout} checkpoint {what}: it was cut short or edited, or it is of "
            "another architecture than its other tensors."
        )


def differences(said: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """ConversionError listing the fields where weights contradict their description."""
    wrong = [
        f"{key} ({said[key]} in the description, {value} in the weights)"
        for key, value in found.items()
        if key in said and _plain(said[key]) != _plain(value)
    ]
    if wrong:
        raise ConversionError(f"description and weights differ in {', '.join(wrong)}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def halves_swapped(columns: Tensor) -> Tensor:
    """A matrix for [cos, sin] features as one for [sin, cos]."""
    return torch.cat(columns.chunk(2, dim=1)[::-1], dim=1)
