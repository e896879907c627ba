"""Who is working in a folder: a file that names the process and lives as long as it does.

A lock of this machine is stale when its process is gone: its number is free, or belongs to another
process, which has started at another time. A lock of another machine has a heartbeat: it is stale
when its file is not touched while one watches.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_sde.checks import UserError
from score_sde.writing import is_alive, start_of

HEARTBEAT = 10.0  # seconds between touches
WATCH = 35.0  # seconds without one after which a lock of another machine is stale


class LockedError(UserError):
    """Somebody else works here; the message says who."""


@dataclass(frozen=True)
class Lock:
    """A lock file. `held` takes it, `is_mine` tells whether this process has it."""

    path: Path

    @property
    def is_mine(self) -> bool:
        """Whether this process holds it, and the file is still there."""
        found = self._read()
        return found is not None and (found["pid"], found["host"]) == (os.getpid(), _host())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it; LockedError says who does, if somebody does."""
        self._take()
        ended = threading.Event()
        pulse = threading.Thread(target=self._touch, args=(ended,), name="lock", daemon=True)
        pulse.start()
        try:
            yield
        finally:
            ended.set()
            pulse.join()
            if self.is_mine:
                self.path.unlink(missing_ok=True)

    def _touch(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            with suppress(OSError):
                if self.is_mine:
                    os.utime(self.path)

    def _read(self) -> dict[str, Any] | None:
        """Who holds it; None for nobody, or for a file that says nothing."""
        try:
            found = json.loads(self.path.read_text())
            return {"pid": int(found["pid"]), "host": str(found["host"]), **found}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _take(self) -> None:
        me = {"pid": os.getpid(), "host": _host(), "process_started": start_of(os.getpid()),
              "since": time.strftime("%Y-%m-%d %H:%M:%S")}  # fmt: skip
        mine = self.path.with_name(f".{self.path.name}.{_host()}.{os.getpid()}")
        mine.write_text(json.dumps(me) + "\n")
        try:
            while True:
                try:
                    return self._put(mine)
                except FileExistsError:
                    self._drop_if_stale()
        finally:
            mine.unlink(missing_ok=True)

    def _put(self, mine: Path) -> None:
        """The file in its place, whole; FileExistsError if there is one."""
        try:
            os.link(mine, self.path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with self.path.open("x") as file:
                file.write(mine.read_text())

    def _drop_if_stale(self) -> None:
        """Take a lock that nobody holds out of the way; LockedError if somebody does."""
        if self.path.is_dir():
            raise LockedError(f"holds a folder {self.path.name}, which is no lock: move it away.")
        holder = self._read()
        if holder is not None:
            said = (
                f"is being trained by process {holder['pid']} on {holder['host']}, since "
                f"{holder.get('since')}."
            )
            if holder["host"] == _host():
                if is_alive(holder["pid"], holder.get("process_started")):
                    raise LockedError(said)
            elif not self._is_silent():
                raise LockedError(said)
            print(f"{self.path}: process {holder['pid']} on {holder['host']} is gone; going on")
        aside = self.path.with_name(f".{self.path.name}.stale.{os.getpid()}")
        try:
            self.path.rename(aside)  # of two that come here at once, one succeeds
        except FileNotFoundError:
            return
        aside.unlink(missing_ok=True)

    def _is_silent(self) -> bool:
        """Watch a lock of another machine for its heartbeat."""
        print(f"{self.path} is of another machine; watching it for {WATCH:.0f} s", flush=True)
        before, until = self._touched(), time.monotonic() + WATCH
        while time.monotonic() < until:
            time.sleep(0.5)
            if self._touched() != before:
                return self._touched() is None
        return True

    def _touched(self) -> float | None:
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None


def _host() -> str:
    return socket.gethostname()
