"""The page of the explorer without a browser: its tabs, its fields, and what it refuses."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from score_sde import VPSDE, train
from score_sde.checks import UserError
from score_sde.cli import main
from score_sde.explorer import page as pages
from score_sde.explorer.plane import follow, scene
from score_sde.runs.plane import Field, closed_forms, learn

if importlib.util.find_spec("gradio") is None:  # imported where it is used: it takes seconds
    pytest.skip("the explorer needs gradio", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A run of the plane, in a folder of two."""
    root = tmp_path_factory.mktemp("runs")
    small = {"training.steps": 20, "training.tensorboard": False, "net.width": 16}
    small |= {"sampling.batch_size": 5, "sampling.steps": 3, "training.batch_size": 64}
    train("toy2d", root / "a", **small)
    shutil.copytree(root / "a", root / "b")
    config = root / "b" / "config.json"
    facts = json.loads(config.read_text())
    facts["config"]["training"]["lr"] = 0.5
    config.write_text(json.dumps(facts))
    return root / "a"


def test_a_port_in_use_and_a_folder_without_runs_are_sentences(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(f"x --mode explore --port {port}".split()) == 2
        assert f"port {port}" in capsys.readouterr().err
    for wrong in (0, -1, 70000):
        with pytest.raises(UserError, match=r"port must be .* \(got "):
            pages.explore("fashion", port=wrong)
    for wrong in ("nonsense.invalid", "999.1.1.1", "a" * 70):
        with pytest.raises(UserError, match="is no address of this computer"):
            pages.free_port(wrong, None)
    with pytest.raises(UserError, match=r"of 192\.0\.2\.1 cannot be used"):
        pages.free_port("192.0.2.1", None)
    with pytest.raises(UserError, match="no run and holds none"):
        pages.make_page(tmp_path)


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main("x --mode explore".split()) == 2
    assert "score-sde[explore]" in capsys.readouterr().err


def test_a_tab_is_there_if_the_run_can_do_it(toy):
    import gradio

    def tabs(page):
        return [b.label for b in page.blocks.values() if isinstance(b, gradio.Tab)]

    assert tabs(pages.make_page("fashion")) == ["Draw", "Restore", "Likelihood", "Score field"]
    assert tabs(pages.make_page(toy)) == ["Draw", "Score field", "Runs"]
    assert tabs(pages.make_page(toy.parent)) == ["Score field", "Runs"]


def test_nothing_is_told_to_anyone(toy):
    page = pages.make_page(toy)
    assert not page.analytics_enabled
    assert pages.HOST == "127.0.0.1"


def test_a_scene_is_the_field_and_a_path_ends_at_the_data():
    sde, data = VPSDE(), closed_forms()["three Gaussians"]
    field = Field(sde, data.score(sde))
    found = json.loads(scene(field, 0.15))
    x, y, u, v = torch.tensor(found["arrows"]).T
    exact = data.score(sde)(torch.stack([x, y], 1).double(), torch.tensor(0.15)).float()
    cosine = torch.nn.functional.cosine_similarity(torch.stack([u, v], 1), exact)
    assert len(x) == 21**2 and float(cosine[exact.norm(dim=1) > 0.1].min()) > 0.99
    ends = [follow(field, at, 1.0, "heun", 60, 0)["points"][-1]
            for at in ([-1.5, 0.3], [0.1, -2.0], [1.0, 1.0])]  # fmt: skip
    assert float(data.log_prob(torch.tensor(ends).double()).min()) > -5


START = """
import gc, sys
from pathlib import Path
from score_sde.explorer.page import make_page
written = []
Path.write_text = lambda path, text, *rest, **more: written.append(path)
make_page("fashion", "cpu")
print(written, gc.isenabled(), "matplotlib" in sys.modules)
"""


@pytest.mark.slow
def test_the_start_writes_nothing_and_leaves_matplotlib_for_later():
    """gradio writes stubs of its classes where it is installed: a second of each start."""
    found = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    assert found.stdout.strip() == "[] True False", found.stderr


@pytest.mark.slow
def test_a_drawing_is_learned():
    """Points on a circle: samples of what was learned lie on it."""
    from score_sde import sample

    angle = torch.arange(400) * (2 * torch.pi / 400)
    points = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    *_, last = learn(points, VPSDE(), steps=150, seconds=1e6)
    assert last.done and last.step == 150
    x = sample(last.field.sde, last.field.score, shape=(200, 2), method="heun", steps=10)
    assert float((x.norm(dim=1) - 1.5).abs().median()) < 0.2
    for few in (torch.empty(0), points[:5]):
        with pytest.raises(UserError, match="draw at least 20"):
            next(learn(few, VPSDE()))


def test_what_the_controls_send_is_checked_too():
    """Whoever empties a field, or calls the page without a browser."""
    from score_sde.explorer.draw import Drawing
    from score_sde.explorer.plane import Fields, Plane
    from score_sde.explorer.runs_here import Subject
    from score_sde.runs import pretrained

    plane = Plane(Fields(None))
    drawing = Drawing(Subject(pretrained.find("fashion"), "cpu"))
    way, rest = ["heun", 3, "ema"], ["any", "", "", 1, "nothing", 3, "ema"]
    wrong = {
        "t must be a number": lambda: plane.move("moons", "vp", None),
        "t must be a number from 0 to 1": lambda: plane.move("moons", "vp", 7),
        "no field of 'mars'": lambda: plane.move("mars", "vp", 0.5),
        "steps must be a whole number": lambda: plane.click("moons", "vp", 0.5, "heun", None, None),
        "cannot be read": lambda: next(plane.learned("[1, 2]", 0.5)),
        "points of the drawing must be": lambda: next(plane.learned('{"drawn": [[1], "a"]}', 0.5)),
        "guidance must be a number": lambda: drawing.draw(*way, 0, 4, *rest[:3], None, *rest[4:]),
        "samples must be a whole": lambda: drawing.draw(*way, 0, 0.5, *rest),
        "the seed must be a whole": lambda: drawing.draw(*way, float("inf"), 4, *rest),
        "press Draw": lambda: drawing.go_to(3),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words):
            call()
