"""How fast are the networks, and how much memory do they take, beside other people's?

    python benchmarks/networks.py                                 # forward, training step, memory
    python benchmarks/networks.py --batches 8 --rounds 9 --output networks.json
    python benchmarks/networks.py --threads 1 --cpu_time          # on a machine that is busy
    python benchmarks/networks.py --network small                 # the quick start's network alone
    SCORE_SDE_PYTORCH=../score_sde_pytorch python benchmarks/networks.py --network ddpm

`ddpm_ho` is the architecture of google/ddpm-cifar10-32 (35.7 M parameters). diffusers' UNet2DModel
gets the very same weights, random and of unit scale throughout, and the outputs are compared before
anything is timed; azula's UNet is another network, of similar width and without attention. Peers
that are not installed are skipped. `ddpm` is score_sde_pytorch's network of that name, beside the
original in a clone of its repository.

A forward pass is one call without gradients; "packed" is the network as `Run.sample` calls it. A
training step is forward pass, mean square, backward pass and fused Adam, the same for all, with
dropout 0.1 in every network. All take turns within a round, in an order that rotates, and so do
products of large matrices, by PyTorch's `mm` and as a 1 x 1 convolution (other libraries, and on
some processors other speeds): "of peak" is a share of the fastest one seen in that precision.
Arithmetic is counted by torch.utils.flop_counter. Ratios are to diffusers (or score_sde_pytorch)
in float32, of the minima and of the medians.

Memory is measured in processes of their own: after a first call, how far the resident memory rises
above where it was (Linux's VmHWM, reset before), with an allocator that gives freed blocks back at
once, so that it is the memory really in use, oneDNN's buffers included.
"""

import argparse
import inspect
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from score_sde import build
from score_sde.convert import diffusers_export, song
from score_sde.nets import PRESETS, UNet, packed

PRECISIONS = ("fp32", "bf16")
REFERENCES = {"ddpm_ho": "diffusers", "ddpm": "score_sde_pytorch"}
PACKED = "score_sde packed"
SIDE = 2048
Call = Callable[[Tensor, Tensor], Tensor]


def draw_weights(net: nn.Module) -> None:
    """Weights of unit scale in every layer: new networks have zeros, which hide what follows."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -0.05, 0.05)
        elif type(layer).__name__ == "NIN":  # score_sde_pytorch's convolution of single pixels
            nn.init.kaiming_uniform_(layer.W.data.T, a=5**0.5)


def ours() -> tuple[UNet, Call]:
    net = UNet.preset("ddpm_ho", 3, (32, 32))
    draw_weights(net)
    net = build.in_fast_layout(net)
    return net, net


def as_sampled(make: Callable[[], tuple[nn.Module, Call]]) -> tuple[nn.Module, Call]:
    net = make()[0].eval()
    return net, packed(net)


def of_diffusers() -> tuple[nn.Module, Call]:
    """UNet2DModel with our weights under its names."""
    import_module("diffusers")
    parameters = inspect.signature(UNet).parameters.items()
    options = {key: p.default for key, p in parameters} | PRESETS["ddpm_ho"]
    settings = diffusers_export.settings(options | {"channels": 3, "size": (32, 32)})
    net = import_module("diffusers").UNet2DModel.from_config(settings)
    net.load_state_dict(diffusers_export.to_theirs(ours()[0]))
    return net, lambda x, label: net(x, label, return_dict=False)[0]


def of_azula() -> tuple[nn.Module, Call]:
    widths, embedding = (128, 256, 256, 256), 512
    net = import_module("azula.nn.unet").UNet(
        3, 3, hid_channels=widths, hid_blocks=(2, 2, 2, 2), norm="group", groups=32, dropout=0.1,
        mod_features=embedding,
    )  # fmt: skip
    frequencies = torch.linspace(0, 1, embedding)
    return net, lambda x, label: net(x, torch.sin(label[:, None] * frequencies))


def of_song() -> tuple[nn.Module, Call]:
    """score_sde_pytorch's DDPM, with the settings of configs/vp/ddpm/cifar10.py."""
    clone = os.environ.get("SCORE_SDE_PYTORCH")
    if not clone:
        raise ImportError("set SCORE_SDE_PYTORCH to the folder of its clone")
    if clone not in sys.path:
        sys.path.append(clone)
    model = {"nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "attn_resolutions": (16,),
             "dropout": 0.1, "resamp_with_conv": True, "conditional": True, "nonlinearity": "swish",
             "scale_by_sigma": False, "sigma_min": 0.01, "sigma_max": 50, "num_scales": 1000,
             "normalization": "GroupNorm"}  # fmt: skip
    data = {"image_size": 32, "num_channels": 3, "centered": True}
    settings = SimpleNamespace(model=SimpleNamespace(**model), data=SimpleNamespace(**data))
    net = import_module("models.ddpm").DDPM(settings)
    draw_weights(net)
    return net, net


