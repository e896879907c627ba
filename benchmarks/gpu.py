"""What a GPU makes of a training step, of sampling and of a likelihood, setting by setting.

    python benchmarks/gpu.py                           # cuda if it is there, else mps, else cpu
    python benchmarks/gpu.py --device cpu --small      # what the CPU has of it, in a minute

The network is DDPM's for CIFAR-10 (`ddpm_ho`; with --small a quarter of its width), with the same
random weights in ours and in diffusers' UNet2DModel. Rows are settings of ours, and

    diffusers    its network; train_unconditional.py's update; DDIMScheduler's loop
    edm style    diffusers' network preconditioned as EDM's, with the loops of its training_loop.py
                 and of its edm_sampler (Heun in float64), written here from the paper

A training step is noise, loss, backward pass, clipping, Adam and average. Sampling is Heun, 9 steps
and so 18 evaluations, of DDIM 18. A likelihood is 16 evaluations with one probe. Ratios are to
diffusers' row, or to ours in fp32 where it has none, of the medians; a device is waited for before
and after each. Rows that a machine does not support are named, with the reason.
"""

import argparse
import copy
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from networks import draw_weights
from torch import Tensor, nn

from score_sde import build, log_likelihood, sample
from score_sde.convert import diffusers_export
from score_sde.data import ArrayData, DataSpec
from score_sde.devices import pick_device
from score_sde.losses import ScoreMatching
from score_sde.models import ScoreModel
from score_sde.nets import PRESETS, UNet
from score_sde.processes import EDMSDE, VPSDE
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.precision import set_precision

SHAPE = (3, 32, 32)
SIGMAS = (0.002, 80.0)
Run = Callable[[], object]


class Unsupported(Exception):
    """A row that this machine has not; the message says why."""


