"""Signals that ask a run to stop: it ends its step, saves, and exits with a known code."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A run that saved and stopped because a signal asked for it.

    exit_code is 128 + the signal's number, as shells have it: 130 for SIGINT (Ctrl-C), 143 for
    SIGTERM (what clusters send).
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopSignals:
    """While in use, SIGINT and SIGTERM are noted in ``number`` instead of ending the process.

    A second SIGINT interrupts at once if ``impatient``; a launcher of several processes sends each
    signal twice.
    """

    def __init__(self, impatient: bool = True) -> None:
        self.number, self.impatient = 0, impatient
        self._owner, self._before = os.getpid(), dict[int, Any]()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked process: its parent decides
            return
        if self.number and number == signal.SIGINT and self.impatient:
            raise KeyboardInterrupt
        self.number = number
