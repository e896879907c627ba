"""Hide a part of a picture, and draw what may have been there."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.explorer.library import import_gradio
from score_sde.explorer.runs_here import Subject
from score_sde.explorer.widgets import (
    canvas,
    data_url,
    from_canvas,
    picture,
    shown,
    spoken,
    upload,
    whole,
)
from score_sde.plotting.pictures import grid_array, image_array
from score_sde.runs.editing import adapted, read_picture
from score_sde.runs.items import refuse_latents
from score_sde.runs.restore import fill as filled
from score_sde.runs.run import Run


def restore_tab(subject: Subject) -> None:
    """The tab: a picture to paint on, and its fillings."""
    gr = import_gradio()
    filling = Filling(subject)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = upload("a picture, brought to the model's size", "restore-upload")
            seed = gr.Number(0, label="or a sample of this seed", precision=0)
            take = gr.Button("Take the sample", elem_id="take")
            paint = canvas("mask.js", "paint over what is to be filled", "mask")
            clear = gr.Button("Clear", elem_id="clear-mask")
            n = gr.Slider(1, 16, value=4, step=1, label="draws")
            button = gr.Button("Fill", variant="primary", elem_id="fill")
        with gr.Column(scale=2, min_width=300):
            found = picture("fillings, each as likely as the others", "filled")
            said = gr.Markdown(elem_id="fill-said")

    file.change(spoken(filling.opened), file, [paint, said])
    take.click(spoken(filling.sampled), seed, paint)
    clear.click(spoken(filling.wiped), None, paint)
    button.click(spoken(filling.fill), [paint, n], [found, said])


class Filling:
    """What the tab's controls do, and the picture that is painted on, of the page's one user."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.x0: Tensor | None = None

    @property
    def run(self) -> Run:
        """The run; RunError for one of latents."""
        run = self.subject.run()
        refuse_latents(run, "whose masks go through its decoder", "Choose a run of pixels.")
        return run

    def opened(self, path: str | None) -> list[str]:
        """An upload as the model sees it, and how it was changed; None takes it away."""
        self.x0 = None
        if path is None:
            return ["", ""]
        spec = self.run.data_spec
        self.x0 = read_picture(path, spec)
        return [self.wiped(), adapted(path, spec)]

    def sampled(self, seed: Any) -> str:
        """A sample to paint on."""
        self.x0 = self.run.sample(1, whole(seed, "the seed", 0, 2**63 - 1)).x[0].cpu()
        return self.wiped()

    def wiped(self) -> str:
        """The picture without paint, as the canvas takes it; "" without one."""
        if self.x0 is None:
            return ""
        spec = self.run.data_spec
        height, width = spec.shape[-2:]
        pixels = image_array(spec.to_uint8(self.x0[None].cpu())[0])
        return json.dumps({"picture": data_url(pixels), "height": height, "width": width})

    def fill(self, painted: str, n: Any) -> list[Any]:
        """Draws of what may be under the paint."""
        hidden = str(from_canvas(painted, "hidden") or "")
        if self.x0 is None:
            raise UserError("there is no picture yet: upload one, or take a sample.")
        if "1" not in hidden:
            raise UserError("the mask covers nothing: paint over what is to be filled.")
        run = self.run
        spec = run.data_spec
        if len(hidden) != math.prod(spec.shape[-2:]):
            raise UserError("the mask is of another picture: press Clear, and paint it anew.")
        seen = torch.tensor([c == "0" for c in hidden]).reshape(spec.shape[-2:])
        x, result = filled(run, self.x0, seen, whole(n, "draws", 1, 16))
        said = str(result).replace("\n", "  \n")
        return [shown(grid_array(spec.to_uint8(x.float()))), said]
