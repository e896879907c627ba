"""Run notebooks from fresh kernels and keep what they show, in figures of 256 colours each.

    pip install -e ".[notebooks]"
    python docs/run_notebooks.py 01 03      (all of them without a name)

Sharp figures are large files: a palette makes them three times smaller. Its colours are the means
of those near them (k-means), so that shades stay smooth and no eye sees a difference.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COLOURS, ROUNDS = 256, 8


def main() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if len(sys.argv) == 1 or path.name[:2] in sys.argv[1:]:
            run(path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def run(path: Path) -> None:
    """Run one, in an empty folder, and write it with what it shows."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", record_timing=False,
            coalesce_streams=True, resources={"metadata": {"path": folder}},
        ).execute()  # fmt: skip
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                data = base64.b64decode(output.data["image/png"])
                small = min(data, with_palette(data), key=len)
                output.data["image/png"] = base64.b64encode(small).decode()
    nbformat.write(notebook, path)


def with_palette(png: bytes) -> bytes:
    """The same picture with a palette of `COLOURS` colours, transparency among them."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    pixels = np.frombuffer(picture.tobytes(), np.uint32)
    seen, places, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    points = seen.view(np.uint8).reshape(-1, 4).astype(np.float64)
    start = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).convert("RGBA")
    palette = np.unique(np.frombuffer(start.tobytes(), np.uint32)).view(np.uint8).reshape(-1, 4)
    often = points[np.argsort(-counts)[: COLOURS - len(palette)]]
    centres = np.concatenate([palette.astype(np.float64), often])
    for _ in range(ROUNDS):
        nearest, apart = assign(points, centres)
        total = np.bincount(nearest, counts, len(centres))
        sums = [np.bincount(nearest, counts * axis, len(centres)) for axis in points.T]
        used = total > 0
        centres[used] = (np.stack(sums, 1) / np.maximum(total, 1)[:, None])[used]
        centres[~used] = points[np.argsort(-apart * counts)[: np.sum(~used)]]
    nearest, _ = assign(points, centres)
    found = Image.frombytes("P", picture.size, nearest[places].astype(np.uint8).tobytes())
    found.putpalette(centres.round().astype(np.uint8).tobytes(), "RGBA")
    file = io.BytesIO()
    found.save(file, "png", optimize=True)
    return file.getvalue()


def assign(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each point, and its squared distance."""
    apart = np.square(points).sum(1)[:, None] - 2 * points @ centres.T + np.square(centres).sum(1)
    return apart.argmin(1), apart.min(1)


if __name__ == "__main__":
    main()
