"""Files and folders that are whole or not there, whoever else writes or is killed.

A file is written beside its place, as .<name>.<machine, process, number>.partial, and renamed. What
a killed process has left there goes when the same path is written again: that of this machine as
soon as its process is gone, that of another one when nothing was written into it for `LONG`, by the
clock of the file system.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LONG = 24 * 3600.0
"""Seconds without a write after which a file of another machine is nobody's any more."""
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})(?P<pid>[0-9a-f]{8})\w{8}\.partial")


def is_alive(pid: int, started: str | None = None) -> bool:
    """Whether a process of this machine runs, which has ``started`` then (see `start_of`)."""
    if os.name == "nt":  # there, os.kill(pid, 0) is Ctrl-C
        return True
    if pid <= 0:  # to os.kill a group of processes, not one
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    now = start_of(pid)
    return started is None or now is None or now == started


def start_of(pid: int) -> str | None:
    """When a process of this machine has started, in its own clock; None if it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def beside(path: Path) -> Path:
    """Where ``path`` is written before it is renamed."""
    return path.with_name(
        f".{path.name}.{_machine()}{os.getpid():08x}{secrets.token_hex(4)}.partial"
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file, which takes the place of ``path`` when it is whole, and else goes.

    Folders are made as they are missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        yield partial
        os.replace(partial, path)
        _drop_leftovers(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """As `whole_file`, open for writing."""
    with whole_file(path) as partial, partial.open("xb") as file:
        yield file


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of ``folder``, empty or not there, when it is whole."""
    partial = beside(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        _drop_leftovers(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _drop_leftovers(path: Path) -> None:
    """Remove what others have begun to write of this path and will not end."""
    now = path.stat().st_mtime  # it is new
    for old in path.parent.glob(f".{_literal(path.name)}.*.partial"):
        writer = PARTIAL.fullmatch(old.name)
        if writer is None or writer["name"] != path.name or old.is_symlink():
            continue
        if writer["machine"] == _machine():
            left = not is_alive(int(writer["pid"], 16))
        else:
            left = now - _last_written(old) > LONG
        if left and old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        elif left:
            old.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """A name as a pattern of glob that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _last_written(path: Path) -> float:
    """When a file, or anything in a folder, was written last; now if it is going."""
    try:
        return max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    except OSError:
        return float("inf")
