"""References as files: moments that are published or saved, and features that are kept.

A file of ours holds mu (d,), sigma (d, d), n and facts (JSON: extractor, checksum, data). Read are
also EDM's `mu, sigma`, clean-fid's, score_sde's `pool_3` (n, 2048), of FID's Inception, and EDM2's
.pkl files (`published`).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import UserError, cache_dir, check_finite, read_arrays, real_tensor, require
from score_sde.evaluation.measures import Featured, Statistics
from score_sde.evaluation.moments import Moments
from score_sde.evaluation.published import read_pickle
from score_sde.writing import replacing


def save_statistics(path: Path, reference: Featured, facts: Mapping[str, Any]) -> None:
    """The moments of a reference, with what they are of."""
    moments = Moments.of(reference.features)
    said = dict(reference.facts) | {"data_checksum": reference.checksum} | dict(facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, mu=moments.mean.numpy(), sigma=moments.covariance.numpy(), n=len(reference),
           facts=json.dumps(said))  # fmt: skip


def holds_statistics(path: Path) -> bool:
    """Whether a file is one of statistics, by its name (.pkl) or by the names of its arrays."""
    if path.suffix == ".pkl":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return {"mu", "sigma"} <= names or "pool_3" in names


def load_statistics(path: Path, extractor: str = "inception") -> Statistics:
    """Moments from a file, see the module; UserError for one that holds none.

    extractor: the features in use, of which a .pkl file may hold several.
    """
    if path.suffix == ".pkl":
        mu, sigma, name = read_pickle(path, extractor)
        return _of_moments(path, mu, sigma, None, {"data": f"{path.name} ({name})"})
    arrays = read_arrays(path, "a readable .npz file of statistics")
    facts: dict[str, Any] = {"data": path.name}
    if "pool_3" in arrays:
        features = real_tensor(arrays["pool_3"], f"the features in {path}")
        require(features.ndim > 1 and features.numel() > 0, f"{path}: pool_3 holds no features.")
        features = features.flatten(1)
        return Statistics(Moments.of(features), len(features), facts)
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(
            f"{path} holds {', '.join(arrays)}; statistics are mu and sigma, or pool_3. Make them "
            "with --mode evaluate --data DATA --save FILE."
        )
    try:
        facts |= dict(json.loads(str(arrays.get("facts", "{}"))))
        n = int(arrays["n"]) if "n" in arrays else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: n must be a number and facts a dictionary ({error}).") from error
    return _of_moments(path, arrays["mu"], arrays["sigma"], n, facts)


def _of_moments(
    path: Path, mu: np.ndarray, sigma: np.ndarray, n: int | None, facts: Mapping[str, Any]
) -> Statistics:
    mean, covariance = (real_tensor(a, f"the moments in {path}").double() for a in (mu, sigma))
    for moments in (mean, covariance):
        check_finite(moments, f"the moments in {path}")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: sigma is {tuple(covariance.shape)}, mu {tuple(mean.shape)}.")
    uneven = float((covariance - covariance.T).abs().max()) > 1e-4 * float(covariance.abs().max())
    if uneven or float(covariance.diagonal().min()) < 0:
        raise UserError(f"{path}: sigma is no covariance, which is symmetric and above 0.")
    return Statistics(Moments.of_gaussian(n or 2, mean, covariance), n, facts)


def kept(key: str, make: Callable[[], Tensor], writer: bool = True) -> Tensor:
    """A tensor by what it depends on, made once and kept in the cache folder as float32."""
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = cache_dir() / "features" / f"{name}.npz"
    if path.is_file():
        with suppress(UserError, KeyError):  # a damaged file is made again
            found = read_arrays(path, "features")
            if str(found["key"]) == key:
                return torch.from_numpy(found["features"]).double()
    made = make().float()
    if writer:
        _write(path, features=made.numpy(), key=key)
    return made.double()


def _write(path: Path, **arrays: Any) -> None:
    with replacing(path) as file:
        np.savez(file, **arrays)
