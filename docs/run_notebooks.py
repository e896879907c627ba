"""Run notebooks from fresh kernels and keep what they show, in figures of 256 colours each.

pip install -e ".[kernel]"
python docs/run_notebooks.py 01 03      (all of them without a name)
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from palette import with_palette

ROOT = Path(__file__).resolve().parents[1]


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


if __name__ == "__main__":
    main()
