r"""FID's own network: Inception of 2015-12-05 with the resize of TensorFlow 1 (1706.08500).

Its weights are a file that torch-fidelity and pytorch-fid share (weights-inception-2015-12-05,
95 MB, Apache-2.0); no registry package holds them. With it the features are those of the published
FIDs, and numbers compare with them. What differs from other Inceptions: no biases in convolutions,
a batch norm of eps 1e-3, average pooling that counts no padding, a maximum in the last pooling,
and 1008 classes.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError, cache_dir

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256_START = "6726825d"  # of the published file, as its name says
SIZE = 299


def resize_tf1(images: Tensor, size: int = SIZE) -> Tensor:
    """Bilinear as TensorFlow 1 did it, float (B, C, H, W) to (B, C, size, size).

    Place i of the result is place i n/size of the n given: no centres of pixels, no antialiasing.
    """
    for axis in (2, 3):
        n = images.shape[axis]
        place = torch.arange(size, dtype=torch.float64, device="cpu") * (n / size)
        low = place.floor().long()
        weight = (place - low).to(images).view(-1, *[1] * (3 - axis))
        low = low.to(images.device)
        lower = images.index_select(axis, low)
        upper = images.index_select(axis, (low + 1).clamp(max=n - 1))
        images = lower + (upper - lower) * weight
    return images


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, stride: int = 1, padding: Any = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


POOLS = {"average": _average, "maximum": _maximum, "halve": _halve}
Layer = tuple[int, Any, int, Any]  # outputs, kernel, stride, padding


class Block(nn.Module):
    """Ways through named layers, side by side: their results are put together.

    layers: by name; routes: names in order, separated by blanks, pools among them.
    """

    def __init__(self, inputs: int, layers: dict[str, Layer], routes: tuple[str, ...]):
        super().__init__()
        self.routes = [tuple(route.split()) for route in routes]
        for route in self.routes:
            width = inputs
            for name in route:
                if name not in POOLS:
                    self.add_module(f"branch{name}", Conv(width, *layers[name]))
                    width = layers[name][0]

    def forward(self, x: Tensor) -> Tensor:
        found: dict[tuple[str, ...], Tensor] = {
            (): x
        }  # what routes begin with together is computed once
        for route in self.routes:
            for i, name in enumerate(route):
                if route[: i + 1] not in found:
                    layer = POOLS.get(name) or getattr(self, f"branch{name}")
                    found[route[: i + 1]] = layer(found[route[:i]])
        return torch.cat([found[route] for route in self.routes], 1)


def _fives(inputs: int, pool: int) -> Block:
    layers: dict[str, Layer] = {
        "1x1": (64, 1, 1, 0), "5x5_1": (48, 1, 1, 0), "5x5_2": (64, 5, 1, 2),
        "3x3dbl_1": (64, 1, 1, 0), "3x3dbl_2": (96, 3, 1, 1), "3x3dbl_3": (96, 3, 1, 1),
        "_pool": (pool, 1, 1, 0),
    }  # fmt: skip
    return Block(
        inputs, layers, ("1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "average _pool")
    )


def _to_17() -> Block:
    layers: dict[str, Layer] = {
        "3x3": (384, 3, 2, 0),
        "3x3dbl_1": (64, 1, 1, 0), "3x3dbl_2": (96, 3, 1, 1), "3x3dbl_3": (96, 3, 2, 0),
    }  # fmt: skip
    return Block(288, layers, ("3x3", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "halve"))


def _sevens(width: int) -> Block:
    across, down = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    layers: dict[str, Layer] = {
        "1x1": (192, 1, 1, 0), "7x7_1": (width, 1, 1, 0), "7x7_2": (width, *across),
        "7x7_3": (192, *down), "7x7dbl_1": (width, 1, 1, 0), "7x7dbl_2": (width, *down),
        "7x7dbl_3": (width, *across), "7x7dbl_4": (width, *down), "7x7dbl_5": (192, *across),
        "_pool": (192, 1, 1, 0),
    }  # fmt: skip
    long = "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5"
    return Block(768, layers, ("1x1", "7x7_1 7x7_2 7x7_3", long, "average _pool"))


def _to_8() -> Block:
    layers: dict[str, Layer] = {
        "3x3_1": (192, 1, 1, 0), "3x3_2": (320, 3, 2, 0),
        "7x7x3_1": (192, 1, 1, 0), "7x7x3_2": (192, (1, 7), 1, (0, 3)),
        "7x7x3_3": (192, (7, 1), 1, (3, 0)), "7x7x3_4": (192, 3, 2, 0),
    }  # fmt: skip
    return Block(768, layers, ("3x3_1 3x3_2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4", "halve"))


def _threes(inputs: int, pool: str) -> Block:
    across, down = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    layers: dict[str, Layer] = {
        "1x1": (320, 1, 1, 0), "3x3_1": (384, 1, 1, 0), "3x3_2a": (384, *across),
        "3x3_2b": (384, *down), "3x3dbl_1": (448, 1, 1, 0), "3x3dbl_2": (384, 3, 1, 1),
        "3x3dbl_3a": (384, *across), "3x3dbl_3b": (384, *down), "_pool": (192, 1, 1, 0),
    }  # fmt: skip
    double = "3x3dbl_1 3x3dbl_2"
    routes = ("1x1", "3x3_1 3x3_2a", "3x3_1 3x3_2b", f"{double} 3x3dbl_3a", f"{double} 3x3dbl_3b")
    return Block(inputs, layers, (*routes, f"{pool} _pool"))


class Inception(nn.Module):
    """uint8 (B, 3, H, W) of any size to pool3, (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            _fives(192, 32),
            _fives(256, 64),
            _fives(288, 64),
        )
        self.Mixed_6a, self.Mixed_6b = _to_17(), _sevens(128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _sevens(160), _sevens(160), _sevens(192)
        self.Mixed_7a = _to_8()
        self.Mixed_7b, self.Mixed_7c = _threes(1280, "average"), _threes(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        x = (resize_tf1(images.to(self.fc.weight)) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))
        x = _halve(x)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


class InceptionFeatures:
    """uint8 (B, C, H, W) -> (B, 2048), by weights from a file.

    weights: the file; that in $SCORE_SDE_INCEPTION, or of the cache folder, when None. ``name``
    is "inception-2015-12-05", and distances are called FID, only for the published file; another
    file of this network has its checksum in the name. Grey images are taken as three equal
    channels.
    """

    def __init__(self, weights: str | Path | None = None):
        path = Path(weights or os.environ.get("SCORE_SDE_INCEPTION") or cache_dir() / FILE)
        self.net = Inception()
        digest = _load(self.net, path)
        genuine = digest.startswith(SHA256_START)
        self.name = "inception-2015-12-05" + ("" if genuine else f"-like-{digest[:8]}")
        self.net.eval().requires_grad_(False)
        self.facts: dict[str, Any] = {
            "extractor": self.name,
            "checksum": digest[:16],
            "resize": "TensorFlow 1 bilinear to 299",
            "preprocessing": "(x - 128)/128, pool3",
        }
        if genuine:
            self.facts["frechet_name"] = "FID"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.net(as_rgb(images).to(self.net.fc.weight.device)).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Without the bias of the last layer, as published inception scores are."""
        return features.to(self.net.fc.weight) @ self.net.fc.weight.T


def as_rgb(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) with three channels; UserError for other numbers of them."""
    if images.shape[1] not in (1, 3):
        raise UserError(
            f"these features are of grey or RGB images; {images.shape[1]} channels are given "
            "(data.convert=rgb)."
        )
    return images.expand(-1, 3, -1, -1)


def _load(net: nn.Module, path: Path) -> str:
    """Weights from a file; its SHA-256. UserError says how to get one."""
    if not path.is_file():
        raise UserError(
            f"there are no weights of FID's Inception at {path}. Download {FILE} from the releases "
            "of github.com/toshas/torch-fidelity (v0.2.0) on a machine with a network, and put it "
            "there or name it in the environment variable SCORE_SDE_INCEPTION. Without it, choose "
            "--features lite0, whose distances have another name."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} does not hold the weights of FID's Inception ({reason})."
        ) from error
    return digest
