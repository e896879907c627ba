"""What does restoration cost beside the score, and beside the linear algebra that it needs?

    python benchmarks/restoration_cost.py --run fashion     # 64 draws of one measurement
    python benchmarks/restoration_cost.py                   # 64 dimensions, a score that is free

--run: the processor time of 64 draws at --nfe evaluations each, of a picture's lower half and of
means of 4 x 4, over that of as many plain evaluations of 64 states. Else: the processor time of
--draws draws around a score that costs nothing, over that of the products, factors, solutions and
random numbers alone, the same calls with the same tensors again; Gaussian data of 64 entries, 32
projections. Rounds of all in turn; the least of each.
"""

import argparse
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from score_sde import VPSDE, Gaussian, load, restore
from score_sde.nets import packed
from score_sde.restoration import Mask, Matrix, Pool

NEEDED = ("mm", "bmm", "addmm", "mv", "dot", "linalg_cholesky_ex", "linalg_solve_triangular",
          "triangular_solve", "cholesky_solve", "cholesky_inverse", "_linalg_eigh", "randn",
          "normal_", "linalg_eigh")  # fmt: skip


class Recorded(TorchDispatchMode):
    """Keeps the calls that linear algebra and random numbers are made of."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.split(".")[-1] in NEEDED:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def again(self):
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def times(works, rounds):
    """The least processor time of each of several functions, by rounds of all in turn."""
    took = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            took[name].append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in took.items()}


def free(x, t):
    return -x


def algebra(methods, nfe, n, rounds):
    g = torch.Generator().manual_seed(0)
    Q, A = (torch.randn(k, 64, generator=g, dtype=torch.float64) for k in (64, 32))
    data, sde, A = Gaussian(torch.zeros(64), Q @ Q.T / 64 + 0.01 * torch.eye(64)), VPSDE(), A / 8
    y = A @ data.sample(1, seed=0)[0].double()
    print(f"| {n} draws of 64 entries, {nfe} evaluations | s | needed | ratio |\n|---|---|---|---|")
    for method in methods:

        def work(method=method):
            restore(sde, free, y, Matrix(A), noise_std=0.1, gaussian=data, n=n, nfe=nfe,
                    seeds=range(n), method=method, dtype=torch.float64)  # fmt: skip

        with Recorded() as calls:
            work()
        took = times({"all": work, "needed": calls.again}, rounds)
        ratio = took["all"] / took["needed"]
        print(f"| {method} | {took['all']:.3f} | {took['needed']:.3f} | {ratio:.2f} |", flush=True)


def pictures(name, methods, nfe, n, rounds):
    run = load(name, device="cpu")
    score, spec = packed(run.score).bind(), run.data_spec
    seen = torch.zeros(spec.shape[1:], dtype=torch.bool)
    seen[: spec.shape[1] // 2] = True
    x0 = spec.to_model(run.data("test").raw_items(range(1)))
    x, t = torch.randn(n, *spec.shape), torch.tensor(0.5)

    def plain():
        with torch.no_grad():
            for _ in range(nfe):
                score(x, t)

    works = {"plain evaluations": plain}
    for task, operator in (("half", Mask(seen)), ("4x", Pool(4))):
        for method in methods:
            for what, chosen in (("", score), (", free score", free)):

                def work(operator=operator, method=method, score=chosen):
                    restore(run.sde, score, operator(x0)[0], operator, noise_std=0.05, nfe=nfe, n=n,
                            method=None if method == "auto" else method, gaussian=run.gaussian,
                            seeds=range(n))  # fmt: skip

                works[f"{method}, {task}{what}"] = work
    took = times(works, rounds)
    base = took["plain evaluations"]
    print(f"| {n} draws, {nfe} evaluations each | s | over plain |\n|---|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {seconds:.2f} | {seconds / base:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default=None)
    parser.add_argument("--methods", default=None)
    parser.add_argument("--nfe", type=int, default=60)
    parser.add_argument("--draws", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods = (given.methods or ("auto" if given.run else "particles,hybrid")).split(",")
    if given.run:
        pictures(given.run, methods, given.nfe, given.draws or 64, given.rounds)
    else:
        algebra(methods, given.nfe, given.draws or 512, given.rounds)


if __name__ == "__main__":
    main()
