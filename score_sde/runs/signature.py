"""Which configs this user wrote on this machine, so that the names in them may run code.

A config.json names classes by dotted paths, and loading a run imports and calls them. For a run
that was trained here these are its owner's own words; for a folder from elsewhere they are
somebody else's, and only this package's own classes are made of them unless the user says --trust.
To tell the two apart, a run's config is signed beside it with a key that only this user can read,
as Jupyter signs its notebooks: config.sig = HMAC-SHA256(key, config.json).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sys
from pathlib import Path

NAME = "config.sig"


def key_path() -> Path:
    """The user's key: in XDG_CONFIG_HOME, or where the platform keeps settings."""
    if folder := os.environ.get("XDG_CONFIG_HOME"):
        return Path(folder) / "score_sde" / "signing.key"
    if sys.platform == "win32":
        folder = os.environ.get("APPDATA") or os.path.expanduser("~")
    elif sys.platform == "darwin":
        folder = os.path.expanduser("~/Library/Application Support")
    else:
        folder = os.path.expanduser("~/.config")
    return Path(folder) / "score_sde" / "signing.key"


def _key(make: bool) -> bytes | None:
    """The key, made if it is not there; None if there is none that only this user can read."""
    path = key_path()
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                pass
            else:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(32))
        about = path.stat()
        if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o077):
            return None
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == 32 else None


def _of(key: bytes, config: Path) -> str:
    return hmac.new(key, config.read_bytes(), hashlib.sha256).hexdigest()


def sign(config: Path) -> None:
    """Sign a config.json of this user's own words. Without a place for a key nothing is signed."""
    if (key := _key(make=True)) is not None:
        (config.parent / NAME).write_text(_of(key, config) + "\n")


def is_signed(config: Path) -> bool:
    """Whether this user signed this config.json, as it is now, on this machine."""
    try:
        said = (config.parent / NAME).read_bytes()[:200].strip()
        key = _key(make=False)
        return key is not None and hmac.compare_digest(said, _of(key, config).encode())
    except OSError:
        return False
