"""Score fields of the plane: at any time, followed from a click, and learned from a drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from score_sde.checks import UserError, real_tensor
from score_sde.explorer.library import import_gradio
from score_sde.explorer.runs_here import Subject
from score_sde.explorer.widgets import canvas, data_url, from_canvas, real, spoken, whole
from score_sde.plotting import record_trajectory
from score_sde.plotting.fields import arrow_scale, density_on, evaluate, lattice, own_density
from score_sde.plotting.style import limits, sampler_style, shaded
from score_sde.runs.plane import PROCESSES, Field, closed_forms, learn

EXTENT = 3.0
ARROWS = 21
START = 0.15  # of the time at first
FOLLOWED = ("heun", "ddim", "adams", "dpmpp_2m", "euler_maruyama", "ancestral")
THIS_RUN, DRAWN = "this run", "what you drew"


def scene(field: Field, t: float, paths: Sequence[dict] = ()) -> str:
    """The field at time t as the canvas takes it; with the density where it is known."""
    score, points = field.score, field.points
    bounds, x = limits(EXTENT), lattice(EXTENT, ARROWS)
    value = evaluate(score, x, t)
    value = value * arrow_scale(value, bounds, ARROWS)
    longest, cell = value.norm(dim=1, keepdim=True), 2 * EXTENT / ARROWS
    value = value * (1.4 * cell / longest).clamp(max=1)
    found: dict[str, Any] = {"extent": EXTENT, "paths": list(paths)}
    found["arrows"] = torch.cat([x.double(), value], 1).numpy().round(3).tolist()
    density = own_density(score)
    if density is not None:
        shade = density_on(density, lattice(EXTENT, 96), t).reshape(96, 96)[::-1]
        found["shade"] = data_url(shaded(shade))
    if points is not None:
        found["points"] = points[:1500].numpy().round(3).tolist()
    return json.dumps(found)


def follow(
    field: Field, start: Sequence[float], t: float, method: str, steps: int, seed: int
) -> dict:
    """The way of a sampler from a point at time t down to t_min, as the canvas takes it."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    low, high = math.sqrt(field.sde.t_min), math.sqrt(t)
    times = ((1 - u) * high + u * low) ** 2  # denser near the data
    x = torch.tensor([list(start)], dtype=torch.float32)
    _, states = record_trajectory(field.sde, field.score, x_T=x, method=method, grid=times,
                                  seeds=[seed])  # fmt: skip
    points = states[:, 0].double().numpy().round(3).tolist()
    return {"colour": sampler_style(method)["color"], "points": points}


class Fields:
    """The fields that the page can show, by name."""

    def __init__(self, subject: Subject | None):
        self.data = closed_forms()
        self.subject = subject
        self.drawn: Field | None = None

    @property
    def names(self) -> list[str]:
        """Of all that can be shown now."""
        own = [THIS_RUN] if self.subject is not None and self.subject.in_the_plane else []
        return [*own, *self.data, *([DRAWN] if self.drawn is not None else [])]

    def get(self, name: str, process: str) -> Field:
        """One of them; under this process, where it has none of its own."""
        if name == THIS_RUN and self.subject is not None:
            run = self.subject.run()
            if run.data_spec.shape != (2,):
                raise UserError(
                    f"a field is shown of data in the plane; this run's have shape "
                    f"{run.data_spec.shape}."
                )
            return Field(run.sde, run.score)
        if name == DRAWN:
            if self.drawn is None:
                raise UserError("nothing was drawn and learned yet: draw on the right, then Train.")
            return self.drawn
        if name not in self.data or process not in PROCESSES:
            raise UserError(f"there is no field of {name!r} under {process!r}.")
        sde = PROCESSES[process]
        return Field(sde, self.data[name].score(sde))


