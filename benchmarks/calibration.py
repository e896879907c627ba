"""Is a calibrated grid better than the blind one, and does it say so rightly?

    python benchmarks/calibration.py --seed 1 --output calibration.json

On ten problems with an exact score (2 to 100 coordinates, widths up to 200:1, every process)
`calibrate` fits a grid of `adams` from 256 samples (`--pilot`), and both grids are run on other
noise, in float64, against 400 steps of order 5: 4096 samples in the plane, since the rms is often
that of one in some hundred, 512 in more dimensions. Both are told the data's std. Columns: endpoint
errors of the blind grid (rms over samples / median, in units of that std), those of the recipe over
them, the first with the standard error of its logarithm, the gain that the recipe says (the
geometric mean of both; 1 where it is the blind grid), and the evaluations per sample of the pilot
that it took.
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
from score_sde.sampling.calibration import gain_of

BUDGETS = (5, 8, 10, 15, 20, 50)


def errors(problem: Problem, x_T: Tensor, fine: Tensor, **settings) -> Tensor:
    """Endpoint errors (n,) of adams, in units of the data's std."""
    sde, score = problem.sde, problem.data.score(problem.sde)
    x = sample(sde, score, x_T=x_T, method="adams", denoise=False, **settings)
    unit = problem.data.std() * float(sde.alpha(torch.tensor(sde.t_min, dtype=F64)))
    return (x - fine).flatten(1).square().mean(1).sqrt() / unit


def means(each: Tensor) -> list[float]:
    """[rms, median]."""
    return [float(each.square().mean().sqrt()), float(each.median())]


def rows(problem: Problem, budgets: list[int], n: int, pilot: int) -> list[dict]:
    """What each budget gives on one problem."""
    sde, data = problem.sde, problem.data
    score, sd = data.score(sde), data.std()
    x_T = sde.prior_sample((n, *data.shape), torch.Generator().manual_seed(123)).double()
    common = {"x_T": x_T, "method": "adams", "denoise": False, "data_std": sd}
    fine = sample(sde, score, steps=400, order=4, **common)
    found = []
    for nfe in budgets:
        recipe: Recipe = calibrate(
            sde, score, (pilot, *data.shape), nfe, data_std=sd, denoise=False
        )
        blind = errors(problem, x_T, fine, nfe=nfe, data_std=sd)
        fitted = errors(problem, x_T, fine, grid=recipe)
        found.append(
            {"problem": problem.name, "process": type(sde).__name__, "nfe": nfe,
             "blind": means(blind), "says": recipe.gain, "evaluations": recipe.evaluations,
             "ratio": [a / b for a, b in zip(means(fitted), means(blind), strict=True)],
             "stderr": gain_of(fitted, blind)[1].rms}
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nfe", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--samples", type=int, help="to judge by")
    parser.add_argument("--pilot", type=int, default=256, help="samples that a calibration draws")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict] = []
    columns = "nfe      blind rms/med  ratio rms  +-   med   says  cost"
    print(f"{'problem':26s} {'process':10s} {columns}")
    for problem in problems(args.seed):
        n = args.samples or (4096 if problem.data.dim == 2 else 512)
        for row in rows(problem, args.nfe, n, args.pilot):
            table.append(row)
            (rms, median), (wide, middle) = row["ratio"], row["blind"]
            print(
                f"{row['problem']:26s} {row['process']:10s} {row['nfe']:3d}  "
                f"{wide:8.1e}/{middle:.1e}  {rms:9.2f} {row['stderr']:4.2f} {median:5.2f}  "
                f"{row['says']:5.2f}  {row['evaluations']:4.0f}",
                flush=True,
            )
    for nfe in args.nfe:
        mine = [row["ratio"] for row in table if row["nfe"] == nfe]
        geometric = [math.exp(sum(math.log(r[i]) for r in mine) / len(mine)) for i in (0, 1)]
        worst = [max(r[i] for r in mine) for i in (0, 1)]
        print(f"nfe {nfe:3d}: geometric mean {geometric[0]:.2f}/{geometric[1]:.2f}, worst "
              f"{worst[0]:.2f}/{worst[1]:.2f}")  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
