"""What no machine could hold ends in a sentence before it is allocated.

    with memory_for("net"):
        net = UNet(...)                 # tensors made within count; UserError before the one
                                        # with which all of them would exceed the memory
    check_size(8 * values, "samples")

A count may be right for its type and yet ask for terabytes. Kernels grant memory that they do not
have and kill whoever uses it, so the question is asked here, of the machine's whole memory.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from score_sde.checks.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full)
CONTROL_GROUPS = (  # what a container may take, in bytes or "max": of version 2 and of version 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@functools.cache
def machine_memory() -> int:
    """Bytes of memory that this machine, or the container or limit around us, has."""
    found = [2**63]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = [path.read_text().strip() for path in CONTROL_GROUPS if path.is_file()]
    found += [int(text) for text in limits if text.isdigit()]
    try:
        import resource

        found.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    except ImportError:  # Windows has no such limits
        pass
    return min(size for size in found if size > 0)


def check_size(size: int, what: str) -> None:
    """UserError for so many bytes if this machine has fewer. what: the plural that takes them."""
    if size > machine_memory():
        raise UserError(
            f"{what} would take {size / 2**30:,.1f} GiB; this machine has "
            f"{machine_memory() / 2**30:,.1f} GiB. Ask for fewer or smaller ones."
        )


class memory_for(TorchFunctionMode):  # noqa: N801 (reads as a statement)
    """Within it, UserError before tensors that are made take more than ``most`` bytes in all.

    what: whose they are. most: the machine's memory if None. why: of another number, in words.
    Tensors on the meta device take none. As a decorator it is put around each call of a function.
    """

    def __init__(self, what: str, most: int | None = None, why: str = "this machine has less"):
        super().__init__()
        self.what, self.most, self.why, self.size = what, most, why, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS:
            device = kwargs.get("device") or torch.get_default_device()
            if torch.device(device).type != "meta":
                self._count(args, kwargs)
        return func(*args, **kwargs)

    def _count(self, args: Any, kwargs: dict[str, Any]) -> None:
        shape = args[0] if args and not isinstance(args[0], int) else args
        shape = shape or kwargs.get("size", ())
        itemsize = (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
        self.size += itemsize * math.prod(map(int, shape))
        most = machine_memory() if self.most is None else self.most
        if self.size > most:
            raise UserError(
                f"{self.what}: the weights of a network of these settings take more than "
                f"{self.size / 2**30:,.2f} GiB, but {self.why}. Take less of width, depth, blocks, "
                "classes or channels."
            )

    def __call__(self, function: F) -> F:
        """The function, within."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with memory_for(self.what, self.most, self.why):
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]
