"""How many evaluations one after the other does `sample_parallel` take, and does it give the same?

    python benchmarks/parallel_in_time.py

On eight problems with an exact score (2 to 64 coordinates), 24 samples each, adams in
20, 50 and 100 steps, tolerance 1e-3. Columns: depth (and its share of the sequential evaluations),
evaluations of each sample, and how far the worst sample is from that of `sample`, in units of the
data's std..
"""

import argparse

import torch
from exact_problems import clusters, ring, stretched

from score_sde import VESDE, VPSDE, CosineSDE, FlowSDE, SubVPSDE, sample
from score_sde.sampling import parallel, sample_parallel

PROBLEMS = {
    "ring8 2-D": (VPSDE(), ring(8, 0.04, 0)),
    "ring9 2-D": (FlowSDE(), ring(9, 0.04, 7)),
    "narrow 2-D 60:1": (VPSDE(), clusters(2, 4, 60, 1)),
    "clusters 5-D": (CosineSDE(), clusters(5, 7, 8, 6)),
    "clusters 10-D": (VESDE(), clusters(10, 5, 20, 3)),
    "clusters 24-D": (SubVPSDE(), clusters(24, 6, 30, 2)),
    "Gaussian 32-D 200:1": (VPSDE(), stretched(32, 200)),
    "clusters 64-D": (VPSDE(), clusters(64, 8, 10, 4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 50, 100])
    parser.add_argument("--plain", action="store_true", help="without secants: Picard's iteration")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.plain:
        parallel.Answer.at = lambda self, x: self.value
    print(f"{'problem':20s}" + "".join(f" | {n:3d} steps: depth  evals    off" for n in args.steps))
    for name, (sde, data) in PROBLEMS.items():
        line, score = f"{name:20s}", data.score(sde)
        x_T = sde.prior_sample((24, *data.shape), torch.Generator().manual_seed(1)).double()
        for steps in args.steps:
            common = {"x_T": x_T, "steps": steps, "data_std": data.std()}
            want = sample(sde, score, method="adams", **common)
            found = sample_parallel(sde, score, tolerance=1e-3, **common)
            off = (found.x - want).flatten(1).square().mean(1).sqrt().max() / data.std()
            share = found.depth / found.sequential
            line += f" | {found.depth:7d} ({share:.2f})  {found.nfe:5d} {float(off):6.0e}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
