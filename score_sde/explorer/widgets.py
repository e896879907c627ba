"""What the tabs share: canvases, pictures, and errors as sentences."""

from __future__ import annotations

import base64
import functools
import json
import math
import threading
import traceback
from collections.abc import Callable, Iterator
from inspect import isgeneratorfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from score_sde.checks import UserError, sentence_of
from score_sde.explorer.library import import_gradio
from score_sde.plotting.pictures import enlarged, png_bytes

if TYPE_CHECKING:
    import gradio

BUSY = threading.Lock()
"""One thing at a time: networks use all cores, and matplotlib is not for several threads."""


def spoken(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the page: one at a time, without gradients, and its errors are sentences."""
    gr = import_gradio()

    def said(error: Exception) -> Exception:
        sentence = sentence_of(error)
        if sentence is None:
            traceback.print_exception(error)
            sentence = f"this is a mistake of score_sde ({type(error).__name__}: {error})."
        return gr.Error(sentence, duration=None, title="This cannot be done", print_exception=False)

    if isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*given: Any) -> Iterator[Any]:
            steps, done = function(*given), object()
            while True:
                with BUSY:  # between its steps others have their turn
                    try:
                        item = next(steps, done)
                    except Exception as error:
                        raise said(error) from error
                if item is done:
                    return
                yield item

        return generate

    @functools.wraps(function)
    def call(*given: Any) -> Any:
        with BUSY, torch.no_grad():
            try:
                return function(*given)
            except Exception as error:
                raise said(error) from error

    return call


def canvas(script: str, label: str, name: str, **props: Any) -> gradio.HTML:
    """A canvas whose picture the file ``script`` paints from a JSON text."""
    gr = import_gradio()
    gr.Markdown(label, elem_classes="caption")
    return gr.HTML(
        value="", elem_id=name, apply_default_css=False,
        html_template=f'<canvas role="img" aria-label="{label}" tabindex="0"></canvas>',
        elem_classes="paper" if "plane" in script else [],
        css_template="canvas { width: 100%; touch-action: none; display: block; "
        "border-radius: 6px; cursor: crosshair; }",
        js_on_load=Path(__file__).with_name(script).read_text(), **props,
    )  # fmt: skip


def upload(label: str, name: str) -> gradio.File:
    """A place for a file, with its caption above it."""
    gr = import_gradio()
    gr.Markdown(label, elem_classes="caption")
    return gr.File(label=label, show_label=False, file_count="single", elem_id=name, height=130)


def picture(label: str, name: str) -> gradio.Image:
    """A picture of the page, with its caption above it."""
    gr = import_gradio()
    gr.Markdown(label, elem_classes="caption")
    return gr.Image(
        label=label, show_label=False, format="png", interactive=False, elem_id=name,
        elem_classes="pixels", buttons=["download", "fullscreen"],
    )  # fmt: skip


def shown(pixels: np.ndarray | None, least: int = 448) -> Image.Image | None:
    """A picture for the page, its pixels enlarged by a whole factor."""
    return None if pixels is None else Image.fromarray(enlarged(pixels, least))


def data_url(pixels: np.ndarray) -> str:
    """A picture as text, for a canvas."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()


def from_canvas(text: str | None, key: str) -> Any:
    """What a canvas has sent under this name, None for nothing; UserError for what is no answer."""
    try:
        return json.loads(text or "{}").get(key)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError("the canvas has sent what cannot be read: load the page anew.") from error


def whole(value: Any, what: str, least: int, most: int) -> int:
    """A whole number of a field of the page; UserError for what is none, or out of range."""
    return int(_within(value, what, least, most, "a whole number"))


def real(value: Any, what: str, least: float, most: float) -> float:
    """A number of a field of the page; UserError for what is none, or out of range."""
    return _within(value, what, least, most, "a number")


def _within(value: Any, what: str, least: float, most: float, kind: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = kind == "a number" or number == number // 1
    if not (whole and least <= number <= most):
        raise UserError(f"{what} must be {kind} from {least:g} to {most:g} (got {value!r}).")
    return number