class Bench:
    """A device, the sizes, and what is timed on it."""

    def __init__(self, device: torch.device, width: int, batch: int, rounds: int):
        self.device, self.width, self.batch, self.rounds = device, width, batch, rounds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def seconds(self, run: Run) -> float:
        """The median of some rounds, after one that warms up."""
        run()
        times = []
        for _ in range(self.rounds):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def net(self) -> UNet:
        net = UNet.preset("ddpm_ho", 3, SHAPE[1:], width=self.width)
        draw_weights(net)
        return net

    def of_diffusers(self) -> nn.Module:
        import diffusers

        parameters = inspect.signature(UNet).parameters.items()
        options = {key: p.default for key, p in parameters} | PRESETS["ddpm_ho"]
        options |= {"width": self.width, "channels": 3, "size": SHAPE[1:]}
        net = diffusers.UNet2DModel.from_config(diffusers_export.settings(options))
        net.load_state_dict(diffusers_export.to_theirs(self.net()))
        return net.to(self.device)

    def pictures(self) -> ArrayData:
        generator = torch.Generator().manual_seed(0)
        raw = torch.randint(0, 256, (256, *SHAPE), generator=generator, dtype=torch.uint8)
        return ArrayData(raw, {}, DataSpec(SHAPE, 0.0, 255.0, 256, 127.5, 127.5))

    def model(self, setting: str, edm: bool = False) -> ScoreModel:
        """Ours, as a row says."""
        precision = "bf16" if "bf16" in setting else "tf32" if "tf32" in setting else "fp32"
        if precision == "tf32" and self.device.type != "cuda":
            raise Unsupported(f"tf32 is of CUDA, this is {self.device.type}")
        set_precision(precision, self.device)
        sde: Any = EDMSDE() if edm else VPSDE()
        target = {"target": "F", "data_std": 0.5, "time_input": "log_sigma"} if edm else {}
        model = ScoreModel(self.net(), sde, precision=precision, **target)
        model = build.in_fast_layout(model) if "channels_last" in setting else model
        return model.with_net(model.net.to(self.device))

    def compiled(self, model: ScoreModel, setting: str) -> ScoreModel:
        return model.with_net(torch.compile(model.net)) if "compiled" in setting else model

    # What is measured of ours -------------------------------------------------------------------

    def training(self, setting: str) -> Run:
        if "graphs" in setting or "philox" in setting:
            raise Unsupported("graphs and their noise are of sampling")
        settings = TrainingSettings(batch_size=self.batch, compile="compiled" in setting)
        trainer = Trainer(self.model(setting), ScoreMatching(), settings, device=self.device)
        if "plain Adam" in setting:
            for optimizer in trainer.optimizers:
                optimizer.defaults["fused"] = False
                for group in optimizer.param_groups:
                    group["fused"] = False
        batches = self.pictures().batches(self.batch, 0, device=self.device)
        return lambda: trainer.update(next(batches).x0)

    def sampling(self, setting: str) -> Run:
        if "Adam" in setting:
            raise Unsupported("an optimiser is of training")
        if "graphs" in setting and self.device.type != "cuda":
            raise Unsupported(f"graphs are of CUDA, this is {self.device.type}")
        model = self.compiled(self.model(setting, edm=True), setting)
        model.eval()
        options: dict[str, Any] = {"method": "heun", "steps": 9, "denoise": False}
        options |= {"seeds": range(self.batch), "device": self.device}
        options |= {"noise": "philox" if "philox" in setting else "seeded"}
        return lambda: sample(
            model.sde, model, (self.batch, *SHAPE), graph="graphs" in setting, **options
        )

    def likelihood(self, setting: str) -> Run:
        if any(word in setting for word in ("Adam", "graphs", "philox")):
            raise Unsupported("that is of training, or of sampling")
        model = self.compiled(self.model(setting), setting)
        model.eval()
        x = 0.5 * torch.randn(self.batch, *SHAPE, device=self.device)
        seeds = range(self.batch)
        return lambda: log_likelihood(
            model.sde, model, x, nfe=16, probes=1, divergence="hutchinson", data_std=0.5,
            truncation="none", seeds=seeds,
        )  # fmt: skip

    # Beside others ------------------------------------------------------------------------------

    def theirs(self, what: str, precision: str) -> Run:
        """diffusers' update, or its DDIM loop."""
        import diffusers
        from diffusers.training_utils import EMAModel

        set_precision("fp32", self.device)
        net, low = self.of_diffusers(), precision == "bf16"
        scheduler: Any = diffusers.DDIMScheduler(num_train_timesteps=1000)
        clean = torch.randn(self.batch, *SHAPE, device=self.device)

        def call(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                return net(x, t).sample

        @torch.no_grad()
        def draw() -> None:
            x = torch.randn(self.batch, *SHAPE).to(self.device)
            scheduler.set_timesteps(18)
            for t in scheduler.timesteps:
                x = scheduler.step(call(x, t).float(), t, x).prev_sample

        if what == "sampling":
            net.eval()
            return draw
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        average = EMAModel(net.parameters(), decay=0.9999)

        def update() -> None:
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (self.batch,), device=self.device)
            out = call(scheduler.add_noise(clean, noise, t), t)
            loss = F.mse_loss(out.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(net.parameters())
            loss.detach().item()  # the example logs it

        return update

    def edm_style(self, what: str) -> Run:
        """EDM's preconditioning (2206.00364, table 1), update and sampler around that network."""
        set_precision("fp32", self.device)
        net, sd = self.of_diffusers(), 0.5
        averaged = copy.deepcopy(net).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def denoised(of: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
            x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
            total = sigma**2 + sd**2
            label = (sigma.log() / 4).flatten().expand(len(x))
            out = of(x / total.sqrt(), label).sample
            return sd**2 / total * x + sigma * sd / total.sqrt() * out

        def update() -> None:
            clean = torch.randn(self.batch, *SHAPE, device=self.device)
            sigma = (torch.randn(self.batch, 1, 1, 1, device=self.device) * 1.2 - 1.2).exp()
            weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
            noisy = clean + torch.randn_like(clean) * sigma
            optimizer.zero_grad(set_to_none=True)
            loss = weight * (denoised(net, noisy, sigma) - clean) ** 2
            loss.sum().mul(1 / self.batch).backward()
            for p in net.parameters():
                if p.grad is not None:
                    torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
            optimizer.step()
            for mine, live in zip(averaged.parameters(), net.parameters(), strict=True):
                mine.copy_(live.detach().lerp(mine, 0.9999))

        @torch.no_grad()
        def draw() -> None:
            steps, rho = torch.arange(9, dtype=torch.float64), 7
            low, high = (s ** (1 / rho) for s in SIGMAS)
            grid = torch.cat([(high + steps / 8 * (low - high)) ** rho, torch.zeros(1)])
            grid = grid.float() if self.device.type == "mps" else grid
            times = grid.to(self.device)
            x = torch.randn(self.batch, *SHAPE, device=self.device).to(times) * times[0]
            for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
                slope = (x - denoised(averaged, x, t).to(x)) / t
                ahead = x + (s - t) * slope
                if i < 8:
                    other = (ahead - denoised(averaged, ahead, s).to(x)) / s
                    ahead = x + (s - t) * (slope + other) / 2
                x = ahead

        return draw if what == "sampling" else update


SETTINGS = (
    "fp32", "fp32 plain Adam", "fp32 channels_last", "tf32 channels_last", "bf16",
    "bf16 channels_last", "bf16 channels_last compiled", "fp32 philox", "fp32 graphs",
    "bf16 channels_last graphs", "bf16 channels_last philox graphs",
)  # fmt: skip


def rows(bench: Bench, what: str, compile_too: bool) -> dict[str, Callable[[], Run]]:
    """What is timed, by the names of the rows; the first of diffusers is the reference."""
    found: dict[str, Callable[[], Run]] = {}
    if what != "likelihood":
        for precision in ("fp32", "bf16"):
            found[f"diffusers {precision}"] = lambda p=precision: bench.theirs(what, p)
        found["edm style fp32"] = lambda: bench.edm_style(what)
    for setting in SETTINGS:
        if compile_too or "compiled" not in setting:
            found[setting] = lambda s=setting: getattr(bench, what)(s)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--what", nargs="+", default=["training", "sampling", "likelihood"])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--small", action="store_true", help="width 32, 2 pictures, one round")
    parser.add_argument("--no_compile", action="store_true")
    args = parser.parse_args()
    device = pick_device(args.device)
    batch = args.batch or (2 if args.small else 64)
    bench = Bench(
        device, 32 if args.small else 128, batch, args.rounds or (1 if args.small else 10)
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, {bench.width} channels, batch {batch}")
    for what in args.what:
        print(f"\n{what:36} {'ms':>9} {'pictures/s':>11} {'ratio':>7}")
        reference = None
        for row, make in rows(bench, what, not args.no_compile).items():
            try:
                seconds = bench.seconds(make())
            except Unsupported as error:
                if "of training" not in str(error) and "of sampling" not in str(error):
                    print(f"{row:36} not here: {error}")
                continue
            except (ImportError, RuntimeError, ValueError) as error:
                print(f"{row:36} failed: {str(error).strip().splitlines()[0][:90]}")
                continue
            reference = reference or seconds
            ratio = reference / seconds
            print(f"{row:36} {1e3 * seconds:9.1f} {batch / seconds:11.1f} {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
