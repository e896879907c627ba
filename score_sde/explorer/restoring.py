"""Hide a part of a picture, and draw what may have been there."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.data.pictures import grid_array, image_array
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
from score_sde.runs.editing import adapted, read_picture
from score_sde.runs.items import refuse_latents
from score_sde.runs.restore import fill as filled
from score_sde.runs.run import Run


def restore_tab(subject: Subject) -> None:
    """The tab: a picture to paint on, and its fillings."""
    gr = import_gradio()
    held: dict[str, Tensor] = {}

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

    def run_of_pixels() -> Run:
        run = subject.run()
        refuse_latents(run, "whose masks go through its decoder", "Choose a run of pixels.")
        return run

    def scene() -> str:
        spec = run_of_pixels().data_spec
        height, width = spec.shape[-2:]
        pixels = image_array(spec.to_uint8(held["x0"][None].cpu())[0])
        return json.dumps({"picture": data_url(pixels), "height": height, "width": width})

    @spoken
    def opened(path: str | None) -> Any:
        held.clear()
        if path is None:
            return "", ""
        spec = run_of_pixels().data_spec
        held["x0"] = read_picture(path, spec)
        return scene(), adapted(path, spec)

    @spoken
    def sampled(seed: Any) -> str:
        run = run_of_pixels()
        held["x0"] = run.sample(1, whole(seed, "the seed", 0, 2**63 - 1)).x[0].cpu()
        return scene()

    @spoken
    def wipe() -> str:
        return scene() if held else ""

    @spoken
    def fill(painted: str, n: Any) -> Any:
        hidden = str(from_canvas(painted, "hidden") or "")
        if "x0" not in held:
            raise UserError("there is no picture yet: upload one, or take a sample.")
        if "1" not in hidden:
            raise UserError("the mask covers nothing: paint over what is to be filled.")
        run = run_of_pixels()
        spec = run.data_spec
        if len(hidden) != math.prod(spec.shape[-2:]):
            raise UserError("the mask is of another picture: press Clear, and paint it anew.")
        seen = torch.tensor([c == "0" for c in hidden]).reshape(spec.shape[-2:])
        x, result = filled(run, held["x0"], seen, whole(n, "draws", 1, 16))
        return shown(grid_array(spec.to_uint8(x.float()))), str(result).replace("\n", "  \n")

    file.change(opened, file, [paint, said])
    take.click(sampled, seed, paint)
    clear.click(wipe, None, paint)
    button.click(fill, [paint, n], [found, said])
