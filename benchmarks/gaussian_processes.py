"""How near do runs of signals and of volumes come to a law that is known?

    python benchmarks/gaussian_processes.py                       # 5 000 signals of length 128
    python benchmarks/gaussian_processes.py --volumes             # 2 000 volumes of 16 x 16 x 16
    python benchmarks/gaussian_processes.py --steps 800           # updates, not minutes

Items are draws of a stationary Gaussian process, kernel exp(-d^2 / 2 l^2), put into an .npy file
and trained on by the config arrays:signals or arrays:volumes alone. Judged is the covariance of as
many samples as there are items: the relative error in the Frobenius norm, and the largest error of
the covariance at a distance along the last axis, averaged over places, as a share of the variance.
The same is printed of the items themselves and of as many fresh draws: no model of these items can
be expected to be nearer.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from score_sde import load, train
from score_sde.runs.run import Run

LENGTH = {"signals": 6.0, "volumes": 2.0}
SHAPE = {"signals": (128,), "volumes": (16, 16, 16)}
ITEMS = {"signals": 5000, "volumes": 2000}


def factors(kind: str) -> list[np.ndarray]:
    """The covariance along each axis: the kernel is a product."""
    made = []
    for n in SHAPE[kind]:
        d = np.arange(n)[:, None] - np.arange(n)[None]
        made.append(np.exp(-(d**2) / (2 * LENGTH[kind] ** 2)) + 1e-6 * np.eye(n))
    return made


def draws(kind: str, n: int, seed: int) -> np.ndarray:
    """(n, 1, *shape) exact draws."""
    x = np.random.default_rng(seed).standard_normal((n, *SHAPE[kind]))
    for axis, covariance in enumerate(factors(kind), start=1):
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ np.linalg.cholesky(covariance).T, -1, axis)
    return x[:, None].astype(np.float32)


def errors(kind: str, x: np.ndarray) -> tuple[float, float]:
    """Of the covariance of items along the last axis: relative Frobenius, largest by distance."""
    truth = factors(kind)[-1]
    rows = x.reshape(-1, truth.shape[0]).astype(np.float64)  # the other axes have variance 1
    found = rows.T @ rows / len(rows)
    by_distance = [np.diagonal(found - truth, k).mean() for k in range(len(truth) // 2)]
    norm = np.linalg.norm
    return norm(found - truth) / norm(truth), float(np.abs(by_distance).max() / truth[0, 0])


def trained(kind: str, folder: Path, steps: int | None) -> Run:
    """A run of the config alone, on a file of draws."""
    np.save(folder / "items.npy", draws(kind, ITEMS[kind], 0))
    changes = {"data.name": str(folder / "items.npy"), "training.log_every": 100}
    if steps is not None:
        changes |= {"training.steps": steps, "training.minutes": 0.0}
    return train(f"arrays:{kind}", folder / "run", **changes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--volumes", action="store_true")
    parser.add_argument("--steps", type=int, default=None, help="updates; five minutes if absent")
    parser.add_argument("--run", help="one that this program left, in place of a training")
    args = parser.parse_args()
    kind = "volumes" if args.volumes else "signals"
    with tempfile.TemporaryDirectory() as folder:
        run = load(args.run) if args.run else trained(kind, Path(folder), args.steps)
        samples = run.sample(ITEMS[kind]).x
    print(f"{kind}, {run.step} updates; error of the covariance: Frobenius, by distance")
    for name, x in [
        ("samples", torch.as_tensor(samples).numpy()),
        ("items", draws(kind, ITEMS[kind], 0)),
        ("fresh draws", draws(kind, ITEMS[kind], 1)),
    ]:
        print(f"{name:12s}", *(f"{100 * e:5.1f} %" for e in errors(kind, x)))


if __name__ == "__main__":
    main()
