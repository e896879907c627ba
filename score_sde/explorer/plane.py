"""Score fields of the plane: at any time, followed from a click, and learned from a drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from score_sde.checks import UserError
from score_sde.explorer.runs_here import Subject
from score_sde.explorer.widgets import canvas, data_url, import_gradio, spoken, whole
from score_sde.plotting.fields import arrow_scale, density_on, evaluate, lattice, own_density
from score_sde.plotting.paths import record_trajectory
from score_sde.plotting.style import density_map, limits, sampler_style
from score_sde.runs.plane import PROCESSES, Field, closed_forms, learn

EXTENT = 3.0
ARROWS = 21
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
        found["shade"] = data_url((255 * density_map()(shade)[..., :3]).astype(np.uint8))
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
    fields, paths = Fields(subject), list[dict]()
    first = fields.names[0]
    start = scene(fields.get(first, "vp"), 0.15)

    if subject is not None and not subject.in_the_plane:
        gr.Markdown(
            f"This run's items have shape {subject.run().data_spec.shape}; a field can be shown of "
            "points in the plane, here of data whose score is known and of what you draw.",
            elem_id="not-in-the-plane",
        )
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                data = gr.Dropdown(fields.names, value=first, label="data", min_width=130)
                process = gr.Dropdown(list(PROCESSES), value="vp", label="process", min_width=90,
                                      visible=first != THIS_RUN)  # fmt: skip
            t = gr.Slider(0.0, 1.0, value=0.15, step=0.005, label="t: 0 is data, 1 is noise",
                          elem_id="time")  # fmt: skip
            field = canvas(
                "plane.js", "the score at t; a click starts a path", "field", draws=False
            )
            field.value = start
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

    def now(name: str, process: str, t: float) -> str:
        shown = fields.get(name, process)
        return scene(shown, shown.time(t), paths)

    @spoken
    def choose(name: str, process: str, t: float) -> Any:
        paths.clear()
        return now(name, process, t), gr.update(visible=name not in (THIS_RUN, DRAWN))

    @spoken
    def move(name: str, process: str, t: float) -> str:
        return now(name, process, t)

    def click(name: str, process: str, t: float, method: str, steps: Any, event: Any) -> str:
        shown, count = fields.get(name, process), whole(steps, "steps", 2, 1000)
        here = shown.time(max(t, 0.01))
        paths.append(follow(shown, event.at, here, method, count, len(paths)))
        return now(name, process, t)

    click.__annotations__["event"] = gr.EventData  # by which gradio hands the event over

    @spoken
    def forget(name: str, process: str, t: float) -> str:
        paths.clear()
        return now(name, process, t)

    @spoken
    def learned(text: str, t: float) -> Iterator[Any]:
        points = torch.tensor(json.loads(text or "{}").get("drawn") or [], dtype=torch.float32)
        paths.clear()
        for found in learn(points, PROCESSES["vp"]):
            fields.drawn = found.field
            state = "done: click on the field" if found.done else "learning"
            yield (
                scene(found.field, found.field.time(t)),
                f"{state}; {len(points)} points, update {found.step}, loss {found.loss:.3f}",
                gr.update(choices=fields.names, value=DRAWN), gr.update(visible=False),
            )  # fmt: skip

    asked = [data, process, t]
    data.input(choose, asked, [field, process])
    process.input(choose, asked, [field, process])
    t.input(move, asked, field, show_progress="hidden", trigger_mode="always_last")
    field.click(spoken(click), [*asked, sampler, steps], field, show_progress="hidden")
    wipe.click(forget, asked, field)
    clear.click(lambda: "", None, drawing)
    train.click(learned, [drawing, t], [field, said, data, process], show_progress="hidden")
