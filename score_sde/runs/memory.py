"""Memory that is freed and soon wanted again."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters, from malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, instead of returning it to the system; whether it will.

    A training step on a CPU frees all its features and takes as much again. glibc gives large
    pieces back at once, and the kernel has to clear the pages anew. For programs rather than
    libraries, as it holds for everything in the process. It does nothing where the C library is
    another or the user has settings of his own (MALLOC_...).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(MMAP_THRESHOLD, 2**30))
