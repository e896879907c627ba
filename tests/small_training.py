"""A trainer of a small U-Net on thirty pictures of 8 x 8 pixels."""

import json

import numpy as np
import torch

from score_sde import VPSDE, ScoreModel
from score_sde.data import ArrayData, DataSpec
from score_sde.losses import ScoreMatching
from score_sde.nets import UNet
from score_sde.runs.directory import RunDirectory
from score_sde.training import Logger, Session, Trainer, TrainingSettings


def small_trainer(**settings) -> Trainer:
    torch.manual_seed(0)
    net = UNet(1, (8, 8), width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.2)
    settings = {"batch_size": 8, "steps": 100, "warmup_steps": 5, "decay": 0.5, **settings}
    return Trainer(ScoreModel(net, VPSDE()), ScoreMatching(), TrainingSettings(**settings))


def small_data() -> ArrayData:
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8))
    return ArrayData(raw, {}, DataSpec((1, 8, 8), 0.0, 255.0, 256, 127.5, 127.5), flip=True)


def train(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    batches = small_data().batches(8, seed=0, start=trainer.step)
    return [
        {name: float(v) for name, v in trainer.update(next(batches)[0]).items()}
        for _ in range(steps)
    ]


def run_for(trainer: Trainer, data: ArrayData, folder) -> list[dict]:
    """Train to the end; what was logged."""
    directory = RunDirectory(folder)
    with directory.training():
        session = Session(directory, trainer, data, logger=Logger(directory.log))
        try:
            session.run()
        finally:
            session.close()
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
