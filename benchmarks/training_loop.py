"""How many updates a second beside diffusers' own example, with the same network and weights?

    python benchmarks/training_loop.py                       # DDPM's CIFAR-10 network, batch 8
    python benchmarks/training_loop.py --width 64 --rounds 5 --threads 2
    python benchmarks/training_loop.py --cpu_time            # on a machine that is busy
    python benchmarks/training_loop.py --profile             # what our own update is made of

Theirs is the loop of examples/unconditional_image_generation/train_unconditional.py as it stands
there: noise, times, DDPMScheduler.add_noise, UNet2DModel, mean square, clipping, AdamW, a schedule
of the learning rate, EMAModel; `accelerate` is left out, and autocast stands in for its bf16. Ours
is `Trainer.update` with the batches of a data set: noise by seed, clipping, AdamW, schedule,
average, loss by noise level, the watch for steps that are not finite. Both take turns, in both
precisions, in an order that rotates. Ratios are ours to theirs in updates a second, of the minima
and of the medians: to their loop in float32 in both precisions, and to theirs in the same.
"""

import argparse
import inspect
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from networks import draw_weights

from score_sde import build
from score_sde.convert import diffusers_export
from score_sde.data import ArrayData, DataSpec
from score_sde.losses import ScoreMatching
from score_sde.models import ScoreModel
from score_sde.nets import PRESETS, UNet
from score_sde.processes import TableSDE
from score_sde.runs.memory import keep_freed_memory
from score_sde.training import Trainer, TrainingSettings

SETTINGS = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6}
Step = Callable[[], object]


def data() -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (256, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ArrayData(raw, {}, DataSpec((3, 32, 32), 0.0, 255.0, 256, 127.5, 127.5), flip=True)


def network(width: int) -> UNet:
    net = UNet.preset("ddpm_ho", 3, (32, 32), width=width)
    draw_weights(net)
    return net


def ours(width: int, batch: int, precision: str) -> Step:
    model = ScoreModel(network(width), TableSDE(), precision=precision)
    settings = TrainingSettings(batch_size=batch, warmup_steps=500, ema_decay=0.9999, **SETTINGS)
    trainer = Trainer(build.in_fast_layout(model), ScoreMatching(times="discrete"), settings)
    batches = data().batches(batch, 0)
    return lambda: trainer.update(next(batches).x0)


def theirs(width: int, batch: int, precision: str) -> Step:
    import diffusers
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    parameters = inspect.signature(UNet).parameters.items()
    options = {key: p.default for key, p in parameters} | PRESETS["ddpm_ho"] | {"width": width}
    described = diffusers_export.settings(options | {"channels": 3, "size": (32, 32)})
    net = diffusers.UNet2DModel.from_config(described)
    net.load_state_dict(diffusers_export.to_theirs(network(width)))
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(net.parameters(), eps=1e-8, **SETTINGS)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    average = EMAModel(
        net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4,
        model_cls=diffusers.UNet2DModel, model_config=net.config,
    )  # fmt: skip
    items = data()
    pictures = items.spec.to_model(items.raw)
    pairs = torch.utils.data.TensorDataset(pictures)
    loader = torch.utils.data.DataLoader(pairs, batch_size=batch, shuffle=True)
    endless = (x for _ in range(10**9) for (x,) in loader)
    net.train()

    def step() -> float:
        clean = next(endless)
        noise = torch.randn(clean.shape)
        times = torch.randint(0, 1000, (len(clean),)).long()
        noisy = scheduler.add_noise(clean, noise, times)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = net(noisy, times).sample
        loss = F.mse_loss(out.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        return loss.detach().item()

    return step


def print_shares(step: Step, most: int = 8) -> None:
    """The operations that take most of two updates of a network that has warmed up."""
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(2):
            step()
    parts = sorted(seen.key_averages(), key=lambda part: -part.self_cpu_time_total)
    total = sum(part.self_cpu_time_total for part in parts)
    for part in parts[:most]:
        print(f"{part.self_cpu_time_total / total:6.1%} {part.key}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=128, help="channels of the first level")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu_time", action="store_true", help="instead of time on the clock")
    parser.add_argument("--profile", action="store_true", help="shares of our update, in float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as main.py does; their loop has the good of it too
    if args.profile:
        return print_shares(ours(args.width, args.batch, "fp32"))
    clock = time.process_time if args.cpu_time else time.perf_counter
    steps = {
        (name, precision): make(args.width, args.batch, precision)
        for precision in ("fp32", "bf16")
        for name, make in (("score_sde", ours), ("diffusers", theirs))
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    keys = list(steps)
    for i in range(args.rounds + 1):  # the first round warms up
        for key in keys[i % len(keys) :] + keys[: i % len(keys)]:
            started = clock()
            steps[key]()
            if i:
                seconds[key].append(clock() - started)
    print(f"updates, DDPM's network with {args.width} channels, batch {args.batch}, {args.rounds} "
          f"rounds, torch {torch.__version__}, {args.threads} threads, "
          f"{'CPU' if args.cpu_time else 'wall'} time, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"{'':16} {'ms min':>8} {'median':>8} {'to their fp32':>16} {'to the same':>16}")
    for (name, precision), times in seconds.items():
        cells = [f"{1e3 * min(times):8.1f} {1e3 * statistics.median(times):8.1f}"]
        for reference in ("fp32", precision):
            other = seconds["diffusers", reference]
            least = min(other) / min(times)
            middle = statistics.median(other) / statistics.median(times)
            cells.append(f"{least:8.2f} ({middle:4.2f})")
        print(f"{name + ' ' + precision:16} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
