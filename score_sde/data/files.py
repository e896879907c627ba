"""Where pictures lie: a folder or a zip, as names relative to it and one bounded read of each.

Nothing that a file says of itself is believed: what is not a regular file is not opened, a folder
is entered once however many links lead to it, and a zip's member is read up to the size that its
compressed bytes can make plausible.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from tqdm.auto import tqdm

from score_sde.checks import check_member, check_members, reading
from score_sde.data.spec import DataError

LARGEST_FILE = 1 << 28  # bytes of a member of a zip, which is unpacked whole


class Files(Protocol):
    """Files by name. notes: what a user should hear of those that are left out."""

    @property
    def root(self) -> Path: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def open(self, name: str) -> BinaryIO:
        """The file, for reading; OSError or DataError if it cannot or should not be read."""
        ...

    def size_of(self, name: str) -> int:
        """Bytes on the disk; 0 if that cannot be found out."""
        ...


def printable(name: str) -> str:
    """A file's name as text that can be printed, whatever bytes it is made of."""
    try:
        readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # halves of a character that are no bytes of a name
        readable = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in readable)


def listed(names: list[str], most: int = 100) -> str:
    """Names with commas between them; of more than ``most``, the first and how many more."""
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def list_files(root: Path) -> Files:
    """All files below a folder or in a zip, sorted by name; DataError if it cannot be read."""
    if root.is_dir():
        return _list_folder(root)
    if root.suffix.lower() != ".zip" and not zipfile.is_zipfile(root):
        raise DataError(
            f"{root} is one file, and neither a .zip, .tar, .npy, .npz, .csv, .tsv nor .parquet: "
            "give the folder that holds the pictures."
        )
    return _list_zip(root)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def without_hidden(names: list[str], notes: list[str]) -> tuple[str, ...]:
    """The sorted names that are not hidden; a note names the folders of those that are."""
    hidden = [name for name in names if _is_hidden(name)]
    folders = {str(PurePosixPath(name).parent) for name in hidden}
    if hidden:
        where = listed(sorted("this folder" if f == "." else f for f in folders), 10)
        notes.append(f"{len(hidden)} hidden files skipped, in {where}")
    return tuple(sorted(name for name in names if not _is_hidden(name)))


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder and of all below it."""

    root: Path
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def open(self, name: str) -> BinaryIO:
        """The file; opening a pipe or a device would wait for ever, so OSError."""
        path = self.root / name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        return path.open("rb")

    def size_of(self, name: str) -> int:
        """Bytes on the disk."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return 0


def _list_folder(root: Path) -> FolderFiles:
    """Every real folder is read once: links to folders are followed after all that lie here."""
    names: list[str] = []
    notes: list[str] = []

    def said(error: OSError) -> None:
        notes.append(f"{printable(str(error.filename))}: {error.strerror}; skipped")

    above = {_identity(folder) for folder in root.resolve().parents}
    entered: set[tuple[int, int]] = set()
    waiting = [root]
    with tqdm(desc=f"looking through {printable(str(root))}", unit=" files", delay=3.0) as bar:
        while waiting:
            links: list[Path] = []
            for start in waiting:
                if start != root and _identity(start) in entered | above:
                    name = printable(start.relative_to(root).as_posix())
                    notes.append(f"{name} links to a folder that is read already or that holds it")
                    continue
                for folder, below, files in os.walk(start, onerror=said):
                    entered.add(_identity(Path(folder)))
                    links += [Path(folder, d) for d in below if Path(folder, d).is_symlink()]
                    names += [Path(folder, file).relative_to(root).as_posix() for file in files]
                    bar.update(len(files))
            waiting = sorted(links)
    kept = without_hidden(names, notes)
    return FolderFiles(root, kept, tuple(notes))


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError:  # a link that leads nowhere, a folder that may not be seen
        return -1, hash(folder)
    return found.st_dev, found.st_ino


@functools.lru_cache(maxsize=4)
def _open_zip(root: Path, process: int) -> zipfile.ZipFile:
    """One open archive a process: loader workers must not share a handle."""
    return zipfile.ZipFile(root)


@dataclass(frozen=True)
class ZipFiles:
    """The members of a zip."""

    root: Path
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def open(self, name: str) -> BinaryIO:
        """The member; DataError if it claims to be more than its bytes can plausibly hold."""
        archive = _open_zip(self.root, os.getpid())
        member = archive.getinfo(name)
        check_member(member)
        if member.file_size > LARGEST_FILE:
            raise DataError(f"it unpacks to {member.file_size} bytes, more than pictures have")
        with archive.open(member) as handle:
            return io.BytesIO(handle.read(member.file_size))

    def size_of(self, name: str) -> int:
        """Bytes in the zip."""
        return _open_zip(self.root, os.getpid()).getinfo(name).compress_size


def _list_zip(root: Path) -> ZipFiles:
    notes: list[str] = []
    with reading(root, "a readable zip file", DataError), zipfile.ZipFile(root) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        check_members(archive, root.stat().st_size)
    return ZipFiles(root, without_hidden([m.filename for m in members], notes), tuple(notes))
