"""What commands write: a folder for each request, nobody else's files, and whole or not at all."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from launching import command, start

from score_sde import load, log_likelihood, writing
from score_sde.runs import outputs
from score_sde.runs.outputs import Output, open_output, write_beside

SAMPLE = ["--mode=sample", "--num_samples=5", "--batch_size=2", "--sampler=ancestral", "--steps=3"]


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """A run in the plane."""
    workdir = tmp_path_factory.mktemp("outputs") / "run"
    small = ["--config.training.steps=3", "--config.training.batch_size=16"]
    small += ["--config.net.width=8", "--config.training.tensorboard=False"]
    fast = ["--config.sampling.steps=1", "--config.sampling.batch_size=4"]
    assert command("--config", "toy2d", "--workdir", str(workdir), *small, *fast) == 0
    return workdir


@pytest.fixture
def run(points, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(points, tmp_path / "run"))


def samples_of(folder: Path) -> np.ndarray:
    return np.load(folder / "samples.npz")["samples"]


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_different_requests_have_different_folders_and_the_same_one_has_its_own(run):
    base = ["--workdir", str(run), *SAMPLE]
    others = [
        [], ["--first_seed=4"], ["--num_samples=6"], ["--weights=model"], ["--steps=4"],
        ["--option=variance=transition"], ["--batch_size=3"], ["--sampler=heun"],
    ]  # fmt: skip
    for changed in others:
        assert command(*base, *changed) == 0
    folders = list((run / "samples").iterdir())
    assert len(folders) == len(others)
    before = {folder: contents(folder) for folder in folders}
    assert command(*base) == 0
    assert {folder: contents(folder) for folder in folders} == before
    (step,) = (run / "checkpoints").iterdir()
    for name in ("ema.safetensors", "meta.json"):  # other weights of the same name and step
        text = (step / name).read_bytes()
        if name == "ema.safetensors":
            (step / name).write_bytes((step / "model.safetensors").read_bytes())
        else:
            meta = json.loads(text)
            meta.pop("checksum", None)
            meta["checksums"]["ema.safetensors"] = meta["checksums"]["model.safetensors"]
            (step / name).write_text(json.dumps(meta))
    assert command(*base) == 0
    assert len(list((run / "samples").iterdir())) == len(others) + 1


def test_an_interrupted_sampling_goes_on_and_gives_the_same(run, tmp_path, monkeypatch):
    base = ["--workdir", str(run), *SAMPLE]
    assert command(*base, f"--out={tmp_path / 'whole'}") == 0
    write = Output.write_part

    def stop(self, rows, values):
        if rows.start == 2:
            raise KeyboardInterrupt
        write(self, rows, values)

    monkeypatch.setattr(Output, "write_part", stop)
    assert command(*base, f"--out={tmp_path / 'parts'}") == 130
    kept = [p.name for p in (tmp_path / "parts" / "parts").iterdir()]
    assert kept == ["00000000_00000002.npz"]
    written = []
    monkeypatch.setattr(
        Output, "write_part", lambda self, rows, v: (written.append(rows), write(self, rows, v))
    )
    assert command(*base, f"--out={tmp_path / 'parts'}") == 0
    assert written == [range(2, 4), range(4, 5)]
    np.testing.assert_array_equal(samples_of(tmp_path / "parts"), samples_of(tmp_path / "whole"))
    assert not (tmp_path / "parts" / "parts").exists()


def test_a_damaged_part_is_made_again(run, capsys):
    request = {"items": 3}
    output = open_output(load(run, device="cpu"), "test", "x", request)
    output.write_part(range(3), {"a": np.arange(3)})
    path = output.part(range(3))
    whole = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[:-9], whole.replace(b"\x02\0\0\0", b"\x07\0\0\0")):
        path.write_bytes(damaged)
        assert output.read_part(range(3)) is None
        assert "is not a whole part" in capsys.readouterr().out
    path.write_bytes(whole)
    np.testing.assert_array_equal(output.read_part(range(3))["a"], np.arange(3))


FOREIGN = {
    "a settings file": {"settings.json": "{}", "thesis.tex": "x"},
    "an older settings file": {"settings.json": '{"num_samples": 4, "first_seed": 0}'},
    "a settings file that is a list": {"settings.json": "[1]"},
    "a settings file that is garbage": {"settings.json": "\0\1"},
    "a settings file of another format": {"settings.json": '{"format": "other"}'},
    "a mark of another run": {"settings.json": '{"format": "score_sde output", "request": {}}'},
    "a mark with nonsense": {"settings.json": '{"format": "score_sde output", "request": 3}'},
    "samples": {"samples.npz": "mine"},
    "pictures": {"000000.png": "mine", "000001.png": "mine"},
    "a grid": {"grid.png": "mine"},
    "parts": {"parts/00000000_00000002.npz": "mine"},
    "hidden": {".hidden": "mine"},
    "a folder": {"sub/deep/file": "mine"},
    "a run": {"config.json": "{}", "checkpoints/step_00000001/meta.json": "{}"},
    "a temporary file of others": {".samples.npz.partial": "mine"},
    "many": {f"{i}.txt": "mine" for i in range(50)},
    "a link to a file": {"settings.json": "->outside"},
    "a link to a folder": {"parts": "->"},
    "a program": {"Makefile": "all:"},
    "a recipe": {"recipe_5.json": "{}"},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("mode", [SAMPLE, ["--mode=encode", "--num_samples=3", "--nfe=8"]], ids=str)
def test_nobody_elses_files_are_touched(run, tmp_path, capsys, kind, mode):
    place, outside = tmp_path / "place", tmp_path / "outside"
    outside.mkdir()
    (outside / "outside").write_text("mine")
    for name, text in FOREIGN[kind].items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("->"):
            (place / name).symlink_to(outside / text[2:])
        else:
            (place / name).write_text(text)
    before = contents(place), contents(outside)
    assert command("--workdir", str(run), *mode, f"--out={place}") == 2
    assert "give an" in capsys.readouterr().err
    assert (contents(place), contents(outside)) == before


def test_a_file_as_out_and_a_place_that_cannot_be_written_are_sentences(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    base = ["--workdir", str(run), *SAMPLE]
    assert command(*base, f"--out={tmp_path / 'file'}") == 2
    assert "file is a file; give an empty or new folder" in capsys.readouterr().err
    assert command(*base, f"--out={tmp_path / 'file' / 'sub'}") == 2
    assert "Not a directory" in capsys.readouterr().err
    assert command(*base, "--out=/proc/nothing") == 2  # found out by the first result
    assert (tmp_path / "file").read_text() == "mine"


USELESS = [
    ["--mode=sample", "--sampler=heun", "--nfe=1"],
    ["--mode=sample", "--sampler=ancestral", "--nfe=0"],
    ["--mode=sample", "--sampler=ddim", "--steps=9999999"],
    ["--mode=sample", "--option=variance=learned"],
    ["--mode=sample", "--grid=missing.json"],
    ["--mode=sample", "--first_seed=-1"],
    ["--mode=sample", "--num_samples=1000000000000"],
    ["--mode=likelihood", "--nfe=1"],
    ["--mode=likelihood", "--option=solver=nonsense"],
    ["--mode=likelihood", "--option=rtol=-1", "--option=solver=dopri5"],
    ["--mode=encode", "--nfe=1"],
    ["--mode=interpolate", "--nfe=0"],
    ["--mode=interpolate", "--points=1000000000000"],
    ["--mode=calibrate", "--nfe=1"],
]


@pytest.mark.parametrize("words", USELESS, ids=" ".join)
def test_what_cannot_be_done_makes_nothing(run, tmp_path, capsys, words):
    out = [] if "calibrate" in words[0] else [f"--out={tmp_path / 'out'}"]
    before = contents(run)
    assert command("--workdir", str(run), *words, *out) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert not (tmp_path / "out").exists()
    assert contents(run) == before and not (run / "samples").exists()


def test_what_a_killed_process_has_left_beside_a_file_goes(tmp_path):
    """That of another machine after a day; not what one that lives writes, nor others' files."""
    path, killed = tmp_path / "recipe.json", subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    mine = writing.beside(path)
    dead = mine.with_name(mine.name.replace(f"{os.getpid():08x}", f"{killed.pid:08x}", 1))
    other = dead.with_name(dead.name.replace(writing._machine(), "0123abcd"))
    old = other.with_name(other.name.replace("0123abcd", "4567abcd"))
    alien, longer = tmp_path / ".recipe.json.partial", tmp_path / f".a{dead.name}"
    for file in (mine, dead, other, old, alien, longer):
        file.write_text("half")
    os.utime(old, (0, time.time() - 1.01 * writing.LONG))
    os.utime(mine, (0, 0))  # of a process that lives
    shutil.copytree(tmp_path, tmp_path / dead.name.replace("recipe.json", "folder"))
    write_beside(path, "{}")
    with writing.new_folder(tmp_path / "folder"):
        pass
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"recipe.json", "folder", mine.name, other.name, alien.name, longer.name}


