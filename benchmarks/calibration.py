"""Is a calibrated grid better than the blind one, and does it say so rightly?

    python benchmarks/calibration.py --seed 1 --output calibration.json

On ten problems with an exact score (2 to 100 coordinates, widths up to 200:1, every process)
`calibrate` fits a grid of `adams` from 256 samples (`--pilot`), and both grids are run on other
noise, in float64, against 600 steps of order 5. Both are told the data's std. Columns: endpoint
errors of the blind grid (rms over samples / median, in units of that std), those of the recipe over
them, the gain that the recipe says (the geometric mean of both; 1 where it is the blind grid), and
the evaluations per sample of the pilot that it took.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from exact_problems import F64, Problem, problems
from torch import Tensor

from score_sde import calibrate, sample
from score_sde.sampling import Recipe

BUDGETS = (5, 8, 10, 15, 20, 50)


def errors(problem: Problem, x_T: Tensor, fine: Tensor, **settings) -> tuple[float, float]:
    """(rms, median) endpoint error of adams, in units of the data's std."""
    sde, score = problem.sde, problem.data.score(problem.sde)
    x = sample(sde, score, x_T=x_T, method="adams", denoise=False, **settings)
    unit = problem.data.std() * float(sde.alpha(torch.tensor(sde.t_min, dtype=F64)))
    each = (x - fine).flatten(1).square().mean(1).sqrt() / unit
    return float(each.square().mean().sqrt()), float(each.median())


def rows(problem: Problem, budgets: list[int], n: int, pilot: int) -> list[dict]:
    """What each budget gives on one problem."""
    sde, data = problem.sde, problem.data
    score, sd = data.score(sde), data.std()
    x_T = sde.prior_sample((n, *data.shape), torch.Generator().manual_seed(123)).double()
    common = {"x_T": x_T, "method": "adams", "denoise": False, "data_std": sd}
    fine = sample(sde, score, steps=600, order=4, **common)
    found = []
    for nfe in budgets:
        recipe: Recipe = calibrate(
            sde, score, (pilot, *data.shape), nfe, data_std=sd, denoise=False
        )
        blind = errors(problem, x_T, fine, nfe=nfe, data_std=sd)
        fitted = errors(problem, x_T, fine, grid=recipe)
        found.append(
            {"problem": problem.name, "process": type(sde).__name__, "nfe": nfe, "blind": blind,
             "ratio": [a / b for a, b in zip(fitted, blind, strict=True)], "says": recipe.gain,
             "evaluations": recipe.evaluations}
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nfe", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--pilot", type=int, default=256, help="samples that a calibration draws")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict] = []
    print(f"{'problem':26s} {'process':10s} nfe      blind rms/med  ratio rms  med   says  cost")
    for problem in problems(args.seed):
        n = args.samples if problem.data.dim < 50 else 128
        for row in rows(problem, args.nfe, n, args.pilot):
            table.append(row)
            rms, median = row["ratio"]
            print(
                f"{row['problem']:26s} {row['process']:10s} {row['nfe']:3d}  "
                f"{row['blind'][0]:8.1e}/{row['blind'][1]:.1e}  {rms:9.2f} {median:5.2f}  "
                f"{row['says']:5.2f}  {row['evaluations']:4.0f}",
                flush=True,
            )
    for nfe in args.nfe:
        mine = [row["ratio"] for row in table if row["nfe"] == nfe]
        means = [math.exp(sum(math.log(r[i]) for r in mine) / len(mine)) for i in (0, 1)]
        worst = [max(r[i] for r in mine) for i in (0, 1)]
        print(f"nfe {nfe:3d}: geometric mean {means[0]:.2f}/{means[1]:.2f}, worst "
              f"{worst[0]:.2f}/{worst[1]:.2f}")  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
