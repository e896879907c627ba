"""The README's Python runs, and its commands are ones that the command line understands."""

import re
import shlex
from pathlib import Path

from score_sde import cli
from score_sde.sampling import SAMPLERS

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_python_blocks_run_in_order():
    namespace: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["x"].shape == (8, 2)


def test_commands_parse(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    commands = re.findall(r"python main\.py ([^\n#]+)", "\n".join(blocks("bash")))
    assert len(commands) >= 6
    for command in commands:
        assert cli.understand(shlex.split(command)).mode in cli.MODES


def test_every_sampler_is_in_the_table():
    for name in SAMPLERS:
        assert f"`{name}`" in README.split("## Samplers")[1]


def test_every_mode_is_in_the_table():
    table = README.split("| mode |")[1].split("##")[0]
    assert [mode for mode in cli.MODES if f"`{mode}`" not in table] == []


def test_no_private_paths_or_hosts():
    root = Path(__file__).parent.parent
    for path in [*root.glob("*.md"), *root.glob("score_sde/**/*.py"), *root.glob("configs/*.py")]:
        text = path.read_text()
        assert not re.search(r"/(work|root|home/\w+)/", text), path
