"""What evaluating costs beside torch-fidelity: CPU seconds and memory, on the same images.

    python benchmarks/evaluation.py --n 10000            (torch-fidelity, if it is installed)

Ours: all that `evaluate` says of n images of 28 x 28 against as many, features of the classifier of
garments counted in. Theirs: Frechet distance, KID, precision and recall by their own functions of
the same features, as arrays. Seconds are of the processor, so that other work does not count; each
part is in a process of its own, whose largest memory is given.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np
import torch

from score_sde import evaluate
from score_sde.data import load_data
from score_sde.evaluation.classifier import FashionFeatures
from score_sde.evaluation.features import extract

PARTS = ("features", "ours", "theirs")


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n images and n others, garments with a little noise where there are fewer."""
    raw = load_data("fashion_mnist").raw
    rows = torch.randint(len(raw), (2 * n,), generator=torch.Generator().manual_seed(0))
    noise = torch.randint(-8, 9, (2 * n, *raw.shape[1:]),
                          generator=torch.Generator().manual_seed(1))  # fmt: skip
    both = (raw[rows].int() + noise).clamp(0, 255).to(torch.uint8)
    return both[:n], both[n:]


def ours(n: int) -> str:
    """All measures of images."""
    return evaluate(*images(n)).table()


def features(n: int) -> str:
    """The features alone."""
    for part in images(n):
        extract(FashionFeatures(), part)
    return ""


def theirs(n: int) -> str:
    """torch-fidelity's numbers of the same features."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = (extract(FashionFeatures(), part) for part in images(n))
    said, size = dict(verbose=False), min(1000, n)
    a, b = (fid_features_to_statistics(part.float()) for part in (x, y))
    found = fid_statistics_to_metric(a, b, False)
    found |= kid_features_to_metric(x.float(), y.float(), kid_subsets=100, kid_subset_size=size,
                                    rng_seed=0, **said)  # fmt: skip
    found |= prc_features_to_metric(x.float(), y.float(), prc_neighborhood=3,
                                    prc_batch_size=10_000, **said)  # fmt: skip
    return ", ".join(f"{key} {float(np.asarray(value)):.5g}" for key, value in found.items())


def measured(name: str, n: int) -> tuple[float, float, float, str]:
    """CPU seconds, those of the clock, GB, and what was said."""
    torch.set_num_threads(1)
    images(10)
    started, clock = time.process_time(), time.perf_counter()
    said = {"ours": ours, "theirs": theirs, "features": features}[name](n)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return time.process_time() - started, time.perf_counter() - clock, used, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for _ in range(given.rounds):
        for name in given.parts:
            with context.Pool(1) as pool:
                try:
                    seconds, clock, memory, said = pool.apply(measured, (name, given.n))
                except ImportError as error:
                    print(f"{name}: {error}")
                    continue
            print(
                f"{name}: {seconds:.1f} CPU-s, {clock:.1f} s, {memory:.2f} GB\n{said}", flush=True
            )


if __name__ == "__main__":
    main()
