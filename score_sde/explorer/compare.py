"""The runs of a folder as a page: pictures, curves and configs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from score_sde.checks import UserError
from score_sde.explorer.widgets import import_gradio, spoken
from score_sde.plotting.style import CYCLE, legend, subplots
from score_sde.runs.listing import HEAD, RunSummary, curve, differences, find_runs, rows


def runs_tab(root: Path) -> None:
    """The tab: all runs as a table, and some of them side by side."""
    gr = import_gradio()
    found: dict[str, RunSummary] = {str(run.path): run for run in reversed(find_runs(root))}

    gr.Markdown(f"Runs in `{root}`, the last changed first.")
    with gr.Row():
        again = gr.Button("Look again", elem_id="look-again", scale=0, min_width=140)
    table = gr.Dataframe(rows(list(found.values())), headers=list(HEAD), interactive=False,
                         elem_id="runs")  # fmt: skip
    chosen = gr.CheckboxGroup(list(found), value=list(found)[:3], label="side by side")
    show = gr.Button("Compare", variant="primary", elem_id="compare")
    curves = gr.Plot(label="loss", elem_id="curves")
    pictures = gr.Gallery(label="their newest pictures", columns=3, format="png", height="auto",
                          elem_id="pictures")  # fmt: skip
    fields = gr.Markdown(elem_id="configs")

    @spoken
    def look() -> Any:
        found.clear()
        found.update({str(run.path): run for run in reversed(find_runs(root))})
        names = list(found)
        return rows(list(found.values())), gr.update(choices=names, value=names[:3])

    @spoken
    def compare(names: list[str]) -> Any:
        here = [found[name] for name in names if name in found]
        if not here:
            raise UserError("no run is chosen: tick at least one.")
        figure, ax = subplots(width=6.5, height=3)
        for run, colour in zip(here, CYCLE * len(here), strict=False):
            ax.plot(*curve(run.path), color=colour, label=str(run.path), linewidth=1.2)
        ax.set(xlabel="step", ylabel="loss", yscale="log")
        legend(ax)
        shown = [(_opened(run.picture), str(run.path)) for run in here if run.picture is not None]
        head = "| field | " + " | ".join(f"`{run.path}`" for run in here) + " |"
        lines = [head, "|---" * (len(here) + 1) + "|"]
        lines += [f"| `{field}` | " + " | ".join(f"`{v}`" for v in values) + " |"
                  for field, values in differences([run.path for run in here])]  # fmt: skip
        text = "\n".join(lines) if len(lines) > 2 else "Their configs are the same."
        return figure, shown, text

    again.click(look, None, [table, chosen])
    show.click(compare, chosen, [curves, pictures, fields])


def _opened(path: Path) -> Image.Image:
    """A picture's pixels: the page hands out no files, wherever they are."""
    with Image.open(path) as file:
        return file.convert("RGB")
