"""How fast is a DiT here, beside diffusers' DiT of the same sizes and weights?

    python benchmarks/dit.py                        # S/4 on 3 x 32 x 32, batch 16
    python benchmarks/dit.py --width 384 --depth 12 --patch 2 --threads 2

Outputs are compared before anything is timed. A training step is forward pass, mean square,
backward pass and fused Adam; a forward pass is without gradients. Both take turns within a round,
and which goes first alternates; ratios are of the minima and of the medians over rounds, above 1
where this toolkit is the faster one. --cpu_time counts seconds of the processor, for a machine that
is busy.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor, nn

from score_sde.convert import diffusers_transformer
from score_sde.nets import Transformer


def pair(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """Our network and theirs, with the same weights, none of which is zero."""
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=args.width // 64, attention_head_dim=64, in_channels=3,
        out_channels=6, num_layers=args.depth, sample_size=args.side, patch_size=args.patch,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.02)
    ours = Transformer(**diffusers_transformer.net_options(theirs.config))
    ours.load_state_dict(diffusers_transformer.to_ours(ours, theirs.state_dict(), False))
    return ours, theirs


def calls(net: nn.Module, ours: bool, args: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """A training step and a forward pass of a network."""
    torch.manual_seed(1)
    x = torch.randn(args.batch, 3, args.side, args.side)
    label, classes = torch.rand(args.batch) * 999, torch.arange(args.batch) % 10
    adam = torch.optim.Adam(net.parameters(), 1e-6, fused=True)

    def forward() -> Tensor:
        low = args.precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            if ours:
                return net(x, label, class_labels=classes)
            return net(x, label, class_labels=classes).sample

    def step() -> Tensor:
        net.train()
        loss = forward().float().square().mean()
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss

    @torch.no_grad()
    def look() -> Tensor:
        return net.eval() and forward()

    return {"forward": look, "training step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--cpu_time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    nets = pair(args)
    both = {name: calls(net, name == "score_sde", args)
            for name, net in zip(("score_sde", "diffusers"), nets, strict=True)}  # fmt: skip
    mine, other = (made["forward"]() for made in both.values())
    print(f"{sum(p.numel() for p in nets[0].parameters()):,} parameters, outputs "
          f"{float((mine - other).abs().max() / other.abs().max()):.1e} apart")  # fmt: skip
    for task in ("forward", "training step"):
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for made in both.values():
            made[task]()
        for i in range(args.rounds):
            for name in list(both)[:: 1 if i % 2 else -1]:
                start = clock()
                both[name][task]()
                seconds[name].append(clock() - start)
        least = seconds["diffusers"], seconds["score_sde"]
        ratio = min(least[0]) / min(least[1])
        middle = statistics.median(least[0]) / statistics.median(least[1])
        print(f"{task}: {min(least[1]):.3f} s, diffusers {min(least[0]):.3f} s, ratio {ratio:.2f} "
              f"of minima, {middle:.2f} of medians")  # fmt: skip


if __name__ == "__main__":
    main()