def test_processes_that_write_the_same_file_do_not_meet(tmp_path):
    """Here threads, of which each writes in two halves with the others in between."""
    path, met = tmp_path / "moments.bin", threading.Barrier(8)

    def put(i: int) -> None:
        with writing.replacing(path) as file:
            file.write(bytes([i]) * 1000)
            met.wait()
            file.write(bytes([i]) * 1000)

    writers = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = path.read_bytes()
    assert len(content) == 2000 and len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(run, capsys, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    base = ["--workdir", str(run), *SAMPLE]
    with monkeypatch.context() as patch:
        patch.setattr(outputs.np, "savez", full)
        assert command(*base) == 2
    assert "No space left on device" in capsys.readouterr().err
    (folder,) = (run / "samples").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["parts", "settings.json"]
    assert not list((folder / "parts").iterdir())
    assert command(*base) == 0
    assert samples_of(folder).shape == (5, 2)


def test_a_recipe_is_not_replaced_by_another(run, tmp_path, capsys):
    base = ["--workdir", str(run), "--mode=calibrate", "--nfe=4"]
    assert command(*base) == 0
    first = (run / "recipe_4.json").read_text()
    assert command(*base, "--weights=model") == 0
    assert "holds another recipe and stays as it is" in capsys.readouterr().out
    assert command(*base) == 0
    assert (run / "recipe_4.json").read_text() == first
    assert len(list(run.glob("recipe_4*.json"))) == 2
    (tmp_path / "mine.json").write_text('{"my": "notes"}')
    assert command(*base, f"--recipe={tmp_path / 'mine.json'}") == 2
    assert "is not a recipe" in capsys.readouterr().err
    assert write_beside(tmp_path / "mine.json", "other").name != "mine.json"
    assert (tmp_path / "mine.json").read_text() == '{"my": "notes"}'


def test_one_item_has_no_error_and_its_json_no_nan(run, capsys):
    base = ["--workdir", str(run), "--mode=likelihood", "--nfe=8", "--num_samples=1"]
    assert command(*base) == 0
    assert "nats over 1 item of" in capsys.readouterr().out
    (path,) = (run / "likelihood" / "test").glob("*/likelihood.json")
    text = path.read_text()
    assert "NaN" not in text and json.loads(text)["nats"]["stderr"] is None


KILLED = {
    "sample": ["--num_samples=24", "--batch_size=2", "--sampler=ancestral", "--steps=25"],
    "likelihood": ["--num_samples=24", "--batch_size=4", "--nfe=16"],
    "encode": ["--num_samples=192", "--nfe=24"],
    "interpolate": ["--pairs=20", "--points=5", "--nfe=20"],
    "calibrate": ["--nfe=8"],
}  # fmt: skip


def results(folder: Path) -> dict[str, np.ndarray]:
    """All arrays and recipes that were written, and whatever is left over."""
    found = {p.name: np.frombuffer(p.read_bytes(), np.uint8) for p in folder.glob("run/recipe*")}
    for path in folder.glob("out/**/*.npz"):
        found |= {f"{path.relative_to(folder)}:{k}": v for k, v in np.load(path).items()}
    return found | {str(p): np.zeros(0) for p in folder.rglob("*.partial")}


@pytest.mark.parametrize("mode", ["sample", "likelihood", "encode"])
def test_killed_while_parts_are_removed_the_same_command_removes_them(
    points, tmp_path, mode, monkeypatch
):
    few = [w for w in KILLED[mode] if not w.startswith("--num")] + ["--num_samples=9"]
    words = [f"--mode={mode}", f"--workdir={points}", "--device=cpu", *few]
    with monkeypatch.context() as killed:
        killed.setattr(Output, "_remove_parts", lambda self: None)
        assert command(*words, f"--out={tmp_path / 'out'}") == 0
    left = results(tmp_path)
    whole = {name: v for name, v in left.items() if "/parts/" not in name}
    assert len(whole) < len(left)
    assert command(*words, f"--out={tmp_path / 'out'}") == 0
    assert results(tmp_path).keys() == whole.keys()
    assert not (tmp_path / "out" / "parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", KILLED)
def test_killed_at_any_moment_the_same_command_goes_on(points, tmp_path, mode):
    """SIGKILL, SIGTERM and SIGINT at random moments (MOMENTS=20 for more): the same result."""
    rng = random.Random(mode)
    out = [] if mode == "calibrate" else ["--out=out"]

    def begin(name: str):
        shutil.copytree(points, tmp_path / name / "run", dirs_exist_ok=True)
        (tmp_path / name / "run" / "thesis.tex").write_text("mine")
        words = (f"--mode={mode}", "--workdir=run", "--device=cpu", *KILLED[mode], *out)
        said = tmp_path / name / "output.txt"
        said.unlink(missing_ok=True)
        process = start(command, *words, folder=tmp_path / name)
        while process.is_alive() and not said.exists():  # from there on the command runs
            time.sleep(0.002)
        return process

    def end(process, seconds: float = 300) -> int:
        process.join(seconds)
        return process.exitcode

    assert end(begin("first")) == 0  # which imports and compiles what is not yet
    began = time.time()
    assert end(begin("whole")) == 0
    seconds, want, stopped = time.time() - began, results(tmp_path / "whole"), 0
    assert want
    for moment in range(int(os.environ.get("MOMENTS", 5))):
        sent = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        process, began = begin(f"{moment}"), time.time()
        if end(process, rng.uniform(0, 1) * seconds) is not None:
            seconds = time.time() - began  # the machine is less busy than it was
        else:
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.kill(process.pid, sent)
            codes = {-sent, 128 + sent, 0}  # 0: when all was done already
            said = (tmp_path / f"{moment}" / "output.txt").read_text
            assert end(process) in codes and "Traceback" not in said(), (sent, said())
            stopped += process.exitcode != 0
        assert end(begin(f"{moment}")) == 0
        got = results(tmp_path / f"{moment}")
        assert got.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
        assert (tmp_path / f"{moment}" / "run" / "thesis.tex").read_text() == "mine"
    print(f"{mode}: {stopped} of {moment + 1} stopped, of {seconds:.1f} s each")
    assert stopped


def test_what_a_notebook_shows_is_one_line(run):
    loaded = load(run, device="cpu")
    result = loaded.sample(1000, method="euler", steps=1)
    shown = [loaded, result, loaded.sde.discretize(1000)]
    shown.append(log_likelihood(loaded.sde, loaded.score, result.x[:1], nfe=8))
    for value in shown:
        assert "\n" not in repr(value) and len(repr(value)) < 400
    assert "nan" not in repr(shown[-1]) and "over 1 sample;" in repr(shown[-1])
    assert loaded._repr_png_().startswith(b"\x89PNG")
