"""How likely a run finds a picture."""

from __future__ import annotations

from typing import Any

from score_sde.checks import UserError
from score_sde.explorer.library import import_gradio
from score_sde.explorer.runs_here import Subject
from score_sde.explorer.widgets import picture, shown, spoken, upload, whole
from score_sde.plotting.pictures import image_array
from score_sde.runs.editing import adapted, read_picture
from score_sde.runs.items import refuse_latents
from score_sde.runs.likelihood import likelihood_of


def likelihood_tab(subject: Subject) -> None:
    """The tab: an upload, what the model sees of it, and bits per dimension."""
    gr = import_gradio()
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            file = upload("a picture", "likelihood-upload")
            nfe = gr.Slider(32, 128, value=64, step=8, label="network evaluations")
            button = gr.Button("How likely is it?", variant="primary", elem_id="likely")
        with gr.Column(scale=2, min_width=300):
            seen = picture("as the model sees it", "as-seen")
            said = gr.Markdown(elem_id="likelihood-said")

    @spoken
    def judge(path: str | None, nfe: Any) -> Any:
        if path is None:
            raise UserError("there is no picture yet: upload one.")
        run = subject.run()
        refuse_latents(run, "and a density of latents is none of pictures", "Choose one of pixels.")
        spec, nfe = run.data_spec, whole(nfe, "network evaluations", 1, 1000)
        x0 = read_picture(path, spec)
        note = adapted(path, spec)
        found = likelihood_of(
            run, run.score, spec.to_raw(x0[None]).round(), [0], probes=2, nfe=nfe,
            data_std=run.data_std, prior="sde", truncation="bound" if spec.levels else "corrected",
        )  # fmt: skip
        pixels = image_array(spec.to_uint8(x0[None].cpu())[0])
        return shown(pixels, 224), "  \n".join([*([note] if note else []), str(found)])

    button.click(judge, [file, nfe], [seen, said])
