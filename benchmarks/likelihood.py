"""Likelihoods: how exact, for how many evaluations, and how much faster than the usual way.

    python benchmarks/likelihood.py            errors against exact densities (the tests' data)
    python benchmarks/likelihood.py --speed runs/vp_fashion     seconds, beside the usual way

The usual way is score_sde_pytorch's: the probability flow in t by an adaptive solver, one call of
the network for the drift and another, with a backward pass, for the divergence. Both solve to the
same tolerance, with the same probe. `--speed` prints the ratio of times, and mean errors in nats to
400 evaluations. Adaptive steps follow the rounding of a network in bfloat16 as if it were the flow.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from score_sde import VESDE, VPSDE, Gaussian, SubVPSDE, build, load, log_likelihood
from score_sde.noise import SeededNoise
from score_sde.ode.divergence import score_and_traces

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
F64 = torch.float64
SONG = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}


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
    from known_data import DATA, at_t_min

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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="fp32", help="of the network")
    arguments = parser.parse_args()
    if arguments.speed:
        speed(arguments.speed, arguments.repeats, arguments.batch, arguments.precision)
    else:
        errors()