def song_as_ours() -> tuple[UNet, Call]:
    net = UNet.preset("ddpm", 3, (32, 32))
    net.load_state_dict(song.to_ours(net, of_song()[0].state_dict()))
    net = build.in_fast_layout(net)
    return net, net


def quick_start() -> tuple[nn.Module, Call]:
    path = Path(__file__).parent.parent / "configs" / "vp_fashion.py"
    config = runpy.run_path(str(path))["get_config"]().to_dict()
    net = build.build_model(config, build.build_data(config).spec).net
    return net, net


NETWORKS: dict[str, dict[str, Callable[[], tuple[nn.Module, Call]]]] = {
    "ddpm_ho": {
        "score_sde": ours, PACKED: partial(as_sampled, ours),
        "diffusers": of_diffusers, "azula": of_azula,
    },
    "ddpm": {
        "score_sde": song_as_ours, PACKED: partial(as_sampled, song_as_ours),
        "score_sde_pytorch": of_song,
    },
    "small": {"score_sde": quick_start, PACKED: partial(as_sampled, quick_start)},
}  # fmt: skip


class Contender:
    """A network of one library, timed in both precisions."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Call]]):
        self.net, self.call = make()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-5, fused=True)

    def forward(self, x: Tensor, label: Tensor, precision: str) -> Tensor:
        if self.net.training:
            self.net.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            return self.call(x, label)

    def train(self, x: Tensor, label: Tensor, precision: str) -> None:
        self.net.train()
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            out = self.call(x, label)
        out.float().square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flops(self, x: Tensor, label: Tensor, what: str) -> int:
        """Operations of one call; a product counts for two, as everywhere."""
        counter = FlopCounterMode(display=False)
        with counter:
            getattr(self, what)(x, label, "fp32")
        return counter.get_total_flops()


def inputs(network: str, batch: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(batch)
    shape = (1, 28, 28) if network == "small" else (3, 32, 32)
    return torch.randn(batch, *shape), torch.linspace(0.0, 999.0, batch)


def contenders(network: str, wanted: list[str] | None = None) -> dict[str, Contender]:
    found = {}
    for name, make in NETWORKS[network].items():
        if wanted is None or name in wanted:
            try:
                found[name] = Contender(make)
            except ImportError as error:
                print(f"{name} is not measured: {error}")
    return found


def check(found: dict[str, Contender], network: str) -> None:
    """How far our outputs are from the reference's in float32."""
    reference = REFERENCES.get(network)
    if reference not in found:
        return
    x, label = inputs(network, 8)
    exact = found[reference].forward(x, label, "fp32").double()
    for name, precision, bound in (
        ("score_sde", "fp32", 1e-5),
        (PACKED, "fp32", 1e-5),
        ("score_sde", "bf16", 2e-2),
        (PACKED, "bf16", 2e-2),
        (reference, "bf16", None),
    ):
        gap = found[name].forward(x, label, precision).double() - exact
        largest = (gap.abs().max() / exact.abs().max()).item()
        relative = (gap.norm() / exact.norm()).item()
        print(f"{name} {precision}: relative error to {reference} fp32 {largest:.1e} (largest), "
              f"{relative:.1e} (L2)")  # fmt: skip
        if bound is not None and relative > bound:
            raise SystemExit(f"{name} {precision} is not the same network: above {bound:g}.")


