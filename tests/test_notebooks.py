"""The notebooks: as committed (quick), and run from a fresh kernel (slow)."""

import os
import re
from pathlib import Path

import pytest
from launching import start

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {
    "01": 5,
    "02": 4,
    "03": 4,
    "04": 5,
    "05": 5,
    "06": 4,
    "07": 5,
    "08": 5,
    "09": 5,
    "10": 7,
    "11": 7,
}  # at least; the slider is none

# Trained on smaller batches, or for fewer updates, than a reader has them: asserts of cells hold.
LESS = {
    "02": {"(512,)": "(128,)", "range(1500)": "range(500)", "step == 1000": "step == 350"},
    "03": {"(512,)": "(128,)"},
    "04": {"in (50, 200)": "in (20, 80)", "(50, 2)": "(30, 2)", "range(50)": "range(30)"},
    "05": {"data.sample(512)": "data.sample(128)", "1500)": "700)"},
    "06": {
        '"--config.training.minutes=0.75"': '"--config.training.minutes=0", '
        '"--config.training.steps=40"',
        "200, 1000)": "50, 100)",
        '"ancestral", 200]': '"ancestral", 50]',
        '"ancestral", 1000]': '"ancestral", 100]',
    },
    "07": {"data.sample(512)": "data.sample(128)", "1500)": "500)"},
    "08": {"steps=200": "steps=120", "64 * 200": "64 * 120"},
    "09": {
        '"training.steps": 150': '"training.steps": 60',
        '"training.steps": 250': '"training.steps": 125',
        '"training.steps": 450': '"training.steps": 300',
        '"training.steps": 750': '"training.steps": 500',
        '"training.steps": 400': '"training.steps": 300',
    },
    "10": {"(48, 1, 28, 28)": "(16, 1, 28, 28)"},
}


def read(path: Path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [o for cell in notebook.cells for o in cell.get("outputs", [])]


def figures(notebook) -> int:
    return sum(bool({"image/png", "image/gif"} & set(o.get("data", {}))) for o in outputs(notebook))


def words(notebook) -> list[str]:
    """What it prints, without numbers."""
    printed = (o.text for o in outputs(notebook) if o.output_type == "stream")
    return re.findall(r"[A-Za-z_]{3,}", "".join(printed))


def test_all_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == sorted(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_outputs_and_without_accidents(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {(o.output_type, o.get("name")) for o in outputs(notebook)}
    assert not [kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"]
    assert figures(notebook) >= FIGURES[path.stem[:2]]
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith("# ") and "You will" in first  # what the reader will see
    assert re.findall(r"^(\d)\. ", last.split("Three things to try")[1], flags=re.M) == list("123")
    assert any("assert " in cell.source for cell in code)  # key numbers are checked as it runs
    assert not re.search(r"/(work|root|home/\w+|tmp)/", path.read_text())


def kernel(connection: str) -> None:
    """A kernel in this process, which has imported what it would else import again."""
    from ipykernel.kernelapp import launch_new_instance

    os.environ.pop("MPLBACKEND", None)
    launch_new_instance(argv=["-f", connection, "--HistoryManager.hist_file=:memory:"])


@pytest.fixture
def fresh_kernel(tmp_path):
    """The manager of a kernel that has run nothing, in a process and a folder of its own."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import KernelProvisionerBase

    class Started(KernelProvisionerBase):
        """What a manager asks of a process that runs already; it is ended below."""

        has_process = True

        async def poll(self):
            return process.exitcode

        async def launch_kernel(self, cmd, **named): ...
        async def wait(self): ...
        async def send_signal(self, signum): ...
        async def kill(self, restart=False): ...
        async def terminate(self, restart=False): ...
        async def cleanup(self, restart=False): ...

    manager = AsyncKernelManager()
    manager.provisioner = Started(parent=manager)
    manager.write_connection_file()
    process = start(kernel, manager.connection_file, folder=tmp_path)
    yield manager
    process.kill()
    process.join()
    manager.cleanup_connection_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_a_fresh_kernel(path, fresh_kernel):
    """No error (asserts on key numbers are cells), no warning, the figures and lines committed."""
    from nbclient import NotebookClient

    notebook = read(path)
    for said, less in LESS.get(path.stem[:2], {}).items():
        assert any(said in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(said, less)
    NotebookClient(notebook, km=fresh_kernel, timeout=300).execute()
    warnings = [o.text for o in outputs(notebook) if o.get("name") == "stderr"]
    assert not warnings
    committed = read(path)
    assert figures(notebook) == figures(committed)
    assert words(notebook) == words(committed)  # what it prints, but for the numbers
