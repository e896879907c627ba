"""How exact is every sampler, and how much time does it take around a free network?

    python benchmarks/samplers.py --output accuracy.json              # orders, errors, exact W2
    python benchmarks/samplers.py --overhead --output overhead.json   # microseconds a step

Accuracy is `score_sde.verify` on Gaussian data (see there): endpoint errors of the deterministic
methods at 10, 20 and 50 evaluations, the order over the finest steps, and W2 of the law of the
result (data of mean 0, no Monte Carlo noise) at 20, 50 and 100. Each method runs on its own default
grid unless --grid says otherwise, and without the final denoise.

Overhead is CPU time of the process, in float32 on one thread, with a score that is one tensor made
beforehand: what is left is the sampler's own work. The methods take turns, and each figure is the
median of --repeats runs of --steps steps. Peers (diffusers, azula) are measured when installed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde import EDMSDE, SDE, VESDE, VPSDE, FlowSDE, SubVPSDE, sample
from score_sde.diagnosis.verify import VerifyReport, VerifyRow, verify
from score_sde.sampling import SAMPLERS, make_sampler

PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "flow": FlowSDE(),
}
ERROR_NFE, W2_NFE = (10, 20, 50), (20, 50, 100)
ORDER_STEPS = (64, 128, 256)
SHAPES = ((512, 2), (1, 3, 32, 32))


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if abs(value) < 1e3 else f"{value:.0e}"


def at_nfe(report: VerifyReport, evaluations: int, nfe: int) -> VerifyRow | None:
    """The row of as many steps as the budget allows; the only row of an adaptive method."""
    steps = nfe // evaluations if evaluations else report.rows[0].steps
    return next((row for row in report.rows if row.steps == steps), None)


def accuracy(processes: list[str], methods: list[str], grid: str | None, mc: int) -> list[dict]:
    """Print the matrix, one line a process and method; the reports as plain JSON."""
    header = ["process", "method", "claims", "order", "weak", "ok"]
    header += [f"err@{n}" for n in ERROR_NFE] + [f"W2@{n}" for n in W2_NFE]
    header += ["mean@50", "law", "s"]
    widths = [7, 16, 6, 6, 6, 4] + [8] * 6 + [8, 5, 5]
    print(" ".join(map(str.rjust, header, widths)), flush=True)
    results = []
    for process in processes:
        for method in methods:
            evaluations = make_sampler(method).evaluations
            budgets = {n // max(evaluations, 1) for n in ERROR_NFE + W2_NFE}
            steps = sorted(budgets.union(ORDER_STEPS) - {0})
            started = time.perf_counter()
            try:
                report = verify(PROCESSES[process], method, steps=steps, grid=grid, monte_carlo=mc)
            except (RuntimeError, ValueError) as error:  # one failure must not hide the others
                print(f"{process:>7} {method:>16} {type(error).__name__}: {error}", flush=True)
                results.append({"process": process, "method": method, "error": str(error)})
                continue
            ok = {True: "yes", False: "NO", None: "-"}[report.passed]
            cells = [process, method, cell(report.claimed_order), cell(report.observed_order)]
            cells += [cell(report.weak_order), ok]
            rows = [at_nfe(report, evaluations, n) for n in ERROR_NFE]
            cells += [cell(row.error_rms if row else None) for row in rows]
            rows = [at_nfe(report, evaluations, n) for n in W2_NFE]
            cells += [cell(row.w2 if row else None) for row in rows]
            cells += [cell(rows[1].mean_bias if rows[1] else None)]
            cells += ["exact" if report.law.startswith("prop") else "MC"]
            cells += [f"{time.perf_counter() - started:.1f}"]
            print(" ".join(map(str.rjust, cells, widths)), flush=True)
            results.append({"name": process, **report.to_dict()})
    return results


def ours(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], Any]]:
    """A run of each of our samplers with a fixed number of steps."""
    sde, value, seeds = VPSDE(), -torch.randn(shape), range(shape[0])

    def score(x: Tensor, t: Tensor) -> Tensor:
        return value

    def runner(method: str) -> Callable[[], Any]:
        options = {"data_std": 0.5} if hasattr(make_sampler(method), "data_std") else {}
        return lambda: sample(
            sde, score, shape, method=method, steps=steps, seeds=seeds, denoise=False, **options
        )

    fixed = [name for name in SAMPLERS if make_sampler(name).evaluations]
    return {f"score_sde {name}": runner(name) for name in fixed}


def of_diffusers(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], Any]]:
    """DDPM, DDIM and DPM-Solver++(2M), in the loop of their pipelines."""
    diffusers, value = import_module("diffusers"), torch.randn(shape)

    def runner(name: str) -> Callable[[], Any]:
        scheduler = getattr(diffusers, name)(num_train_timesteps=1000)

        def run() -> Tensor:
            scheduler.set_timesteps(steps)
            x = torch.randn(shape)
            for t in scheduler.timesteps:
                x = scheduler.step(value, t, x).prev_sample
            return x

        return run

    names = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")
    return {f"diffusers {name.removesuffix('Scheduler')}": runner(name) for name in names}


def of_azula(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], Any]]:
    """The DDPM and DDIM samplers around a denoiser that is one tensor."""
    samplers, denoise = import_module("azula.sample"), import_module("azula.denoise")
    posterior = denoise.DiracPosterior(torch.randn(shape))

    class Free(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = import_module("azula.noise").VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return posterior

    def runner(name: str) -> Callable[[], Any]:
        sampler = getattr(samplers, name)(Free(), steps=steps, silent=True)
        return lambda: sampler(sampler.init(shape))

    return {f"azula {name}": runner(name) for name in ("DDPMSampler", "DDIMSampler")}


@torch.no_grad()
def overhead(steps: int, repeats: int) -> list[dict]:
    """Print CPU microseconds per step and per evaluation of the score."""
    torch.set_num_threads(1)
    results = []
    for shape in SHAPES:
        runs = ours(shape, steps)
        for peer in (of_diffusers, of_azula):
            try:
                runs |= peer(shape, steps)
            except ImportError as error:
                print(f"{peer.__name__.removeprefix('of_')} is not measured: {error}")
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(repeats + 1):  # the first round warms up
            for name, run in runs.items():
                started = time.process_time()
                run()
                if repeat:
                    seconds[name].append(time.process_time() - started)
        print(f"\nshape {shape}, {steps} steps, median of {repeats}; CPU microseconds")
        print(f"{'':36} {'a step':>8} {'an evaluation':>14} {'spread':>8}")
        for name, values in seconds.items():
            mine, _, method = name.partition(" ")
            evaluations = make_sampler(method).evaluations if mine == "score_sde" else 1
            micro = 1e6 * statistics.median(values) / steps
            spread = (max(values) - min(values)) / statistics.median(values)
            print(f"{name:36} {micro:8.1f} {micro / evaluations:14.1f} {spread:8.0%}", flush=True)
            row = {"shape": list(shape), "name": name, "steps": steps, "us_per_step": micro}
            results.append(row | {"us_per_evaluation": micro / evaluations, "spread": spread})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--overhead", action="store_true", help="time instead of accuracy")
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=PROCESSES)
    parser.add_argument("--methods", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--grid", help="one grid for every method, by name")
    parser.add_argument("--monte_carlo", type=int, default=2048, help="samples; 0 leaves it out")
    parser.add_argument("--steps", type=int, default=200, help="of an overhead run")
    parser.add_argument("--repeats", type=int, default=7, help="overhead runs of each method")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    args = parser.parse_args()
    if args.overhead:
        results = overhead(args.steps, args.repeats)
    else:
        results = accuracy(args.processes, args.methods, args.grid, args.monte_carlo)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1, allow_nan=False))
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
