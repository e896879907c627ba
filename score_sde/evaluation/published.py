"""Statistics in EDM2's .pkl files: {"fid": {mu, sigma}, "fd_dinov2": {mu, sigma}}, numpy arrays.

A pickle is a program. Of this one nothing is run but what puts an array of numbers together from
the bytes in the file: any other name is refused before it is looked up. Python's own unpickler is
used, whose memory grows with the file and not with the numbers in it.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.checks import UserError

OF_EXTRACTOR = {"fid": "inception", "fd_dinov2": "dinov2"}
"""Which of our features the statistics of a name are of, by the beginning of their names."""


class _Array:
    """Stands for numpy.ndarray, which could be called with any size."""


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _frombuffer(content: bytes, kind: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


ALLOWED: dict[str, Any] = {
    "_reconstruct": _reconstruct, "_frombuffer": _frombuffer, "ndarray": _Array,
    "dtype": np.dtype,
}  # fmt: skip


class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc]
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ALLOWED:
            return ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):  # the bytes of an array before protocol 3
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no statistics need")


def read_pickle(path: Path, extractor: str) -> tuple[np.ndarray, np.ndarray, str]:
    """mu (d,), sigma (d, d) and their name in the file, of the features in use; UserError else."""
    try:
        found = _Reader(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # whatever a damaged or a hostile file provokes
        raise UserError(f"{path} is not a file of statistics ({error}); it was not run.") from error
    named = found if isinstance(found, dict) else {}
    if {"mu", "sigma"} <= named.keys():
        named = {"fid": named}
    there = [name for name in named if name in OF_EXTRACTOR]
    name = next((n for n in there if extractor.startswith(OF_EXTRACTOR[n])), None)
    if name is None:
        features = ", ".join(OF_EXTRACTOR[n] for n in there) or "no features that are known here"
        raise UserError(
            f"{path} holds statistics of {features}; the features in use are {extractor}. Choose "
            "--features to match."
        )
    arrays = named[name]
    if not (isinstance(arrays, dict) and {"mu", "sigma"} <= arrays.keys()):
        raise UserError(f"{path}: {name} holds no mu and sigma.")
    mu, sigma = arrays["mu"], arrays["sigma"]
    if not all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in (mu, sigma)):
        raise UserError(f"{path}: mu and sigma of {name} are no arrays of floats.")
    return mu, sigma, name
