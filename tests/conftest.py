"""What many tests need: every process, and small data whose score is known."""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from score_sde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowSDE,
    Gaussian,
    GaussianMixture,
    SubVPSDE,
    TableSDE,
    train,
)
from score_sde.devices import pick_device

ALONE = "PYTEST_XDIST_WORKER" not in os.environ  # else a core is for each of pytest's processes
# Of the commands started, too; what the first process says is not for those that it starts.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "2") if ALONE else "1"
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp()  # runs are signed with a key of the tests'

# A commit passes or fails, whenever it is tried; --hypothesis-profile=default looks for more.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


# Files that take longest, slow tests with them, which begin first, so that pytest's processes end
# together; those of whose tests each is for whoever is free, since they share little.
LONGEST = ["diagnose", "shapes", "notebooks", "outputs", "diagnose_images", "sharding", "resume"]
LONGEST += ["sharded_checkpoints", "distributed", "docs", "explorer_browser", "run", "solvers"]
LONGEST += ["sampling", "verify", "likelihood", "labels", "analysis", "logs", "hostile"]
APART = {"notebooks", "outputs", "explorer_browser", "distributed", "resume"}


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file of tests is for one process, which makes what they share once, but for `APART`."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if Path(file).stem.removeprefix("test_") in APART else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "where the numerical suite (test_device.py) runs: cpu, cuda, cuda:1 or mps"
    parser.addoption("--device", default="cpu", help=help_)


def pytest_configure(config: pytest.Config) -> None:
    """A device that is not there ends all, in a sentence: tests that pass would say nothing."""
    try:
        pick_device(config.getoption("--device"))
    except (ValueError, RuntimeError) as error:
        raise pytest.UsageError(f"--device: {error}") from error


@pytest.fixture
def device(request) -> torch.device:
    """The device of ``--device``."""
    return pick_device(request.config.getoption("--device"))


@pytest.fixture
def wide(device, request) -> torch.dtype:
    """float64, in which orders are measured; the test is skipped by name where there is none."""
    if device.type == "mps":
        pytest.skip(f"{request.node.name} needs float64, which {device.type} has not")
    return torch.float64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@dataclass(frozen=True)
class QuarterSDE(SDE):
    """A user's process: two functions and nothing else."""

    t_max: float = 0.99

    def alpha(self, t):
        return torch.cos(t * math.pi / 2)

    def sigma(self, t):
        return torch.sin(t * math.pi / 2)


@pytest.fixture
def one_thread():
    """Small networks on a busy machine spend their time waiting for the second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """The directory of a run of five updates on points in the plane, one for each file of tests."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    config = {
        "data": {"name": "ring8", "scaling": "standard"},
        "sde": {"name": "vp"},
        "net": {"name": "mlp", "width": 16, "depth": 1},
        "training": {"steps": 5, "batch_size": 64, "sample_every": 0, "tensorboard": False},
        "sampling": {"method": "euler", "steps": 4, "batch_size": 250},
    }
    train(config, folder, device="cpu")
    return folder


@pytest.fixture
def edm_modules(monkeypatch):
    """Modules of EDM's names, so that pickling finds them."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the source was about to be executed")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(megabytes): a folder on a file system of this size (root can mount, on Linux)."""
    folder = tmp_path / "small"

    def make(megabytes: int):
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs root")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a failed file may be open


PROCESSES = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "cosine": CosineSDE(),
    "flow": FlowSDE(),
    "edm": EDMSDE(),
    "table": TableSDE(),
    "table_cosine": TableSDE("cosine"),
    "user": QuarterSDE(),
}


@pytest.fixture(params=list(PROCESSES))
def sde(request) -> SDE:
    return PROCESSES[request.param]


@pytest.fixture(params=["vp", "subvp", "ve"])
def song_sde(request) -> SDE:
    return PROCESSES[request.param]


def correlated_gaussian(shape: tuple[int, ...], seed: int = 0) -> Gaussian:
    """A Gaussian with correlated coordinates, variances about 0.25 and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    dim = math.prod(shape)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    covariance = 0.25 * factor @ factor.T + 0.02 * torch.eye(dim, dtype=torch.float64)
    mean = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Gaussian(mean, covariance)


@pytest.fixture
def mixture() -> GaussianMixture:
    """Three correlated components in the plane."""
    means = [[-1.0, 0.3], [0.8, 0.9], [0.2, -1.1]]
    covariances = [
        [[0.10, 0.05], [0.05, 0.08]],
        [[0.05, -0.03], [-0.03, 0.12]],
        [[0.20, 0.00], [0.00, 0.02]],
    ]
    return GaussianMixture([0.5, 0.3, 0.2], means, covariances)


def times_of(sde: SDE, n: int = 9) -> torch.Tensor:
    """Float64 times spread over the process, away from the ends of a table's segments."""
    return torch.linspace(sde.t_min * 1.7, sde.t_max * 0.99, n, dtype=torch.float64)


@pytest.fixture
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
