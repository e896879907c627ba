"""Files written while training goes on: a copy is taken at once, a thread writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from score_sde import distributed
from score_sde.training.sharding import take_part, whole


def copy_to_host(value: Any, previous: Any = None) -> Any:
    """Tensors in nested dicts and lists copied to the CPU, into ``previous`` where they fit.

    Sharded ones are put together, one at a time (`sharding.take_part` is for the other processes).
    Reused memory makes the copy cheap: pages of new memory cost more than the copying.
    """
    if isinstance(value, Tensor):
        value = whole(value)
        fits = (
            isinstance(previous, Tensor)
            and (previous.shape, previous.dtype) == (value.shape, value.dtype)
            and (value.is_cuda or previous.stride() == value.stride())
        )
        host = previous if fits else torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return host.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        old = previous if isinstance(previous, dict) else {}
        return {key: copy_to_host(item, old.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        before = previous if isinstance(previous, list) else []
        padded = [*before, *[None] * (len(value) - len(before))]
        return [copy_to_host(a, b) for a, b in zip(value, padded, strict=False)]
    return value


class BackgroundWriter:
    """One write at a time, in a thread; its failure is raised by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._buffers: dict[str, Any] = {}

    def submit(self, kind: str, write: Callable[[Any], object], value: Any) -> None:
        """Copy ``value`` and call write(copy) in the background, after the write before it.

        All processes call it, and the one that writes does; sharded tensors are written whole.
        kind names what is written: its memory is used again for the next of this kind.
        """
        if not distributed.is_writer():
            return take_part(value)
        self.wait()
        copied = copy_to_host(value, self._buffers.get(kind))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._buffers[kind] = copied
        self.run(lambda: write(copied))

    def run(self, write: Callable[[], object]) -> None:
        """Call it in the background, on this process, after the write before it."""
        self.wait()

        def work() -> None:
            try:
                write()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what a finished write has failed with."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when everything is on the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