def matrix_products(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """One product of two SIDE x SIDE matrices, in two ways."""
    a, b = torch.randn(SIDE, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    pixels = a.view(16, 8, SIDE // 128, SIDE).permute(0, 3, 1, 2)  # channels_last
    weight = b.mT.contiguous()[:, :, None, None]
    return {
        "mm": torch.no_grad()(lambda: a @ b),
        "1 x 1": torch.no_grad()(lambda: F.conv2d(pixels, weight)),
    }


def measure(
    found: dict[str, Contender], network: str, what: str, batch: int, rounds: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:  # fmt: skip
    """Time everybody in turns, print a table, and return its rows."""
    x, label = inputs(network, batch)
    found = {name: one for name, one in found.items() if (what, name) != ("train", PACKED)}
    turns: dict[tuple[str, str], Callable[[], Any]] = {}
    for precision in PRECISIONS:
        products = matrix_products(torch.bfloat16 if precision == "bf16" else torch.float32)
        turns |= {(name, precision): run for name, run in products.items()}
        for name, one in found.items():
            run = partial(getattr(one, what), x, label, precision)
            turns[name, precision] = run
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
    keys = list(turns)
    for i in range(rounds + 1):  # the first round warms up
        for key in keys[i % len(keys) :] + keys[: i % len(keys)]:
            started = clock()
            turns[key]()
            if i:
                seconds[key].append(clock() - started)
    peaks = {
        precision: 2 * SIDE**3 / min(min(seconds.pop((name, precision))) for name in products)
        for precision in PRECISIONS
    }
    reference = seconds.get((REFERENCES.get(network, ""), "fp32"))
    print(f"\n{what}, batch {batch}, {rounds} rounds; products of matrices: "
          f"{peaks['fp32'] / 1e9:.0f} GFLOP/s in fp32, {peaks['bf16'] / 1e9:.0f} in bf16; "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"{'':22} {'ms min':>8} {'median':>8} {'GFLOP/s':>8} {'of peak':>8} "
          f"{'ratio min':>10} {'median':>7}")  # fmt: skip
    rows = []
    for (name, precision), times in seconds.items():
        best, median = min(times), statistics.median(times)
        # The counter knows no packed convolutions; the arithmetic is that of the others.
        flops = found["score_sde" if name == PACKED else name].flops(x, label, what)
        row = {"what": what, "batch": batch, "name": name, "precision": precision,
               "ms_min": 1e3 * best, "ms_median": 1e3 * median, "gflops": flops / best / 1e9,
               "of_peak": flops / best / peaks[precision]}  # fmt: skip
        line = (f"{name + ' ' + precision:22} {1e3 * best:8.1f} {1e3 * median:8.1f} "
                f"{flops / best / 1e9:8.0f} {flops / best / peaks[precision]:8.0%}")  # fmt: skip
        if reference and name != "azula":
            row["ratio_min"] = min(reference) / best
            row["ratio_median"] = statistics.median(reference) / median
            line += f" {row['ratio_min']:10.2f} {row['ratio_median']:7.2f}"
        print(line, flush=True)
        rows.append(row)
    return rows


def status(key: str) -> int:
    """A line of this process's status, in kB: VmRSS is the memory now, VmHWM the most it was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def rise(network: str, name: str, what: str, precision: str, batch: int) -> float:
    """MB above the resident memory that a call needs; in a process of its own."""
    one = contenders(network, [name])[name]
    x, label = inputs(network, batch)
    run = getattr(one, what)
    run(x, label, precision)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    run(x, label, precision)
    return (status("VmHWM") - before) * 1024 / 1e6


def memory(
    found: dict[str, Contender], network: str, batches: list[int], threads: int
) -> list[dict[str, Any]]:
    if not Path("/proc/self/clear_refs").exists():
        print("\nmemory is not measured: this needs Linux")
        return []
    print(f"\n{'memory above the network, MB':34} " + " ".join(f"batch {n:<4}" for n in batches))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    rows: list[dict[str, Any]] = []
    for what in ("forward", "train"):
        for name in found:
            for precision in PRECISIONS if (what, name) != ("train", PACKED) else ():
                values = []
                for batch in batches:
                    case = [network, name, what, precision, str(batch)]
                    command = [sys.executable, __file__, "--threads", str(threads), "--rise", *case]
                    done = subprocess.run(
                        command, env=environment, check=True, capture_output=True, text=True
                    )
                    values.append(float(done.stdout.split()[-1]))
                    rows.append({"what": what, "batch": batch, "name": name,
                                 "precision": precision, "memory_mb": values[-1]})  # fmt: skip
                cells = " ".join(f"{value:10.0f}" for value in values)
                print(f"{f'{what} {name} {precision}':34} {cells}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="ddpm_ho", choices=NETWORKS)
    parser.add_argument("--batches", type=int, nargs="+", help="default 1 8 32; 128 for small")
    parser.add_argument("--what", nargs="+", default=["forward", "train", "memory"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu_time", action="store_true", help="instead of time on the clock")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--rise", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.rise:
        *case, batch = args.rise
        print(rise(*case, int(batch)))
        return
    clock = time.process_time if args.cpu_time else time.perf_counter
    batches = args.batches or ([128] if args.network == "small" else [1, 8, 32])
    found = contenders(args.network)
    for name, one in found.items():
        print(f"{name}: {sum(p.numel() for p in one.net.parameters()):,} parameters")
    print(f"torch {torch.__version__}, {args.threads} threads, "
          f"{'CPU' if args.cpu_time else 'wall'} time")  # fmt: skip
    check(found, args.network)
    rows = []
    for what in ("forward", "train"):
        for batch in batches if what in args.what else ():
            rows += measure(found, args.network, what, batch, args.rounds, clock)
    if "memory" in args.what:
        rows += memory(found, args.network, batches, args.threads)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1, allow_nan=False))
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
