"""Damaged run directories, or ones that say what no run says: a sentence, or put up with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_run import command

from score_sde import load
from score_sde.runs import listing
from score_sde.runs.directory import RunError
from score_sde.training import CheckpointError

STEP = "checkpoints/step_00000003"


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("damaged") / "run"
    small = ["--config.training.steps=3", "--config.training.batch_size=16"]
    small += ["--config.net.width=8", "--config.training.tensorboard=False"]
    fast = ["--config.sampling.steps=1", "--config.sampling.batch_size=4"]
    assert command("--config", "toy2d", "--workdir", str(workdir), *small, *fast) == 0
    return workdir


def said(*keys_and_value) -> Callable[[Path], None]:
    """config.json with another value at these keys, or without the key ("delete")."""
    *keys, last, value = keys_and_value

    def damage(run: Path) -> None:
        whole = json.loads((run / "config.json").read_text())
        inner = whole
        for key in keys:
            inner = inner[key]
        if value == "delete":
            del inner[last]
        else:
            inner[last] = value
        (run / "config.json").write_text(json.dumps(whole))

    return damage


def file(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


REFUSED = {
    "a number": (file("config.json", "3"), "must be a dictionary (got 3)"),
    "null": (file("config.json", "null"), "must be a dictionary (got None)"),
    "a list": (file("config.json", "[]"), "must be a dictionary (got [])"),
    "nothing": (file("config.json", ""), "must be JSON"),
    "binary": (file("config.json", b"\xff\xfe\0"), "must be JSON"),
    "nested": (file("config.json", "[" * 100_000), "must be JSON"),
    "NaN": (file("config.json", "NaN"), "must be a dictionary (got nan)"),
    "no keys": (file("config.json", "{}"), "folder of another toolkit"),
    "config null": (said("config", None), "config must be a dictionary"),
    "config a list": (said("config", []), "config must be a dictionary"),
    "config empty": (said("config", {}), "config.sde is missing"),
    "net null": (said("config", "net", None), "config.net must be a dictionary (got None)"),
    "net a number": (said("config", "net", 3), "config.net must be a dictionary"),
    "no sde": (said("config", "sde", "delete"), "config.sde is missing"),
    "another option": (said("config", "net", "foo", 3), "foo"),
    "spec null": (said("data_spec", None), "data_spec must be a dictionary"),
    "spec more": (said("data_spec", "foo", 3), "data_spec.foo is unknown"),
    "no shape": (said("data_spec", "shape", "delete"), "data_spec.shape is missing"),
    "shape text": (said("data_spec", "shape", "x"), "data_spec.shape must be a list"),
    "shape negative": (
        said("data_spec", "shape", [-1]),
        "(item 1) must be at least 1",
    ),
    "shape huge": (said("data_spec", "shape", [10**10]), "data_spec.shape must be that of an item"),
    "shape of floats": (
        said("data_spec", "shape", [1.5]),
        "(item 1) must be a whole",
    ),
    "shape of others": (said("data_spec", "shape", [3]), "size mismatch"),
    "scale text": (said("data_spec", "scale", "x"), "data_spec.scale must be a number"),
    "width huge": (said("config", "net", "width", 10**10), "must be at most"),
    "width large": (said("config", "net", "width", 3000), "but the weights beside it hold"),
    "depth huge": (said("config", "net", "depth", 10**10), "must be at most"),
    "depth large": (said("config", "net", "depth", 10**6), "must be at most"),
    "width other": (said("config", "net", "width", 16), "size mismatch for"),
    "std null": (said("data_std", None), "data_std must be a number"),
    "std NaN": (said("data_std", float("nan")), "data_std must be finite"),
    "no std": (said("data_std", "delete"), "data_std is missing"),
    "a name that is a number": (said("config", "net", "name", 3), "net.name must be a name"),
    "an unknown process": (said("config", "sde", "name", "vpp"), "Did you mean 'vp'"),
    "sampling a number": (said("config", "sampling", 3), "config.sampling must be a dictionary"),
    "classes a number": (said("data_spec", "classes", 3), "data_spec.classes must be a list"),
    "weights cut": (file(f"{STEP}/ema.safetensors", b"x" * 100), "No checkpoint of"),
    "weights gone": (lambda run: (run / STEP / "ema.safetensors").unlink(), "No checkpoint of"),
    "meta garbage": (file(f"{STEP}/meta.json", "x"), "No checkpoint of"),
    "meta null": (file(f"{STEP}/meta.json", "null"), "No checkpoint of"),
    "no meta": (lambda run: (run / STEP / "meta.json").unlink(), "has no checkpoint yet"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint yet"),
}
TAKEN = {
    "an unknown fact": said("foo", 1),
    "a stray backup": lambda run: shutil.copytree(
        run / STEP, run / "checkpoints" / "step_00000060_backup"
    ),
    "a stray file": file("checkpoints/notes.txt", "x"),
    "a stray file like a step": file("checkpoints/step_00000090", "x"),
    "garbage in the log": file("log.jsonl", b'\xff\0garbage\n{"step": "x"}\n[1]\n'),
    "texts in the log": file("log.jsonl", '{"step": "x", "loss": "y", "seconds": []}\n'),
    "nulls in the log": file("log.jsonl", '{"step": null, "loss": null, "seconds": null}\n'),
    "infinities in the log": file("log.jsonl", '{"step": Infinity, "loss": NaN}\n'),
    "no log": lambda run: (run / "log.jsonl").unlink(),
    "a mark of garbage": file("run.json", "x"),
    "a mark that is a list": file("run.json", "[]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_damaged_run_is_a_sentence(points, tmp_path, capsys, kind):
    damage, message = REFUSED[kind]
    run = Path(shutil.copytree(points, tmp_path / "run"))
    damage(run)
    sample = ["--mode=sample", "--num_samples=1", "--device=cpu"]
    assert command("--workdir", str(run), *sample) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and "mistake" not in error, error
    assert not (run / "samples").exists()
    assert listing.main([str(run)]) == 0


@pytest.mark.parametrize("kind", TAKEN)
def test_what_does_not_matter_is_put_up_with(points, tmp_path, capsys, kind):
    run = Path(shutil.copytree(points, tmp_path / "run"))
    TAKEN[kind](run)
    assert load(run, device="cpu").sample(1).x.shape == (1, 2)
    assert listing.main([str(tmp_path)]) == 0
    assert "run" in capsys.readouterr().out


def test_an_exported_folder_has_one_set_of_weights(points, tmp_path):
    out = ["--mode=export", f"--out={tmp_path / 'exported'}"]
    assert command("--workdir", str(points), *out) == 0
    assert load(tmp_path / "exported").step == 3
    with pytest.raises(RunError, match="has one set of weights; leave out weights='nonsense'"):
        load(tmp_path / "exported", weights="nonsense")
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load(tmp_path / "exported")
