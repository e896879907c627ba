"""A small classifier of garments, whose features are the space of the quick start's distances.

It was trained on the 60 000 training images of Fashion-MNIST (1708.07747), not on the 6 000 that
ship with the package, and ships with it (assets/fashion_classifier.safetensors, float16). To make
it again, in a few minutes on two CPU cores:

    apt-get install dataset-fashion-mnist
    python -m score_sde.evaluation.classifier --fashion /usr/share/datasets/fashion-mnist --out FILE
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save_file
from torch import Tensor, nn

from score_sde.checks import UserError
from score_sde.noise import seed_torch

MEAN, STD = 0.286, 0.353  # of the 60 000 images on [0, 1]


class FashionNet(nn.Module):
    """Three convolutions and two linear layers on uint8 (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if outputs < 64 or inputs == 32 else []
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def features(self, images: Tensor) -> Tensor:
        """uint8 (B, 1, 28, 28) to (B, 128)."""
        x = (images.float() / 255 - MEAN) / STD
        return self.body(x.to(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class FashionFeatures:
    """uint8 (B, 1, 28, 28) -> (B, 128): the layer before the last of the shipped classifier."""

    name = "fashion-classifier"
    dim = 128
    classes = (  # of its outputs, by the data's own names
        "t-shirt", "trousers", "pullover", "dress", "coat",
        "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    def __init__(self) -> None:
        file = resources.files("score_sde.evaluation") / "assets" / "fashion_classifier.safetensors"
        content = file.read_bytes()
        self.net = FashionNet()
        self.net.load_state_dict(load(content))
        self.net = self.net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.facts: dict[str, Any] = {
            "extractor": self.name,
            "checksum": hashlib.sha256(content).hexdigest()[:16],
            "resize": "none",
            "preprocessing": f"(x/255 - {MEAN})/{STD}",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 28, 28):
            raise UserError(
                f"the Fashion-MNIST classifier takes grey images of 28 x 28, these are of shape "
                f"{tuple(images.shape[1:])}: choose other features."
            )
        device = next(self.net.parameters()).device
        return self.net.features(images.to(device)).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Of the ten classes, (B, 10), from the features (B, 128)."""
        return self.net.head(features.float())


def read_fashion(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) and labels (N,) of "train" or "t10k", from the IDX .gz files."""

    def read(name: str, offset: int) -> Tensor:
        content = gzip.open(folder / f"{part}-{name}-ubyte.gz").read()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=offset).copy())

    return read("images-idx3", 16).reshape(-1, 1, 28, 28), read("labels-idx1", 8).long()


def train_classifier(
    images: Tensor, labels: Tensor, epochs: int = 3, batch: int = 128
) -> FashionNet:
    """AdamW with one cycle of its learning rate."""
    seed_torch(0)
    net = FashionNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(images) // batch * epochs
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    """Train the classifier and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--fashion", type=Path, required=True, help="folder of the IDX .gz files")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    arguments = parser.parse_args()
    net = train_classifier(*read_fashion(arguments.fashion, "train"))
    state = {
        key: value.contiguous().half() if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }
    save_file(state, arguments.out)
    net.load_state_dict(state)
    images, labels = read_fashion(arguments.fashion, "t10k")
    with torch.no_grad():
        guesses = torch.cat([net(part).argmax(1) for part in images.split(500)])
    print(f"{float((guesses == labels).float().mean()):.2%} of the 10 000 test images")


if __name__ == "__main__":
    main()
