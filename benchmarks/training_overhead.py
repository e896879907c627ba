"""What share of a training step is not the network? For the quick start, phase by phase.

    python benchmarks/training_overhead.py                   # vp_fashion, fp32 and bf16
    python benchmarks/training_overhead.py --steps 100 --threads 1

Phases are timed inside the steps of a real run, so that all of them meet the same machine; medians
over the steps, which a busy moment moves little. Muon's orthogonalisation is shown on its own: it
is arithmetic of the optimiser's choice, like the network's. Checkpoints are timed as the pause that
they make, while a thread writes.
"""

import argparse
import runpy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from score_sde import build
from score_sde.noise import StepRandomness
from score_sde.runs.directory import RunDirectory
from score_sde.runs.memory import keep_freed_memory
from score_sde.training import Logger, Session, Trainer, optim
from score_sde.training.checkpoints import Checkpoint, save_checkpoint
from score_sde.training.writer import BackgroundWriter

CONFIGS = Path(__file__).parent.parent / "configs"


class Phases:
    """Seconds by phase, without what phases inside them take."""

    def __init__(self) -> None:
        self.current: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.stack: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self.stack.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.perf_counter() - started
                self.current[name] += spent - self.stack.pop()
                if self.stack:
                    self.stack[-1] += spent

        return run

    def end_step(self, total: float) -> None:
        self.current["rest"] = total - sum(self.current.values())
        self.steps.append(dict(self.current))
        self.current.clear()

    def median(self, name: str) -> float:
        """Milliseconds."""
        return 1e3 * statistics.median(step.get(name, 0.0) for step in self.steps)


class TimedObjective:
    """The objective with its forward pass timed."""

    def __init__(self, objective: Any, phases: Phases):
        self.draw_times = phases.timed("times and noise", objective.draw_times)
        self.call = phases.timed("forward", objective)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.call(*arguments, **named)


class TimedLoss:
    def __init__(self, loss: torch.Tensor, phases: Phases):
        self.backward = phases.timed("backward", loss.backward)


def measure(precision: str, optimizer: str, steps: int) -> tuple[Phases, float]:
    """Phases of the steps, and the mean cost of logging a step in milliseconds."""
    config = runpy.run_path(str(CONFIGS / "vp_fashion.py"))["get_config"]()
    config.model.precision, config.training.optimizer = precision, optimizer
    config.training.minutes, config.training.steps = 0.0, steps
    config.training.save_every = config.training.sample_every = 0
    values = config.to_dict()
    torch.manual_seed(0)
    data, settings = build.build_data(values), build.build_training(values)
    model = build.build_model(values, data.spec)
    trainer = Trainer(model, build.build_objective(values), settings)
    phases = Phases()
    objective, scale, batches = trainer.objective, trainer.scaler.scale, data.batches
    trainer.objective = TimedObjective(objective, phases)  # type: ignore[assignment]
    trainer.scaler.scale = lambda loss: TimedLoss(scale(loss), phases)  # type: ignore
    for owner, attribute, name in (
        (trainer, "_clip_gradient", "gradient norm"),
        (trainer, "_count", "noise bins"),
        (trainer.ema, "update", "EMA"),
        (trainer, "scalars", "logging"),
    ):
        setattr(owner, attribute, phases.timed(name, getattr(owner, attribute)))
    for one in trainer.optimizers:
        one.step = phases.timed(type(one).__name__, one.step)  # type: ignore[method-assign]
        one.zero_grad = phases.timed(type(one).__name__, one.zero_grad)  # type: ignore
    noise, orthogonalize = StepRandomness.noise, optim.orthogonalize
    StepRandomness.noise = phases.timed("times and noise", noise)  # type: ignore[method-assign]
    optim.orthogonalize = phases.timed("orthogonalisation", orthogonalize)

    def timed_batches(*arguments: Any) -> Any:
        iterator = batches(*arguments)
        while True:
            yield phases.timed("data", next)(iterator)

    data.batches = timed_batches  # type: ignore[method-assign]
    last, update = time.perf_counter(), trainer.update

    def each_step(*arguments: Any, **named: Any) -> Any:
        nonlocal last
        values = update(*arguments, **named)
        now = time.perf_counter()
        phases.end_step(now - last)
        last = now
        return values

    trainer.update = each_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        logger = Logger(directory.log, directory.tensorboard)
        logger.scalars = phases.timed("logging", logger.scalars)  # type: ignore[method-assign]
        with directory.training():
            Session(directory, trainer, data, logger=logger).run()
        logger.close()
    StepRandomness.noise, optim.orthogonalize = noise, orthogonalize  # type: ignore[method-assign]
    phases.steps = phases.steps[5:]  # the first allocate
    logging = [1e3 * step["logging"] for step in phases.steps if "logging" in step]
    return phases, statistics.median(logging) / settings.log_every


def report(precision: str, optimizer: str, steps: int) -> None:
    phases, logging = measure(precision, optimizer, steps)
    names = sorted({name for step in phases.steps for name in step} - {"logging"})
    parts = {name: phases.median(name) for name in names} | {"logging": logging}
    total = sum(parts.values())
    network = parts.pop("forward") + parts.pop("backward")
    muon = parts.pop("orthogonalisation", 0.0)
    around = sum(parts.values())
    print(f"\nquick start, {precision}, {optimizer}, {torch.get_num_threads()} threads, medians of "
          f"{len(phases.steps)} steps: {total:.1f} ms a step")  # fmt: skip
    print(f"  {'forward and backward':22s} {network:8.2f} ms  {100 * network / total:5.1f} %")
    if muon:
        print(f"  {'orthogonalisation':22s} {muon:8.2f} ms  {100 * muon / total:5.1f} %")
    print(f"  {'all around them':22s} {around:8.2f} ms  {100 * around / total:5.1f} %")
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"    {name:20s} {value:8.2f} ms  {100 * value / total:5.1f} %")


def report_checkpoint() -> None:
    """The pause that a checkpoint makes, first and later, and how long the write takes."""
    values = runpy.run_path(str(CONFIGS / "vp_fashion.py"))["get_config"]().to_dict()
    data = build.build_data(values)
    model = build.build_model(values, data.spec)
    trainer = Trainer(model, build.build_objective(values), build.build_training(values))
    x0 = next(data.batches(trainer.settings.batch_size, 0))[0]
    trainer.update(x0)
    pauses, writes = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = BackgroundWriter()
        for step in range(4):
            started = time.perf_counter()

            def write(parts: dict[str, Any], step: int = step) -> None:
                save_checkpoint(Path(folder), step, Checkpoint(**parts))

            writer.submit("checkpoint", write, vars(trainer.checkpoint()))
            pauses.append(1e3 * (time.perf_counter() - started))
            trainer.update(x0)
            writer.wait()
            writes.append(1e3 * (time.perf_counter() - started))
    print(f"\ncheckpoint: pauses training {pauses[0]:.0f} ms at first, {min(pauses[1:]):.0f} ms "
          f"later; on the disk after {statistics.median(writes):.0f} ms")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as main.py does
    for precision, optimizer in (("bf16", "muon"), ("bf16", "adam"), ("fp32", "adam")):
        report(precision, optimizer, arguments.steps)
    report_checkpoint()


if __name__ == "__main__":
    main()
