"""Coloured shapes: how many pairs never seen together a network draws after three minutes.

    OMP_NUM_THREADS=2 python benchmarks/shapes.py [--minutes 3] [--guidance 2 3] [--each 15]

The network is that of `tests/test_shapes.py`, for as many minutes as are given. The judge is exact:
`score_shapes` compares with drawings of every colour and shape.
"""

from __future__ import annotations

import argparse
import tempfile

from score_sde.data.shapes import HELD_OUT, caption_of, score_shapes
from score_sde.runs.configs import load_config
from score_sde.runs.train import train


def main(words: list[str] | None = None) -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--each", type=int, default=15, help="samples of each of the pairs")
    asked = parser.parse_args(words)
    config = load_config("text_emoji").to_dict()
    config["data"] = {"name": "shapes", "scaling": "standard"}
    config["conditioning"] = {"text": "words", "text_length": 6, "dropout": 0.1}
    config["net"] |= {"width": 32, "text": 0, "text_table": 512, "attention": [4], "heads": 1}
    config["training"] |= {"minutes": asked.minutes, "warmup_steps": 30, "sample_every": 0}
    captions = [caption_of(*pair) for pair in HELD_OUT for _ in range(asked.each)]
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, f"{folder}/run", device="cpu")
        for guidance in asked.guidance:
            x = run.sample(len(captions), prompt=captions, guidance=guidance).x
            found = score_shapes(run.data_spec.to_uint8(x), captions)
            print(f"{run.step} updates, guidance {guidance:g}: {found}, {len(captions)} samples")


if __name__ == "__main__":
    main()
