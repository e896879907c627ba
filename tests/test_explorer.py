"""The page in the browser: every control is used in a real one, and what it says is a sentence.

The tests with a browser need Playwright and a Chromium: pip install playwright, and
apt-get install chromium (or another package of it that puts chromium on the PATH).
"""

import importlib.util
import json
import re
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import VPSDE, train
from score_sde.checks import UserError
from score_sde.cli import main
from score_sde.explorer import page as pages
from score_sde.explorer.plane import follow, scene
from score_sde.runs.plane import Field, closed_forms, learn

if importlib.util.find_spec("gradio") is None:  # imported where it is used: it takes seconds
    pytest.skip("the explorer needs gradio", allow_module_level=True)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


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
    with pytest.raises(UserError, match="70000"):
        pages.free_port("127.0.0.1", 70000)
    with pytest.raises(UserError, match="no run and holds none"):
        pages.make_page(tmp_path)


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
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


# In a browser -------------------------------------------------------------------------------------


@pytest.fixture
def browse(monkeypatch, tmp_path):
    """``browse(workdir)``: a page on it; afterwards nothing was asked of others or went wrong."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if BROWSER is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    monkeypatch.chdir(tmp_path)
    wrong, hosts, served = [], set(), []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def open_page(workdir):
            served.append(pages.explore(workdir, device="cpu", wait=False))
            tab = browser.new_page(viewport={"width": 1280, "height": 1000})
            tab.set_default_timeout(120_000)  # a busy machine is not a mistake
            tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
            tab.on("pageerror", lambda error: wrong.append(str(error)))
            tab.on("request", lambda r: hosts.add(r.url.split("/")[2] if "//" in r.url else ""))
            tab.goto(served[-1].local_url)
            tab.get_by_role("tab").first.wait_for()
            return tab

        yield open_page
        browser.close()
    for page in served:
        page.close()
    assert wrong == []
    assert all(host.startswith("127.0.0.1:") or host == "" for host in hosts), hosts


def choose(tab, label, option):
    tab.get_by_label(label, exact=True).locator("visible=true").first.click()
    tab.get_by_role("option", name=option, exact=True).locator("visible=true").click()


def fill(tab, label, number):
    field = tab.get_by_label(label).locator("visible=true").first
    field.fill(str(number))
    field.press("Enter")


def refused(tab, words):
    """Wait for an error with these words, and close it."""
    tab.get_by_text(re.compile(words)).first.wait_for()
    tab.locator(".toast-close").first.click()


def stroke(tab, canvas):
    box = tab.locator(canvas).bounding_box()
    at = lambda u: (box["x"] + u * box["width"], box["y"] + 0.5 * box["height"])  # noqa: E731
    tab.mouse.move(*at(0.2))
    tab.mouse.down()
    for i in range(12):
        tab.mouse.move(*at(0.2 + 0.05 * i))
    tab.mouse.up()


@pytest.mark.slow
def test_images(browse, tmp_path):
    tab = browse("fashion")
    tab.locator("#draw").click()
    tab.locator("#said").get_by_text("NFE 11").wait_for()
    choose(tab, "sampler", "heun")
    fill(tab, "number input for steps", 4)
    fill(tab, "number input for samples", 4)
    fill(tab, "seed of the first sample", 7)
    tab.get_by_text("compare with, from the same noise").click()
    tab.get_by_label("sampler", exact=True).nth(1).click()
    tab.get_by_role("option", name="ddim", exact=True).locator("visible=true").click()
    tab.locator("#draw").click()
    tab.get_by_text("rms difference").wait_for()
    assert tab.locator("#second img").is_visible()
    before = tab.locator("#state img").get_attribute("src")
    tab.locator("#moment input[type=range]").fill("0")
    tab.locator("#moment input[type=range]").dispatch_event("pointerup")
    tab.get_by_text("t = 1", exact=True).wait_for()
    assert tab.locator("#state img").get_attribute("src") != before
    fill(tab, "seed of the first sample", -1)
    tab.locator("#draw").click()
    refused(tab, "the seed must be a whole number")

    tab.get_by_role("tab", name="Restore").click()
    tab.locator("#fill").click()
    refused(tab, "no picture yet")
    tab.locator("#take").click()
    tab.wait_for_timeout(3000)
    tab.locator("#fill").click()
    refused(tab, "the mask covers nothing")
    stroke(tab, "#mask canvas")
    tab.get_by_label("number input for draws").fill("2")
    tab.locator("#fill").click()
    tab.locator("#fill-said").get_by_text("2 draws").wait_for()
    tab.locator("#clear-mask").click()
    tab.wait_for_timeout(1000)
    tab.locator("#fill").click()
    refused(tab, "the mask covers nothing")

    tab.get_by_role("tab", name="Likelihood").click()
    tab.locator("#likely").click()
    refused(tab, "no picture yet")
    (tmp_path / "notes.txt").write_text("no picture")
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    upload = tab.locator("#likelihood-upload input[type=file]")
    upload.set_input_files(tmp_path / "notes.txt")
    tab.get_by_text("notes").first.wait_for()
    tab.locator("#likely").click()
    refused(tab, "cannot be read")
    tab.get_by_label("Clear").locator("visible=true").first.click()
    upload.set_input_files(tmp_path / "grey.png")
    tab.get_by_text("grey").first.wait_for()
    fill(tab, "number input for network evaluations", 16)
    tab.locator("#likely").click()
    tab.locator("#likelihood-said").get_by_text("bits/dim").wait_for()
    tab.get_by_text("brought to the model's 28 x 28").wait_for()


@pytest.mark.slow
def test_the_plane_and_the_runs(browse, toy):
    tab = browse(toy)
    tab.locator("#draw").click()
    tab.locator("#said").get_by_text("NFE").wait_for()
    tab.get_by_role("tab", name="Score field").click()
    field = tab.locator("#field canvas")
    pixels = lambda: field.evaluate("c => c.toDataURL()")  # noqa: E731

    def changes(act):
        before = pixels()
        act()
        tab.wait_for_function("b => document.querySelector('#field canvas').toDataURL() != b",
                              arg=before)  # fmt: skip

    changes(lambda: choose(tab, "data", "moons"))
    changes(lambda: choose(tab, "process", "cosine"))
    changes(lambda: tab.locator("#time input[type=range]").fill("0.6"))
    choose(tab, "paths by", "euler_maruyama")
    changes(lambda: field.click(position={"x": 100, "y": 80}))
    changes(lambda: tab.locator("#clear-paths").click())
    tab.locator("#train").click()
    refused(tab, "draw at least 20")
    stroke(tab, "#drawing canvas")
    changes(lambda: tab.locator("#train").click())
    tab.locator("#learned").get_by_text("done").wait_for(timeout=60000)
    assert tab.get_by_label("data", exact=True).input_value() == "what you drew"
    tab.locator("#clear-drawing").click()

    tab.get_by_role("tab", name="Runs").click()
    tab.locator("#look-again").click()
    tab.locator("#compare").click()
    tab.locator("#configs").get_by_text("training.lr").wait_for()
    assert tab.locator("#curves img").is_visible()
    assert tab.locator("#pictures img").count() >= 2
