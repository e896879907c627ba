"""Endpoint errors of `adams`, blind and calibrated, beside the best published solver.

    python benchmarks/peers.py --seed 23 --thorough

On ten problems with an exact score (see `exact_problems`) every method solves the probability flow
from the same noise, in float64, in at most so many evaluations and without a final denoise; the
reference is 400 steps of order 5. The published solvers are this package's own implementations
(DDIM, DPM-Solver and ++ of orders 2 to 4, UniPC, DEIS, LMS, iPNDM, Heun, on log-SNR, Karras' and
uniform grids), where orders are exact and first steps repeated, so better than published if
anything. For each budget: the errors (rms over samples, and median, in units of the data's std) of
the single solver and grid whose geometric mean over the problems is least, and the ratios of the
geometric means of ours to that; for rms and median the best one is chosen apart.

`calibrate` has a pilot of --pilot samples and is told the data's std, as `adams` is.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from exact_problems import F64, Problem, problems
from torch import Tensor

from score_sde import calibrate, sample

BUDGETS = (5, 8, 10, 15, 20, 50)
ORDERS: dict[str, tuple[int, ...]] = {
    "dpm_solver": (2, 3, 4), "dpmpp_2m": (2,), "dpmpp_3m": (3, 4), "deis": (2, 3, 4),
    "lms": (2, 3, 4), "ipndm": (2, 3, 4), "unipc": (1, 2, 3),
}  # fmt: skip
GRIDS = ("logsnr", "karras", "uniform")
Errors = tuple[float, float]


def published() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and settings of the solvers that others have published."""
    for grid in GRIDS:
        for method in ("ddim", "heun"):
            yield f"{method}/{grid}", {"method": method, "grid": grid}
        for method, orders in ORDERS.items():
            for order in orders:
                setting = {"method": method, "grid": grid, "order": order}
                yield f"{method}-{order}/{grid}", setting
        for variant in ("bh1", "bh2"):
            setting = {"method": "unipc", "grid": grid, "variant": variant}
            yield f"unipc-{variant}/{grid}", setting


def errors(problem: Problem, x_T: Tensor, fine: Tensor, **setting: Any) -> Errors:
    """(rms, median) of the samples' endpoint errors; infinite for what is not finite."""
    sde, data = problem.sde, problem.data
    x = sample(sde, data.score(sde), x_T=x_T, denoise=False, **setting)
    unit = data.std() * float(sde.alpha(torch.tensor(sde.t_min, dtype=F64)))
    each = (x - fine).flatten(1).square().mean(1).sqrt() / unit
    if not bool(torch.isfinite(each).all()):
        return math.inf, math.inf
    return float(each.square().mean().sqrt()), float(each.median())


def solved(problem: Problem, budgets: list[int], n: int, pilot: int, thorough: bool) -> dict:
    """{(budget, name): errors} of all methods on one problem."""
    sde, data = problem.sde, problem.data
    score, std = data.score(sde), data.std()
    x_T = sde.prior_sample((n, *data.shape), torch.Generator().manual_seed(123)).double()
    ours: dict[str, Any] = {"method": "adams", "data_std": std}
    fine = sample(sde, score, x_T=x_T, steps=400, order=4, denoise=False, **ours)
    found = {}
    for nfe in budgets:
        for name, setting in published():
            steps = nfe // 2 if setting["method"] == "heun" else nfe
            found[nfe, name] = errors(problem, x_T, fine, steps=steps, **setting)
        found[nfe, "blind"] = errors(problem, x_T, fine, nfe=nfe, **ours)
        for name in ("calibrated", "thorough")[: 1 + thorough]:
            grid = calibrate(
                sde, score, (pilot, *data.shape), nfe, data_std=std, denoise=False,
                thorough=name == "thorough",
            )  # fmt: skip
            found[nfe, name] = errors(problem, x_T, fine, method="adams", grid=grid)
        line = "".join(
            f"  {name} {found[nfe, name][0]:.1e}/{found[nfe, name][1]:.1e}"
            for name in ("blind", "calibrated", "thorough")[: 2 + thorough]
        )
        print(f"{problem.name:26s} {nfe:3d}{line}", flush=True)
    return found


def geometric(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def report(tables: list[dict], budgets: list[int], names: list[str]) -> None:
    """One line a budget: the best single solver, and what ours have of its error."""
    for nfe in budgets:
        line = f"{nfe:3d}"
        for which, word in enumerate(("rms", "median")):
            means = {
                name: geometric([table[nfe, name][which] for table in tables])
                for name in [name for name, _ in published()] + names
            }
            best = min((name for name, _ in published()), key=means.__getitem__)
            ratios = " ".join(f"{name} {means[name] / means[best]:.2f}" for name in names)
            line += f" | {word} {means[best]:.1e} ({best}): {ratios}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=23, help="of the problems")
    parser.add_argument("--nfe", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--samples", type=int, default=512, help="to judge by; in the plane 2048")
    parser.add_argument("--pilot", type=int, default=256, help="samples that a calibration draws")
    parser.add_argument("--thorough", action="store_true", help="that calibration as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tables = [
        solved(
            problem, args.nfe, args.samples * (4 if problem.data.dim == 2 else 1), args.pilot,
            args.thorough,
        )
        for problem in problems(args.seed)
    ]  # fmt: skip
    report(tables, args.nfe, ["blind", "calibrated", "thorough"][: 2 + args.thorough])


if __name__ == "__main__":
    main()
