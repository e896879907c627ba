"""Types by which arguments and settings are checked: numbers of a range, and the like."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import AfterValidator, Field, Strict
from torch import Tensor

from score_sde.checks.errors import UserError, require, shown

T = TypeVar("T")

Positive = Annotated[float, Field(gt=0, lt=1e100, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Extended = Annotated[float, Field(allow_inf_nan=True)]
"""A number that may be infinite or NaN."""
Count = Annotated[int, Field(ge=1, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**20)]
"""A count that memory or time is taken for: of channels, layers, steps of a table."""
Depth = Annotated[int, Field(ge=1, le=4096)]
"""A count of modules, each of which is an object of Python."""
Few = Annotated[int, Field(ge=0, le=2**20)]
"""As `Size`, or none."""
Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]
Several = Annotated[Count, Field(ge=2)]
Index = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Row = Annotated[tuple[T, ...], Strict(False)]
"""Row[Count]: a tuple of any length, or a list that becomes one."""
Options = Mapping[str, Any]


def _known(device: torch.device | str) -> torch.device | str:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError("a device: cpu, cuda, cuda:0 or mps") from error
    count = {"cuda": torch.cuda.device_count(), "mps": torch.mps.device_count(), "meta": 0}.get(
        found.type, 1
    )
    if count <= (found.index or 0):
        raise ValueError(f"a device that is here; of {found.type} there are {count}")
    return device


Device = Annotated[torch.device | str, AfterValidator(_known)]
"""A device of torch, or its name."""
MOST_VALUES = 10**9


def _of_an_item(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MOST_VALUES:
        raise ValueError("that of an item of data")
    return shape


ItemShape = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_of_an_item)
]
"""The shape of one item of data, of at most a thousand million values."""
BatchShape = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2), Strict(False)]
"""(B, ...), of a batch of states."""


def plain(value: Any) -> Any:
    """NumPy's scalars as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def real_tensor(values: Any, what: str) -> Tensor:
    """Numbers of a tensor, an array of any order of bytes, or lists, as a tensor.

    UserError for complex numbers and anything else. what: a plural, for the error.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "uif":
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    try:
        found = torch.as_tensor(values)
        if not isinstance(values, Tensor | np.ndarray) and found.is_floating_point():
            found = torch.as_tensor(values, dtype=torch.float64)  # as Python's numbers are
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{what} must be numbers (got {shown(values)}).") from None
    require(not found.is_complex(), f"{what} must be real numbers (got {found.dtype}).")
    return found


def whole_seeds(seeds: Iterable[Any]) -> list[int]:
    """Seeds as integers from 0 to 2^64 - 1; UserError for anything else."""
    require(
        isinstance(seeds, Iterable), f"seeds are one whole number a sample (got {shown(seeds)})."
    )
    found = []
    for seed in seeds.reshape(-1) if isinstance(seeds, Tensor) else seeds:
        try:
            value = operator.index(plain(seed))
        except TypeError:
            value = -1
        if not 0 <= value < 2**64 or isinstance(seed, bool):
            raise UserError(f"seeds must be whole numbers from 0 to 2^64 - 1 (got {shown(seed)}).")
        found.append(value)
    return found


def check_finite(x: Tensor, what: str, error: type[UserError] = UserError) -> None:
    """``error`` for numbers of which one is NaN or infinite."""
    bad = int((~torch.isfinite(x)).sum()) if x.is_floating_point() else 0
    if bad:
        raise error(f"{what}: {bad} of {x.numel()} values are not finite.")


def check_count(
    given: int, n: int, what: str, error: type[UserError] = UserError, of: str = "samples"
) -> None:
    """``error`` unless there is one for each. what: a plural, as ``of``, which there are n of."""
    if given != n:
        raise error(f"{given} {what} do not fit {n} {of}: give one for each.")


def check_varies(spread: float | Tensor, error: type[UserError] = UserError) -> None:
    """``error`` for data that are the same everywhere: nothing can be learned of them."""
    if not bool(torch.as_tensor(spread).gt(0).any()):
        raise error("Data variance is 0: every value is the same.")


def check_alone(given: Mapping[str, Any], error: type[UserError] = UserError) -> None:
    """``error`` for more than one of what excludes one another; None is not given."""
    both = [name for name, value in given.items() if value is not None and value is not False]
    if len(both) > 1:
        raise error(f"{' and '.join(both)} exclude each other: give one of them, not both.")
