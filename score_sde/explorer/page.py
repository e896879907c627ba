"""The page in the browser: `--mode explore`, `score_sde.explorer.explore`.

It listens on this computer alone unless told otherwise, calls nobody, and loads nothing from
elsewhere. A tab is there if the run can do what is in it.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from score_sde.checks import UserError, checked
from score_sde.explorer.compare import runs_tab
from score_sde.explorer.draw import draw_tab
from score_sde.explorer.library import import_gradio, without_collection
from score_sde.explorer.likelihoods import likelihood_tab
from score_sde.explorer.plane import plane_tab
from score_sde.explorer.restoring import restore_tab
from score_sde.explorer.runs_here import Subject
from score_sde.runs import pretrained
from score_sde.runs.directory import RunDirectory
from score_sde.runs.listing import find_runs

if TYPE_CHECKING:
    import gradio

HOST, PORT = "127.0.0.1", 7860
Port = Annotated[int, Field(ge=1, le=65535)]
CSS = """
footer { display: none !important; }
.gradio-container { max-width: min(1200px, 100vw) !important; margin: 0 auto; }
.pixels img { image-rendering: pixelated; }
.caption { margin: 0; padding: 0; overflow: visible; }
.dark .paper canvas { filter: invert(0.92) hue-rotate(180deg); }
#runs, #configs { overflow-x: auto; }
@media (max-width: 500px) {
  .gradio-container main { padding: 12px !important; }
  .tab-container button { padding: 0 7px; font-size: 13px; }
}
"""


@checked("")
def explore(
    workdir: str | Path = "pretrained/fashion",
    device: str = "auto",
    port: Port | None = None,
    host: str = HOST,
    wait: bool = True,
) -> gradio.Blocks:
    """Serve the page on a run, or on a folder of runs, until Ctrl-C.

    workdir: a run, a model that ships, or a folder with runs in it. port: 7860, or the first free
    one after it, when None. host: who may come; "127.0.0.1" is this computer alone. wait: False
    returns at once, and ``close()`` of the result ends it.

    Raises UserError for a port in use, a workdir that is neither, and without gradio.
    """
    gr = import_gradio()
    os.environ["MPLBACKEND"] = "Agg"  # figures are drawn for the page: no display is needed
    port = free_port(host, port)
    with without_collection():
        page = make_page(workdir, device)
        page.launch(
            server_name=host, server_port=port, share=False, quiet=True, show_error=True,
            pwa=False, ssr_mode=False, prevent_thread_lock=True, footer_links=[],
            enable_monitoring=False, css=CSS,
            theme=gr.themes.Base(font=["system-ui", "sans-serif"],
                                 font_mono=["ui-monospace", "monospace"]),
        )  # fmt: skip
    print(f"the page is at http://{host}:{port}; stop it with Ctrl-C", flush=True)
    if host not in (HOST, "localhost", "::1"):
        print(f"anyone who reaches {host} can use it", flush=True)
    if wait:
        page.block_thread()
    return page


def make_page(workdir: str | Path, device: str = "auto") -> gradio.Blocks:
    """The page, not yet served; UserError for a workdir that is no run and holds none."""
    gr = import_gradio()
    path = pretrained.find(workdir)
    is_run = RunDirectory(path).is_run
    root = Path("runs") if pretrained.card(path) else path.parent if is_run else path
    if not is_run and not (path.is_dir() and find_runs(path)):
        raise UserError(
            f"{path} is no run and holds none. Give --workdir a run, a folder of runs, or a model "
            f"that ships: pretrained/{', pretrained/'.join(pretrained.CONFIGS)}."
        )
    subject = Subject(path, device) if is_run else None
    with gr.Blocks(title="score_sde", analytics_enabled=False) as page:
        gr.Markdown("## score_sde" + (f"\n{subject.about}" if subject else ""))
        if subject and subject.known:
            with gr.Accordion("what was measured of it", open=False):
                gr.Markdown(subject.known)
        spec = subject.run().item_spec if subject else None
        if subject and subject.has_pictures:
            with gr.Tab("Draw"):
                draw_tab(subject)
        in_pixels = subject is not None and subject.run().codec is None
        if subject and spec and in_pixels and spec.is_image and spec.shape[0] in (1, 3, 4):
            with gr.Tab("Restore"):
                restore_tab(subject)
            with gr.Tab("Likelihood"):
                likelihood_tab(subject)
        with gr.Tab("Score field"):
            plane_tab(subject)
        if root.is_dir() and find_runs(root):
            with gr.Tab("Runs"):
                runs_tab(root)
    return page


def free_port(host: str, port: int | None) -> int:
    """``port``, or the first free one from 7860 on; UserError for one in use."""
    for candidate in range(PORT, PORT + 100) if port is None else [port]:
        try:
            family, *_, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"host {host!r} is no address of this computer ({error}): leave out --host, or "
                "give 0.0.0.0 for all who reach it."
            ) from error
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if port is None and error.errno != errno.EADDRNOTAVAIL:
                    continue
                raise UserError(
                    f"port {candidate} of {host} cannot be used ({error.strerror}): give another "
                    "--port, or none for the first free one."
                ) from error
        return candidate
    raise UserError(f"no port from {PORT} to {PORT + 99} is free: give --port.")
