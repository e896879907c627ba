"""The runs of a folder as a page: pictures, curves and configs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from score_sde.checks import UserError
from score_sde.explorer.library import import_gradio
from score_sde.explorer.widgets import spoken
from score_sde.plotting.style import CYCLE, legend, subplots
from score_sde.runs.editing import picture_at
from score_sde.runs.listing import HEAD, RunSummary, curve, differences, find_runs, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def runs_tab(root: Path) -> None:
    """The tab: all runs as a table, and some of them side by side."""
    gr = import_gradio()
    found = _named(root)

    gr.Markdown(f"Runs in `{root}`, the last changed first.")
    with gr.Row():
        again = gr.Button("Look again", elem_id="look-again", scale=0, min_width=140)
    table = gr.Dataframe(_table(found), headers=list(HEAD[:-1]), interactive=False,
                         elem_id="runs", buttons=[])  # fmt: skip
    chosen = gr.CheckboxGroup(list(found), value=list(found)[:3], label="side by side")
    show = gr.Button("Compare", variant="primary", elem_id="compare")
    curves = gr.Plot(label="loss", elem_id="curves")
    pictures = gr.Gallery(label="their newest pictures", columns=3, format="png", height="auto",
                          object_fit="contain", elem_id="pictures")  # fmt: skip
    fields = gr.Markdown(elem_id="configs")

    @spoken
    def look() -> Any:
        found.clear()
        found.update(_named(root))
        names = list(found)
        return _table(found), gr.update(choices=names, value=names[:3])

    @spoken
    def compare(names: list[str]) -> Any:
        here = {name: found[name] for name in names if name in found}
        if not here:
            raise UserError("no run is chosen: tick at least one.")
        shown = [(_opened(run.picture), name) for name, run in here.items() if run.picture]
        head = "| field | " + " | ".join(f"`{name}`" for name in here) + " |"
        lines = [head, "|---" * (len(here) + 1) + "|"]
        lines += [f"| `{field}` | " + " | ".join(f"`{v}`" for v in values) + " |"
                  for field, values in differences([r.path for r in here.values()])]  # fmt: skip
        text = "\n".join(lines) if len(lines) > 2 else "Their configs are the same."
        return _losses(here), shown, text

    again.click(look, None, [table, chosen])
    show.click(compare, chosen, [curves, pictures, fields])


def _named(root: Path) -> dict[str, RunSummary]:
    """The runs by their place in the folder, the last changed first."""
    return {str(run.path.relative_to(root)): run for run in reversed(find_runs(root))}


def _table(found: dict[str, RunSummary]) -> list[list[str]]:
    """Their rows without the pictures, which are shown."""
    lines = rows(list(found.values()))
    return [[name, *line[1:-1]] for name, line in zip(found, lines, strict=True)]


def _losses(runs: dict[str, RunSummary]) -> Figure:
    """Smoothed losses over steps; it says so where none are logged yet."""
    figure, ax = subplots(width=6.5, height=3)
    logged = False
    for (name, run), colour in zip(runs.items(), CYCLE * len(runs), strict=False):
        steps, losses = curve(run.path)
        mark, logged = "o" if len(steps) < 10 else None, logged or bool(steps)
        ax.plot(steps, losses, color=colour, label=name, linewidth=1.2, marker=mark)
    ax.set(xlabel="step", ylabel="loss")
    if logged:
        ax.set_yscale("log")
        legend(ax)
    else:
        ax.text(0.5, 0.5, "no losses are logged yet", transform=ax.transAxes, ha="center")
    return figure


def _opened(path: Path) -> Image.Image:
    """A picture's pixels: the page hands out no files, wherever they are."""
    return picture_at(path).convert("RGB")