def plane_tab(subject: Subject | None) -> None:
    """The tab: the field on the left, a drawing on the right."""
    gr = import_gradio()
    plane = Plane(Fields(subject))
    if subject is not None and not subject.in_the_plane:
        gr.Markdown(
            f"This run's items have shape {subject.run().data_spec.shape}; a field can be shown of "
            "points in the plane, here of data whose score is known and of what you draw.",
            elem_id="not-in-the-plane",
        )
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            of_field, t, field = _field_controls(plane.fields)
            with gr.Row():
                sampler = gr.Dropdown(FOLLOWED, value="heun", label="paths by", min_width=130)
                steps = gr.Slider(2, 200, value=40, step=1, label="steps", min_width=120)
            wipe = gr.Button("Clear paths", elem_id="clear-paths")
        with gr.Column(scale=2, min_width=280):
            drawing = canvas(
                "plane.js", "draw data, with the mouse or a finger", "drawing", draws=True
            )
            with gr.Row():
                train = gr.Button("Train", variant="primary", elem_id="train")
                clear = gr.Button("Clear", elem_id="clear-drawing")
            said = gr.Markdown("A small network learns the score of what you draw; its field "
                               "appears as it learns.", elem_id="learned")  # fmt: skip

    data, process = of_field
    asked = [data, process, t]
    for changed in of_field:
        changed.input(spoken(plane.choose), asked, [field, process])
    t.input(spoken(plane.move), asked, field, show_progress="hidden", trigger_mode="always_last")
    Plane.click.__annotations__["event"] = gr.EventData  # by which gradio hands the event over
    field.click(spoken(plane.click), [*asked, sampler, steps], field, show_progress="hidden")
    wipe.click(spoken(plane.forget), asked, field)
    clear.click(lambda: "", None, drawing)
    learned = [field, said, data, process]
    train.click(spoken(plane.learned), [drawing, t], learned, show_progress="hidden")


def _field_controls(fields: Fields) -> tuple[tuple[Any, Any], Any, Any]:
    """What the field is of (data, process), its time, and its canvas with the first field."""
    gr = import_gradio()
    first = fields.names[0]
    with gr.Row():
        data = gr.Dropdown(fields.names, value=first, label="data", min_width=130)
        process = gr.Dropdown(list(PROCESSES), value="vp", label="process", min_width=90,
                              visible=first != THIS_RUN)  # fmt: skip
    t = gr.Slider(0.0, 1.0, value=START, step=0.005, label="t: 0 is data, 1 is noise",
                  elem_id="time")  # fmt: skip
    field = canvas("plane.js", "the score at t; a click starts a path", "field", draws=False)
    shown = fields.get(first, "vp")
    field.value = scene(shown, shown.time(START))
    return (data, process), t, field


class Plane:
    """What the tab's controls do; the paths are those of the page's one user."""

    def __init__(self, fields: Fields):
        self.fields = fields
        self.paths: list[dict] = []

    def move(self, name: str, process: str, t: Any) -> str:
        """The field at another time, and the paths."""
        shown = self.fields.get(name, process)
        return scene(shown, shown.time(real(t, "t", 0, 1)), self.paths)

    def choose(self, name: str, process: str, t: Any) -> list[Any]:
        """Another field, and whether it asks for a process."""
        gr = import_gradio()
        return [self.forget(name, process, t), gr.update(visible=name not in (THIS_RUN, DRAWN))]

    def click(self, name: str, process: str, t: Any, method: str, steps: Any, event: Any) -> str:
        """A path from where the field was clicked."""
        shown, count = self.fields.get(name, process), whole(steps, "steps", 2, 1000)
        here = shown.time(max(real(t, "t", 0, 1), 0.01))
        self.paths.append(follow(shown, event.at, here, method, count, len(self.paths)))
        return self.move(name, process, t)

    def forget(self, name: str, process: str, t: Any) -> str:
        """The field without paths."""
        self.paths.clear()
        return self.move(name, process, t)

    def learned(self, text: str, t: Any) -> Iterator[list[Any]]:
        """The field of what was drawn, as it is learned."""
        gr = import_gradio()
        points = real_tensor(from_canvas(text, "drawn") or [], "points of the drawing").float()
        self.paths.clear()
        for found in learn(points, PROCESSES["vp"]):
            self.fields.drawn = found.field
            state = "done: click on the field" if found.done else "learning"
            yield [
                scene(found.field, found.field.time(real(t, "t", 0, 1))),
                f"{state}; {len(points)} points, update {found.step}, loss {found.loss:.3f}",
                gr.update(choices=self.fields.names, value=DRAWN), gr.update(visible=False),
            ]  # fmt: skip
