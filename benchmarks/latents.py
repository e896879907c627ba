"""How many more pictures a second does a run of latents train on than one of pixels?

    python benchmarks/latents.py                  # emoji of 64 x 64 beside their latents, 16 x 16
    python benchmarks/latents.py --cpu_time --threads 1 --rounds 5   # on a machine that is busy

Both networks have the settings of configs/latent_emoji.py, so as many weights but for the first
and last convolution; the one of pixels sees 64 x 64 through patches of 2, as configs/images.py has
it. A training step is forward pass, mean square, backward pass and the config's optimisers. The two
take turns; ratios are of the minima and of the medians over rounds. Arithmetic is counted by
torch.utils.flop_counter. Latents are found once and kept: the encoder has no part in a step.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from score_sde import build
from score_sde.runs.configs import load_config
from score_sde.training.optim import make_optimizers

SHAPES = {"pixels": (3, 64, 64), "latents": (4, 16, 16)}


def network(shape: tuple[int, ...]) -> nn.Module:
    """The network of latent_emoji for items of this shape, without captions."""
    values = load_config("latent_emoji").to_dict()["net"]
    values |= {"text": 0, "text_table": 0, "patch": 2 if shape[1] == 64 else 1}
    values["attention"] = (shape[1] // values["patch"] // 2,)  # at the lower of two levels
    spec = SimpleNamespace(shape=shape, classes=())
    torch.manual_seed(0)
    return build.in_fast_layout(build.build_net({"net": values}, spec))  # type: ignore[arg-type]


class Step:
    """Training steps of a network on random items."""

    def __init__(self, shape: tuple[int, ...], batch: int):
        self.net, self.x = network(shape), torch.randn(batch, *shape)
        self.label = torch.rand(batch) * 100
        self.optimizers = make_optimizers(self.net, "muon", 3e-3, (0.9, 0.99), 0.0, 0.012)

    def loss(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(self.x, self.label).float().square().mean()

    def __call__(self) -> None:
        self.loss().backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def arithmetic(self) -> int:
        """Of the forward pass of one item."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.loss()
        return counter.get_total_flops() // len(self.x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu_time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    steps = {name: Step(shape, args.batch) for name, shape in SHAPES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for i in range(args.rounds):
        for name in list(steps)[:: 1 if i % 2 else -1]:
            start = clock()
            steps[name]()
            seconds[name].append(clock() - start)
    for name, step in steps.items():
        weights = sum(p.numel() for p in step.net.parameters())
        work, speed = step.arithmetic() / 1e6, args.batch / min(seconds[name])
        print(f"{name}: {weights:,} parameters, {work:.0f} MFLOP forward, {speed:.0f} items/s")
    least, middle = (
        [of(seconds[name]) for name in ("pixels", "latents")] for of in (min, statistics.median)
    )
    less = steps["pixels"].arithmetic() / steps["latents"].arithmetic()
    print(
        f"latents train {least[0] / least[1]:.2f} times as many (of minima; "
        f"{middle[0] / middle[1]:.2f} of medians), with {less:.2f} times less arithmetic"
    )


if __name__ == "__main__":
    main()
