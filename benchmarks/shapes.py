"""Coloured shapes: how many pairs never seen together a network draws after three minutes.

    OMP_NUM_THREADS=2 python benchmarks/shapes.py [--minutes 3] [--guidance 2 3 5] [--each 60]
    python benchmarks/shapes.py --updates 1250 --seed 1      # on a machine that is busy

The network is that of `tests/test_shapes.py`, for as many minutes or updates as are given. The
judge is exact: `score_shapes` compares with drawings of every colour and shape.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile

from score_sde.data.shapes import HELD_OUT, caption_of, score_shapes
from score_sde.runs.configs import load_config
from score_sde.runs.train import train


def main(words: list[str] | None = None) -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--updates", type=int, help="in place of minutes")
    parser.add_argument("--seed", type=int, default=42, help="of the training")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--each", type=int, default=60, help="samples of each of the pairs")
    parser.add_argument("--method", nargs="+", default=["dpmpp_2m", "dpmpp_2m_sde"])
    parser.add_argument("--nfe", type=int, default=39)
    asked = parser.parse_args(words)
    config = load_config("text_emoji").to_dict()
    config["seed"] = asked.seed
    config["data"] = {"name": "shapes", "scaling": "standard"}
    config["loss"] |= {"log_sigma_mean": -0.3, "log_sigma_std": 1.6}
    config["conditioning"] = {"text": "words", "text_length": 6, "dropout": 0.1}
    config["net"] |= {"width": 32, "text": 0, "text_table": 512, "attention": [4], "heads": 1}
    config["training"] |= {"minutes": asked.minutes, "warmup_steps": 30, "sample_every": 0}
    if asked.updates:
        config["training"] |= {"minutes": 0.0, "steps": asked.updates}
    captions = [caption_of(*pair) for pair in HELD_OUT for _ in range(asked.each)]
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, f"{folder}/run", device="cpu")
        print(f"{run.step} updates, {len(captions)} samples, {asked.nfe} evaluations of each score")
        for method, guidance in itertools.product(asked.method, asked.guidance):
            how = {"method": method, "nfe": asked.nfe, "guidance": guidance}
            x = run.sample(len(captions), prompt=captions, **how).x
            found = score_shapes(run.data_spec.to_uint8(x), captions)
            print(f"{method}, guidance {guidance:g}: both right {found.both:.1%} ({found})")


if __name__ == "__main__":
    main()
