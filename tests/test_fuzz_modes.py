"""Every mode, done for real on a tiny run with flags that go together badly, or a sentence."""

import random
import shutil
from pathlib import Path

import pytest
from test_run import command

from score_sde import cli

CASES = 6  # of each mode
VALUES = {
    "int": ("1", "2", "3", "5", "0", "-1", "999999999999"),
    "float": ("0.5", "0.01", "-1", "0", "1e9", "1e-9"),
    "str": ("x", "0", "0,1", "heun", "ddim", "moons", "missing.json", "/dev/null", "é"),
}
QUICK = {
    "sample": ["--num_samples=2", "--steps=2"], "likelihood": ["--num_samples=2", "--nfe=8"],
    "encode": ["--num_samples=2", "--nfe=8"], "interpolate": ["--pairs=1", "--nfe=8"],
    "calibrate": ["--nfe=3"], "diagnose": ["--num_samples=2", "--items=4"], "export": [],
    "evaluate": ["--num_samples=40", "--steps=2"], "ema": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("modes") / "run"
    small = ["--config.training.steps=3", "--config.training.batch_size=16"]
    small += ["--config.net.width=8", "--config.training.tensorboard=False"]
    assert command("--config", "toy2d", "--workdir", str(workdir), *small,
                   "--config.sampling.steps=1", "--config.sampling.batch_size=4") == 0  # fmt: skip
    return workdir


def drawn(rng: random.Random, flag) -> str:
    if isinstance(flag.kind, tuple):
        return f"--{flag.name}={rng.choice(flag.kind)}"
    if flag.kind is bool:
        return f"--{flag.name}"
    if flag.kind is list:
        names = ("rtol", "variance", "eta", "solver", "x")
        return f"--{flag.name}={rng.choice(names)}={rng.choice(VALUES['float'])}"
    return f"--{flag.name}={rng.choice(VALUES.get(getattr(flag.kind, '__name__', ''), ('1,2',)))}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", QUICK)
def test_a_mode_is_done_or_says_in_a_sentence_why_not(mode, points, tmp_path, monkeypatch, capsys):
    rng = random.Random(mode)
    monkeypatch.chdir(tmp_path)
    flags = [f for f in cli.MODES[mode].flags if f.name not in ("workdir", "config", "device")]
    for case in range(CASES):
        run = Path(shutil.copytree(points, tmp_path / f"run{case}"))
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        words = [f"--mode={mode}", f"--workdir={run}", "--device=cpu", *QUICK[mode]]
        if "device" not in {f.name for f in cli.MODES[mode].flags}:
            words.remove("--device=cpu")
        words += [drawn(rng, flag) for flag in rng.sample(flags, min(2, len(flags)))]
        code = command(*words)
        said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
        assert code in (0, 2) and len(said) == code // 2, (words, said)
        if code == 2:
            assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before, words
