"""gradio, which draws the page: imported when one is asked for, and quickly."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from score_sde.checks import UserError, library


def import_gradio() -> Any:
    """gradio, told to call nobody; UserError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "gradio" not in sys.modules:
        with without_collection(), suppress(ImportError):
            _import_without_stubs()
    gradio = library("gradio", "explore", "the page needs")
    if int(gradio.__version__.split(".")[0]) < 6:
        raise UserError(
            f"the page needs gradio 6 or newer (here is {gradio.__version__}): "
            "pip install --upgrade 'score-sde[explore]'."
        )
    return gradio


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for garbage meanwhile: what a program makes as it starts, it keeps."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _import_without_stubs() -> None:
    """Import gradio, but for a .pyi file of each of its classes.

    It writes these into its own folder at every import, which takes a second, a quarter of what one
    waits for the page. Where gradio has changed so that they cannot be left out, it is imported as
    it is.
    """
    spec = importlib.util.find_spec("gradio")
    if spec is None or spec.loader is None:
        return
    sys.modules["gradio"] = package = importlib.util.module_from_spec(spec)
    try:
        made: Any = importlib.import_module("gradio.component_meta")
        if hasattr(made, "create_or_modify_pyi"):
            made.create_or_modify_pyi = lambda *_: None
        spec.loader.exec_module(package)
    except (ImportError, AttributeError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "gradio"]:
            del sys.modules[name]
