"""Every control of the page in a real browser, and what it says of wrong input.

They need Playwright and a Chromium: pip install playwright, and apt-get install chromium (or
another package of it that puts chromium on the PATH).
"""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from test_explorer import toy  # noqa: F401  (a fixture)
from test_steering import make_run

from score_sde.explorer import page as pages

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


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

        def open_page(workdir, width=1280):
            served.append(pages.explore(workdir, device="cpu", wait=False))
            tab = browser.new_page(viewport={"width": width, "height": 1000})
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


def written(path, content):
    """A file with this text, or this picture."""
    if isinstance(content, str):
        path.write_text(content)
    else:
        Image.fromarray(content).save(path)
    return path


def stroke(tab, canvas):
    box = tab.locator(canvas).bounding_box()
    at = lambda u: (box["x"] + u * box["width"], box["y"] + 0.5 * box["height"])  # noqa: E731
    tab.mouse.move(*at(0.2))
    tab.mouse.down()
    for i in range(12):
        tab.mouse.move(*at(0.2 + 0.05 * i))
    tab.mouse.up()


def test_images(browse, tmp_path):
    tab = browse("fashion")
    tab.get_by_text("without classes or captions").wait_for()
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
    upload = tab.locator("#restore-upload input[type=file]")
    upload.set_input_files(written(tmp_path / "notes.png", "no picture"))
    refused(tab, "cannot be read")
    tab.get_by_label("Clear").locator("visible=true").first.click()
    upload.set_input_files(written(tmp_path / "red.png", np.full((30, 50, 3), 90, np.uint8)))
    tab.locator("#fill-said").get_by_text("its middle was brought").wait_for()
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
    upload = tab.locator("#likelihood-upload input[type=file]")
    upload.set_input_files(written(tmp_path / "notes.txt", "no picture"))
    tab.get_by_text("notes").first.wait_for()
    tab.locator("#likely").click()
    refused(tab, "cannot be read")
    tab.get_by_label("Clear").locator("visible=true").first.click()
    upload.set_input_files(written(tmp_path / "grey.png", np.full((40, 30, 3), 90, np.uint8)))
    tab.get_by_text("grey").first.wait_for()
    fill(tab, "number input for network evaluations", 16)
    tab.locator("#likely").click()
    tab.locator("#likelihood-said").get_by_text("bits/dim").wait_for()
    said = tab.locator("#likelihood-said")
    said.get_by_text(
        "The upload is 40 x 30: its middle was brought to the model's 28 x 28"
    ).wait_for()
    said.get_by_text("It has colours").wait_for()

    tab.get_by_role("tab", name="Score field").click()
    tab.locator("#not-in-the-plane").get_by_text("shape (1, 28, 28)").wait_for()


def test_the_plane_and_the_runs(browse, toy):  # noqa: F811
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


def test_what_a_run_is_told(browse, tmp_path):
    """Class, prompt, negative prompt and guidance each change the samples of the same noise."""
    told = {"text": "words", "text_length": 8, "dropout": 0.1, "classes": True}
    tab = browse(make_run(tmp_path / "told", told, classes=("hat", "coat", "boot")))
    before = None

    def draws_anew(act):
        nonlocal before
        act()
        tab.locator("#draw").click()
        tab.wait_for_function(
            "b => { const i = document.querySelector('#first img'); return i && i.src != b }",
            arg=before,
        )
        before = tab.locator("#first img").get_attribute("src")

    draws_anew(lambda: fill(tab, "number input for samples", 4))
    draws_anew(lambda: choose(tab, "class", "coat"))
    draws_anew(lambda: fill(tab, "number input for guidance", 3))
    draws_anew(lambda: tab.get_by_label("prompt", exact=True).fill("a red circle"))
    draws_anew(lambda: tab.get_by_label("negative prompt: what to lead away from").fill("blue"))
    fill(tab, "number input for guidance", 1)
    tab.locator("#draw").click()
    refused(tab, "a negative prompt has no effect without guidance")
    tab.get_by_label("negative prompt: what to lead away from").fill("")
    tab.get_by_label("prompt", exact=True).fill("")
    choose(tab, "class", "any")
    fill(tab, "number input for guidance", 3)
    tab.locator("#draw").click()
    refused(tab, "guidance=3 leads from no condition to one")


def test_a_phone_shows_all_tabs_and_scrolls_down_alone(browse, toy):  # noqa: F811
    tab = browse(toy, width=390)
    for name in ("Draw", "Score field", "Runs"):
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator("#compare").click()
    tab.locator("#configs").get_by_text("training.lr").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
