"""Does `diagnose` name what is wrong with runs that nobody tuned it on?

    python benchmarks/diagnosis.py --folder /tmp/broken --seeds 1 2 3
    python benchmarks/diagnosis.py --folder /tmp/broken --seeds 1 2 3 --images

Each fault is put into a run of its own, whose data, process, target, network and size of the fault
are drawn by the seed; so are sound runs. Printed is what `diagnose` says of each, and at the end
how many faults were named first, how many at all, and how many sound runs were accused. Seed 0 is
what the checks were written with; the others are for figures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path

import torch
from broken_runs import make

from score_sde import diagnose
from score_sde.checks import trusting

ANY_EMA = {"EMA never updated", "EMA lags"}
OTHER = {"loaded otherwise than trained", "data not as in training"}
# What a fault may be called: where two names are both true, either counts.
EXPECTED: dict[str, set[str]] = {
    "average of the start": ANY_EMA,
    "average too long": ANY_EMA,
    "values not scaled": {"wrong data range"},
    "values tiny": {"wrong data range"},
    "values off centre": {"wrong data range"},
    "deaf to t": {"ignored t"},
    "read as another target": {"wrong prediction type"},
    "read at other times": {"wrong noise labels"},
    "read with another process": {"wrong noise labels", "sigma_max too small"},
    "sigma_max too small": {"sigma_max too small"},
    "beta_max too small": {"sigma_max too small"},
    "learning rate too high": {"learning rate too high"},
    "few updates": {"undertrained"},
    "few items": {"overfit"},
    "few steps": {"bad sampler settings"},
    "corrector too strong": {"bad sampler settings"},
    "t_min too large": {"t_min too large"},
    "one noise level": {"noise levels not trained"},
    "not finite": {"weights not finite"},
    "data_std wrong": {"wrong data_std"},
    "target scaled": {"output scaled"},
    "labels shuffled": {"labels ignored"},
    "labels exchanged": {"labels exchanged"},
    "items turned around": OTHER,
    "dropout left on": {"output is random"},
    "learning rate too low": {"undertrained"},
    "values cut off": {"values cut off"},
    "small noise neglected": {"noise levels neglected", "noise levels not trained"},
    "rate a hundred times": {"learning rate too high"},
    "last layer left out": {"output is constant"},
    "network not trained": {"undertrained"},
    "score negated": {"output scaled", "wrong prediction type"},
    "beta doubled": {"wrong noise labels"},
    "F read as eps": {"wrong prediction type"},
    "data on 0 to 1": {"data not as in training", "wrong data range"},
    "scaled twice": {"data not as in training", "wrong data range"},
    "coordinates mixed": OTHER,
    "other data": OTHER,
    "few items, none held out": {"overfit"},
    "tanh at the end": {"output bounded"},
    "read with a process of another kind": {"wrong process"},
}
NOT_OF_IMAGES = {
    "values not scaled", "values tiny", "values off centre", "deaf to t", "target scaled",
    "labels shuffled", "labels exchanged", "read with another process", "data_std wrong",
    "dropout left on", "values cut off", "small noise neglected", "last layer left out",
    "network not trained", "beta doubled", "score negated", "other data",
    "few items, none held out", "tanh at the end", "read with a process of another kind",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--sound", type=int, default=10, help="sound runs a seed")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="faults whose names hold one of these"
    )
    parser.add_argument("--show", action="store_true", help="all that is said")
    parser.add_argument("--train", action="store_true", help="make the runs, and no more")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [f for f in EXPECTED if not (given.images and f in NOT_OF_IMAGES)]
    kinds = names + [f"sound {i}" for i in range(given.sound)] + ["sound classes"]
    first = named = faults = accused = sound = 0
    for seed in given.seeds:
        for fault in (k for k in kinds if any(word in k for word in given.only)):
            if given.images and fault == "sound classes":
                continue
            folder = (
                given.folder / f"{'i' if given.images else 'v'}{seed}_{fault.replace(' ', '_')}"
            )
            folder.parent.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                data = make(fault, seed, folder, given.images)
                started = time.perf_counter()
                if given.train:
                    continue
                with trusting(True):  # it was edited, which breaks its signature
                    found = diagnose(folder, data, device="cpu")
            spent = time.perf_counter() - started
            wanted = EXPECTED.get(fault, set())
            if wanted:
                faults, first = faults + 1, first + bool(wanted & set(found.causes[:1]))
                named += bool(wanted & set(found.causes))
            else:
                sound, accused = sound + 1, accused + bool(found.causes)
            right = bool(wanted & set(found.causes[:1])) if wanted else not found.causes
            said = ", ".join(found.causes) or "nothing found"
            print(f"{'  ' if right else '! '}{fault:26s} seed {seed}: {said} ({spent:.1f} s)",
                  flush=True)  # fmt: skip
            if given.show and found is not None:
                print(found, flush=True)
    print(f"{first} of {faults} faults named first, {named} named; {accused} of {sound} sound runs "
          "accused")  # fmt: skip


if __name__ == "__main__":
    main()
