"""How good are the quick start's garments? Frechet distance, precision and recall.

    apt-get install dataset-fashion-mnist          # the full set, 60 000 + 10 000 images
    python benchmarks/quick_start.py runs/vp_fashion/samples/*/samples.npz \
        --fashion /usr/share/datasets/fashion-mnist

A small classifier is trained on the 60 000 images (two minutes on two CPU cores, kept in --cache);
its 128 features are the space in which 2 000 samples are compared with the 10 000 test images. No
model of ours has seen the classifier or the test images. The floor is the same figure for 2 000
real training images. Distances in other feature spaces are other numbers: compare ratios to the
floor, and equal numbers of samples.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.data import load_data


class Classifier(nn.Module):
    """A plain convolutional network; `features` (B, 128) come before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if outputs < 64 or inputs == 32 else []
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def features(self, images: Tensor) -> Tensor:
        """uint8 (B, 28, 28) to (B, 128)."""
        x = (images[:, None].float() / 255 - 0.286) / 0.353
        return self.body(x.to(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def read_idx(path: Path, offset: int) -> Tensor:
    """An IDX .gz file of bytes."""
    return torch.from_numpy(np.frombuffer(gzip.open(path).read(), np.uint8, offset=offset).copy())


def read_fashion(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) and labels (N,) of "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return images, read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8).long()


def train_classifier(images: Tensor, labels: Tensor) -> nn.Module:
    """Three epochs of AdamW."""
    epochs, batch = 3, 128
    torch.manual_seed(0)
    net = Classifier().to(memory_format=torch.channels_last)
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


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), by eigenvalues, float64."""
    values, axes = np.linalg.eigh(np.cov(a, rowvar=False))
    root = (axes * np.sqrt(values.clip(0))) @ axes.T
    cross = np.linalg.eigvalsh(root @ np.cov(b, rowvar=False) @ root).clip(0)
    traces = values.sum() + np.trace(np.cov(b, rowvar=False))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * np.sqrt(cross).sum())


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares inside the other set's k-nearest-neighbour balls (1904.06991)."""
    radius_real = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    radius_fake = torch.cdist(fake, fake).kthvalue(k + 1, dim=1).values
    distance = torch.cdist(real, fake)
    precision = (distance <= radius_real[:, None]).any(0).float().mean()
    recall = (distance <= radius_fake[None]).any(1).float().mean()
    return float(precision), float(recall)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", nargs="*", type=Path, help=".npz files of --mode sample")
    parser.add_argument("--fashion", type=Path, required=True, help="folder of the IDX .gz files")
    parser.add_argument("--cache", type=Path, default=Path("runs/fashion_classifier.pt"))
    arguments = parser.parse_args()

    train, train_labels = read_fashion(arguments.fashion, "train")
    test, test_labels = read_fashion(arguments.fashion, "t10k")
    net = Classifier()
    if arguments.cache.exists():
        net.load_state_dict(torch.load(arguments.cache, weights_only=True))
    else:
        net = train_classifier(train, train_labels)
        arguments.cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), arguments.cache)
    net.eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return torch.cat([net.features(part) for part in images.split(500)])

    with torch.no_grad():
        guesses = torch.cat([net(part).argmax(1) for part in test.split(500)])
    print(f"classifier: {float((guesses == test_labels).float().mean()):.2%} of the test images")
    reference = features(test)
    shuffled = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    some_real = reference[shuffled[:2000]]
    seen = load_data("fashion_mnist").raw.flatten(1).float()

    def report(name: str, images: Tensor) -> None:
        found = features(images)
        distance = frechet_distance(found.double().numpy(), reference.double().numpy())
        precision, recall = precision_recall(some_real, found)
        nearest = torch.cdist(images.flatten(1).float(), seen).min(1).values
        print(f"{name}: n {len(images)}, FD {distance:.3f}, ", end="")
        print(f"precision {precision:.3f}, recall {recall:.3f}; ", end="")
        print(f"median pixel distance to the nearest of the 6 000 {nearest.median():.0f}")

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    report("floor (real training images)", train[order[:2000]])
    report("test images", test[:2000])
    for path in arguments.samples:
        images = torch.from_numpy(np.load(path)["samples"]).reshape(-1, 28, 28)
        if len(images) < 2000:
            print(f"{path}: {len(images)} samples; 2 000 are needed for a comparable figure")
        report(str(path), images[:2000])


if __name__ == "__main__":
    main()
