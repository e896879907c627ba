"""The layers of DESIGN: imports go down only, and house rules that a machine can check."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "score_sde"
LAYERS = [  # from the bottom; a file may import what is in lower rows, and its own package
    {"version", "checks"},
    {"devices", "writing"},
    {"processes"},
    {"scores", "noise", "distributed"},
    {"models", "losses", "exact", "nets", "data", "ode"},
    {"likelihood", "sampling", "restoration", "conditioning"},
    {"training", "evaluation", "convert", "plotting"},
    {"diagnosis"},
    {"build"},
    {"runs"},
    {"explorer"},
    {"cli"},
]
ONLY_TORCH = {"nets", "data"}
EVERYWHERE = {"checks", "devices", "version", "writing"}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


@functools.cache
def modules() -> list[tuple[str, Path, ast.Module]]:
    """Room, file and syntax tree of all that is in the house."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        top = relative.parts[0].removesuffix(".py")
        if relative.name == "__init__.py" and len(relative.parts) == 1:
            continue
        found.append((top, path, ast.parse(path.read_text())))
    return found


def imported(tree):
    """Top-level parts of ours, and packages of others."""
    ours, others = set(), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [node.module]
                if node.module != "score_sde"
                else [f"score_sde.{a.name}" for a in node.names]
            )
        for name in names:
            head, *rest = name.split(".")
            if head == "score_sde":
                ours.add(rest[0])
            else:
                others.add(head)
    return ours, others


def test_imports_go_down_only():
    for top, path, tree in modules():
        ours, _ = imported(tree)
        for other in ours - {top}:
            assert RANK[other] < RANK[top], f"{path} imports {other}, which is not below {top}"
            if other not in EVERYWHERE:
                assert top not in ONLY_TORCH, f"{path}: {top} must import nothing of ours"


def arrows() -> set[tuple[str, str]]:
    """(a, b) for each pair of rooms, files and packages right below score_sde, a importing b."""
    found = {(top, other) for top, _, tree in modules() for other in imported(tree)[0] - {top}}
    return {(a, b) for a, b in found if b not in EVERYWHERE}


def floors(arrows: set[tuple[str, str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports."""
    below: dict[str, set[str]] = {room: set() for arrow in arrows for room in arrow}
    for a, b in arrows:
        below[a].add(b)
    floor: dict[str, int] = {}
    while len(floor) < len(below):
        ready = [r for r, under in below.items() if r not in floor and under <= floor.keys()]
        assert ready, "rooms import one another in a circle"
        floor |= {r: 1 + max((floor[b] for b in below[r]), default=0) for r in ready}
    return floor


def test_the_house_does_not_grow_unnoticed():
    """Rooms and arrows between them, those to checks and version apart; raise these with care."""
    found = arrows()
    floor = floors(found)
    assert len(floor) <= 23 and max(floor.values()) <= 7 and len(found) <= 75, (floor, len(found))


def test_only_few_rooms_know_the_command_line():
    """A mode is a file of runs: the command line knows these and nothing below."""
    assert {b for a, b in arrows() if a == "cli"} == {"explorer", "runs"}


def test_absl_and_ml_collections_live_in_cli_and_configs_only():
    for top, path, tree in modules():
        _, others = imported(tree)
        if top != "cli":
            assert not others & {"absl", "ml_collections"}, path


def test_only_build_reads_config_fields():
    for top, path, tree in modules():
        if top in ("build", "runs", "cli"):
            continue
        for node in ast.walk(tree):
            # diffusers' objects have a config of their own, which convert may read.
            attribute = None if top == "convert" else getattr(node, "attr", None)
            name = getattr(node, "id", attribute)
            assert name != "config", f"{path}:{getattr(node, 'lineno', 0)} knows of a config"


def test_no_isinstance_on_processes_no_manual_broadcasting_no_utils():
    processes = {"SDE", "VPSDE", "SubVPSDE", "VESDE", "CosineSDE", "FlowSDE", "EDMSDE", "TableSDE"}
    for _, path, tree in modules():
        assert path.stem not in ("utils", "helpers", "misc")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not names & processes, f"{path}:{node.lineno}"
        if path.parts[-2] != "nets" and path.stem != "batches":
            assert "[:, None, None, None]" not in path.read_text(), path


def test_importing_starts_nothing_and_needs_no_extra():
    """No compiler, download, process group, CUDA context, TensorBoard or command line; and
    `pip install score-sde` alone is enough for every module, the command's above all."""
    code = """
import importlib, os, pkgutil, socket, subprocess, sys
os.environ["PATH"] = ""  # no compiler to be found

def forbidden(*a, **k):
    raise AssertionError("import did something")

socket.socket.connect = forbidden
subprocess.Popen.__init__ = forbidden
extras = ["gradio", "transformers", "diffusers", "webdataset", "datasets", "pyarrow",
          "huggingface_hub", "wandb", "IPython", "ipywidgets", "torchvision", "timm"]
sys.modules.update(dict.fromkeys(extras))  # None: cannot be imported
import score_sde, torch
heavy = {"tensorboard", "tensorflow", "jax", "matplotlib", "absl", "ml_collections", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.modules["matplotlib"] = None
found = [m.name for m in pkgutil.walk_packages(score_sde.__path__, "score_sde.")]
assert "score_sde.cli.command" in found and "score_sde.explorer.page" in found
for name in found:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


if __name__ == "__main__":  # python tests/test_layers.py draws the house
    house = arrows()
    floor = floors(house)
    for room in sorted(floor, key=lambda room: (-floor[room], room)):
        below = ", ".join(sorted(b for a, b in house if a == room))
        print(f"{floor[room]:3d} {room:13s} -> {below}")
    print(f"{len(floor)} rooms, {max(floor.values())} floors, {len(house)} arrows")
