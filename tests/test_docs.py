"""Every snippet of the docs runs, every command parses, every figure has its command."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from test_run import command

from score_sde import VPSDE, cli, load, verify
from score_sde.sampling import SAMPLERS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TRAINED = "# needs runs/"
EXTRAS = ("datasets", "diffusers", "transformers", "webdataset", "gradio", "open_clip")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.S)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_blocks_run_in_order(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "docs"}
    for block in blocks(path, "python"):
        for extra in re.findall(rf"^import ({'|'.join(EXTRAS)})$", block, flags=re.M):
            pytest.importorskip(extra)  # blocks before it have run
        if not block.startswith(TRAINED):
            exec(compile(block, path.name, "exec"), namespace)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_parse(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^python main\.py ([^\n#]+)", "\n".join(blocks(path, "bash")), re.M)
    commands = [line for line in commands if "my_config" not in line]  # see below
    for line in commands:
        understood = cli.understand(shlex.split(line))
        assert isinstance(understood, str) or understood.mode in cli.MODES  # text: of --help


def test_our_calls_for_those_who_come_from_elsewhere_run(one_thread):
    """The right column of each table, after the lines of the page."""
    page, namespace = ROOT / "docs" / "coming_from.md", {}
    exec(compile(blocks(page, "python")[0], page.name, "exec"), namespace)
    ours = re.findall(r"^\| .*[^|] \| `([^|]+)` \|$", page.read_text(), flags=re.M)
    assert len(ours) > 40
    for call in ours:
        assert eval(call, namespace) is not None, call


def test_every_test_that_the_page_on_safety_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "safety.md").read_text())
    assert len(named) > 60
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@pytest.mark.slow
def test_quick_start_page_runs(tmp_path, monkeypatch):
    """Its commands in order, with less training, and the block that needs the run."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    page = ROOT / "docs" / "index.md"
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^python main\.py ([^\n#]+)", "\n".join(blocks(page, "bash")), re.M)
    lines = [line for line in lines if "vp_fashion" in line]
    assert len(lines) == 2
    train = [a.replace("configs/vp_fashion.py", "vp_fashion") for a in shlex.split(lines[0])]
    less = ["--config.training.minutes=0", "--config.training.steps=25", "--config.net.width=24"]
    less += ["--config.net.heads=1", "--config.training.sample_nfe=5"]
    assert command(*train, *less) == 0
    assert command(*shlex.split(lines[1])) == 0
    assert len(list(tmp_path.glob("runs/vp_fashion/samples/*/0*.png"))) == 64
    (block,) = [b for b in blocks(page, "python") if b.startswith(TRAINED)]
    exec(compile(block, "index.md", "exec"), {})
    assert (tmp_path / "garments.png").stat().st_size > 10_000
    assert load("runs/vp_fashion").sample(1).x.shape == (1, 1, 28, 28)


def test_extending_trains_from_the_command_line(tmp_path, monkeypatch):
    """The page's own lines, in files beside the command, named by dotted path."""
    page = ROOT / "docs" / "extending.md"
    python = blocks(page, "python")
    (config,) = [block for block in python if block.startswith("# my_config.py")]
    parts = [b for b in python if re.search(r"^class ", b, flags=re.M)]
    (tmp_path / "my_file.py").write_text("\n".join(parts))
    (tmp_path / "my_config.py").write_text(config)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_file", None)
    (line,) = re.findall(r"^python main\.py ([^\n#]+)", "\n".join(blocks(page, "bash")), re.M)
    fewer = ["--config.training.steps=3", "--config.sampling.steps=2", "--config.data.workers=0"]
    assert command(*shlex.split(line), *fewer) == 0
    run = load("runs/mine")
    assert type(run.sde).__name__ == "Quarter" and type(run.score.net).__name__ == "Net"
    assert run.data_spec.shape == (2,)


def test_the_table_of_samplers_is_what_verify_measures():
    """Two digits of the law at 20 and 100 evaluations under VP, where it is exact."""
    text = (ROOT / "docs" / "choosing.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, flags=re.M)
    assert len(rows) > 20
    for name, cells in rows:
        evaluations = SAMPLERS[name]().evaluations
        _, at_20, at_100, _, _ = (cell.strip() for cell in cells.split("|"))
        if name != "pc":  # Monte Carlo
            steps = (20 // evaluations, 100 // evaluations)
            measured = [row.w2 for row in verify(VPSDE(), name, steps=steps).rows]
            assert [float(at_20), float(at_100)] == pytest.approx(measured, rel=0.06), name


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_figures_exist_and_have_their_command(path):
    text = path.read_text()
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", text):
        name = "".join(image)
        assert (path.parent / name).is_file(), name
        after = text.split(name)[1][:400]
        assert "make_figures.py" in after or "main.py" in text, name


@pytest.mark.slow
def test_one_command_makes_the_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_figures

    monkeypatch.setattr(make_figures, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_figures.py"])
    make_figures.main()
    made = {path.name for path in tmp_path.iterdir()}
    committed = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    # Made by runs, as the pages say:
    trained = {"quick_start.png", "prompts.png", "enlarged.png", "restored.png", "latent_emoji.png"}
    assert made == committed - trained
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_the_site_needs_no_network():
    """Scripts and styles are files of the site, and so is every font that the styles name."""
    text = (ROOT / "mkdocs.yml").read_text()
    assert "http" not in text.split("markdown_extensions")[1]
    for name in re.findall(r"assets/[\w./]+\.(?:js|css)", text):
        assert (ROOT / "docs" / name).is_file(), name
    style = ROOT / "docs" / "assets" / "katex" / "katex.min.css"
    fonts = re.findall(r"url\(([^)]+)\)", style.read_text())
    assert len(fonts) == 20 and all((style.parent / font).is_file() for font in fonts)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 1200


def test_the_site_lists_every_page_and_notebook():
    text = (ROOT / "mkdocs.yml").read_text()
    for path in [*PAGES, *(ROOT / "notebooks").glob("*.ipynb")]:
        assert path.name in text, f"{path.name} is not in the navigation"
