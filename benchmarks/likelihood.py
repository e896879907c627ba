"""Likelihoods: how exact, for how many evaluations, and how much faster than the usual way.

    python benchmarks/likelihood.py            errors against exact densities (the tests' data)
    python benchmarks/likelihood.py --cover    how often intervals hold the truth, default settings
    python benchmarks/likelihood.py --few      errors of 48 evaluations from a t_min chosen well
    python benchmarks/likelihood.py --speed runs/vp_fashion     seconds, beside the usual way

The usual way is score_sde_pytorch's: the probability flow in t by an adaptive solver, one call of
the network for the drift and another, with a backward pass, for the divergence. Both solve to the
same tolerance, with the same probe. `--speed` prints the ratio of times, and mean errors in nats to
400 evaluations. Adaptive steps follow the rounding of a network in bfloat16 as if it were the flow.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from exact_problems import clusters, digits, ring
from torch import Tensor
from torchdiffeq import odeint

from score_sde import (
    Gaussian,
    GaussianMixture,
    build,
    load,
    log_likelihood,
)
from score_sde.noise import SeededNoise
from score_sde.ode.divergence import score_and_traces

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from known_data import DATA, F64, SONG, at_t_min  # noqa: E402


def plain(sde, score, x: Tensor, probe: Tensor | None, tolerance: float) -> tuple[Tensor, int]:
    """log p (B,) under the flow in t and the process's prior, and calls of the score."""
    calls, dim = 0, x[0].numel()

    def field(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        y = state[:, :-1].reshape(x.shape).to(x.dtype)
        with torch.no_grad():
            drift = sde.reverse(score, 0.0).drift(y, t)
        traces = score_and_traces(score, y, t, probe).traces[0]
        calls += 2
        rate = dim * sde.derivatives(t)[0] / sde.alpha(t)
        divergence = rate - 0.5 * sde.diffusion(t) ** 2 * traces.to(state)
        return torch.cat([drift.flatten(1).to(state), divergence[:, None]], 1)

    ends = torch.tensor([sde.t_min, sde.t_max], dtype=F64)
    start = (sde.alpha(ends[0]) * x).flatten(1).to(F64)
    start = torch.cat([start, torch.zeros(len(x), 1, dtype=F64)], 1)
    found = odeint(
        field, start, ends, rtol=tolerance, atol=tolerance, method="dopri5",
        options={"step_t": ends},
    )[-1]  # fmt: skip
    latent = found[:, :-1].reshape(x.shape)
    to_data = dim * float(sde.alpha(ends[0]).log())  # log p of x_{t_min} / alpha
    return sde.prior_log_prob(latent) + found[:, -1] + to_data, calls


def errors() -> None:
    """Mean |error| in nats, exact divergence, against the exact density at t_min."""
    for name, data in DATA.items():
        x = data.sample(32, 1)
        for process, sde in SONG.items():
            exact, line = at_t_min(data, sde, x), f"{name:9s} {process:6s}"
            frame = Gaussian(data.mean(), data.covariance())
            ways = (
                ("adams 48", {"nfe": 48}),
                ("adams 64", {}),
                ("adams 64, with its Gaussian", {"gaussian": frame}),
                ("dopri5 1e-5", {"solver": "dopri5"}),
            )
            for label, options in ways:
                result = log_likelihood(
                    sde, data.score(sde), x, divergence="exact", truncation="none", **options
                )
                error = float((result.nats - exact).abs().mean())
                line += f" | {label}: {error:.1e} ({result.nfe})"
            print(line, flush=True)


def cover(points: int, divergence: str) -> None:
    """How often the 95 % intervals of default settings hold the exact log p of the data.

    Batches of 64 points, so that eight samples tell the errors of all: each line is of points in
    all, with the mean and the largest error, the mean half width, and the share that is covered;
    then the share of each set over the processes.
    """
    held: list[float] = []
    for name, data in covered().items():
        of_set = len(held)
        for process, sde in SONG.items():
            rows, inside, wide = [], [], []
            for seed in range(-(-points // 64)):
                x = data.sample(64, 100 + seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = log_likelihood(sde, data.score(sde), x, divergence=divergence)
                truth = data.log_prob(x)
                low, high = found.interval(0.95)
                rows.append((found.nats - truth).abs())
                inside.append((low <= truth) & (truth <= high))
                wide.append((high - low) / 2)
            error, width = torch.cat(rows), torch.cat(wide)
            held.append(float(torch.cat(inside).double().mean()))
            print(
                f"{name:20s} {process:6s} error {float(error.mean()):.1e} (max "
                f"{float(error.max()):.0e}), half width {float(width.mean()):.1e}, "
                f"{float(width.mean() / error.mean()):.1f} times it; covers {held[-1]:.1%}",
                flush=True,
            )
        print(f"{name:20s} covers {statistics.mean(held[of_set:]):.1%}")
    print(f"all: covers {sum(held) / len(held):.1%}, least {min(held):.1%}, most {max(held):.1%}")


def few(points: int) -> None:
    """Mean |error| in nats against the data's exact density, few evaluations, a scalar std alone.

    Solved from t_min of the levels sigma/alpha in the head. What is below t_min is corrected
    exactly where one component matters (see `truncation`), and what need not be integrated takes no
    evaluations: the larger t_min, the better, up to where components meet.
    """
    low_rank = clusters_of_rank(64, 16, 6, 0.007)
    gaussian = Gaussian(torch.zeros(24), torch.logspace(0, -2, 24, dtype=F64).square())
    sets = {"ring": DATA["ring"], "grid25": DATA["grid25"], "Gaussian .01": gaussian}
    sets |= {"digits": digits(), "clusters": DATA["clusters"], "low rank .007": low_rank}
    levels = (0.0105, 0.03, 0.1)
    for name, data in sets.items():
        for process, sde in SONG.items():
            x, line = data.sample(points, 1), f"{name:14s} {process:6s}"
            for nfe in (48, 128) if data is low_rank else (48,):
                for level in levels:
                    log_snr = torch.tensor(-2 * math.log(level), dtype=F64)
                    found = log_likelihood(
                        sde, data.score(sde), x, nfe=nfe, t_min=float(sde.time_of_log_snr(log_snr)),
                        data_std=data.std(), check=0, divergence="exact",
                    )  # fmt: skip
                    error = float((found.nats - data.log_prob(x)).abs().mean())
                    line += f" | {level:g} ({found.nfe}): {error:.1e}"
            print(line, flush=True)


def clusters_of_rank(dim: int, modes: int, rank: int, least: float) -> GaussianMixture:
    """Components that are wide in a few directions and ``least`` in all others."""
    g = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(modes, dim, generator=g, dtype=F64)
    factors = 0.3 * torch.randn(modes, dim, rank, generator=g, dtype=F64) / rank**0.5
    return GaussianMixture(
        0.3 + torch.rand(modes, generator=g, dtype=F64),
        means,
        factors @ factors.mT + least**2 * torch.eye(dim, dtype=F64),
    )


def covered() -> dict[str, GaussianMixture]:
    """Six sets with a known density; the smallest spread of two is 0.01."""
    return {
        "ring8, 2-D": ring(8, 0.04, 0),
        "narrow, 2-D": clusters(2, 4, 60, 1),
        "clusters, 5-D": clusters(5, 7, 8, 6),
        "clusters, 24-D": clusters(24, 6, 30, 2),
        "Gaussian, 24-D, .01": Gaussian(
            torch.zeros(24), torch.logspace(0, -2, 24, dtype=F64).square()
        ),
        "pair, 2-D, .01": GaussianMixture(
            [0.5, 0.5], [[-0.3, 0.0], [0.3, 0.1]], [[0.01**2, 0.09], [0.04, 0.01**2]]
        ),
    }


def speed(workdir: str, repeats: int, batch: int, precision: str) -> None:
    """Seconds of both ways on a run's model and data, taking turns."""
    run = load(workdir)
    run.score.precision = precision
    x = run.data_spec.to_model(build.build_data(run.config, "test").raw_items(range(batch)))
    seeds = range(batch)
    probe = SeededNoise(seeds, x.shape[1:], x.dtype).draw().sign()[None]
    setting: dict[str, Any] = {"divergence": "hutchinson", "probes": 1, "prior": "sde"}
    setting |= {"truncation": "none", "data_std": run.data_std, "seeds": seeds}
    ways: dict[str, dict[str, Any]] = {
        "adams 64": {"nfe": 64},
        "dopri5 1e-5": {"solver": "dopri5"},
    }
    exact = log_likelihood(run.sde, run.score, x, nfe=400, **setting).nats
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        start = time.perf_counter()
        nats, calls = plain(run.sde, run.score, x, probe, 1e-5)
        usual = time.perf_counter() - start
        error = float((nats - exact).abs().mean())
        print(f"usual: {calls} calls, {usual:.1f} s, error {error:.1g} nats", flush=True)
        for name, options in ways.items():
            start = time.perf_counter()
            result = log_likelihood(run.sde, run.score, x, **setting, **options)
            ratios[name].append(usual / (time.perf_counter() - start))
            error = float((result.nats - exact).abs().mean())
            print(
                f"  {name}: {result.nfe} calls, {ratios[name][-1]:.2f} times as fast, "
                f"error {error:.1g} nats",
                flush=True,
            )
    for name, found in ratios.items():
        print(f"{name}: min {min(found):.2f}, median {statistics.median(found):.2f} times as fast")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", metavar="RUN", help="directory of a trained run")
    parser.add_argument("--cover", action="store_true", help="of the intervals")
    parser.add_argument("--few", action="store_true", help="evaluations")
    parser.add_argument("--divergence", default="auto", help="of --cover: hutchinson, for instance")
    parser.add_argument("--points", type=int, help="of each set and process; 256, or 32 of few")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="fp32", help="of the network")
    arguments = parser.parse_args()
    if arguments.cover:
        torch.set_num_threads(1)
        cover(arguments.points or 256, arguments.divergence)
    elif arguments.few:
        torch.set_num_threads(1)
        few(arguments.points or 32)
    elif arguments.speed:
        speed(arguments.speed, arguments.repeats, arguments.batch, arguments.precision)
    else:
        errors()
