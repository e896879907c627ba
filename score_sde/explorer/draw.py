"""Draw samples of a run, watch them come, and compare two ways from the same noise."""

from __future__ import annotations

from typing import Any

from score_sde.checks import UserError
from score_sde.data.pictures import picture_of
from score_sde.explorer.runs_here import Subject
from score_sde.explorer.widgets import import_gradio, picture, shown, spoken, whole
from score_sde.runs.choices import SAMPLERS
from score_sde.runs.film import Film, film, state_picture
from score_sde.runs.wish import Wish

FRAMES = 11


def draw_tab(subject: Subject) -> None:
    """The tab; only what this run can be told is asked for."""
    gr = import_gradio()
    run = subject.run()
    own = run.sampling.method  # of a map of the flow, no other will do
    samplers = list(SAMPLERS) if own in SAMPLERS else [own]
    most = getattr(run.score, "steps", None) or 200  # that a map knows
    films: dict[str, Film] = {}  # of the page's one user

    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            sampler = gr.Dropdown(samplers, value=own, label="sampler")
            steps = gr.Slider(1, most, value=min(10, most), step=1, label="steps")
            seed = gr.Number(0, label="seed of the first sample", precision=0)
            count = gr.Slider(
                1, 64, value=64 if subject.in_the_plane else 16, step=1, label="samples"
            )
            weights = gr.Dropdown(subject.weights, value="ema", label="weights",
                                  visible=len(subject.weights) > 1)  # fmt: skip
            names = ["any", *subject.classes]
            kind = gr.Dropdown(names, value="any", label="class", visible=len(names) > 1)
            prompt = gr.Textbox("", label="prompt", visible=subject.takes_prompts)
            negative = gr.Textbox("", label="negative prompt: what to lead away from",
                                  visible=subject.takes_prompts)  # fmt: skip
            guidance = gr.Slider(1, 10, value=1, step=0.1, label="guidance",
                                 visible=subject.takes_guidance)  # fmt: skip
            gr.Markdown(subject.untold, visible=bool(subject.untold), elem_id="untold")
            with gr.Accordion("compare with, from the same noise", open=False):
                other = gr.Dropdown(["nothing", *samplers], value="nothing", label="sampler")
                other_steps = gr.Slider(1, most, value=min(10, most), step=1, label="steps")
                other_weights = gr.Dropdown(subject.weights, value="ema", label="weights",
                                            visible=len(subject.weights) > 1)  # fmt: skip
            button = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                with gr.Column(min_width=200):
                    first = picture("samples", "first")
                with gr.Column(min_width=200, visible=False) as beside:
                    second = picture("the other's, from the same noise", "second")
            said = gr.Markdown(elem_id="said")
            moment = gr.Slider(0, FRAMES - 1, value=FRAMES - 1, step=1, elem_id="moment",
                               label="on the way, from noise to data")  # fmt: skip
            when = gr.Markdown()
            with gr.Row():
                with gr.Column(min_width=200):
                    state = picture("the state x_t", "state")
                with gr.Column(min_width=200):
                    seen = picture("what the network sees in it, E[x_0 | x_t]", "seen")

    def watch(method: str, steps: Any, weights: str, seed: Any, n: Any, wish: Wish) -> Film:
        steps, seed = whole(steps, "steps", 1, 1000), whole(seed, "the seed", 0, 2**63 - 1)
        return film(subject.run(weights), whole(n, "samples", 1, 64), seed, frames=FRAMES,
                    wish=wish, method=method, steps=steps)  # fmt: skip

    @spoken
    def draw(
        method: str, steps: Any, seed: Any, n: Any, weights: str, kind: str, prompt: str,
        negative: str, guidance: float, other: str, other_steps: Any, other_weights: str,
    ) -> Any:  # fmt: skip
        wish = Wish(
            class_labels=None if kind == "any" else subject.classes.index(kind),
            prompt=prompt.strip() or None,
            negative_prompt=negative.strip() or None,
            guidance=None if guidance == 1 else float(guidance),
        )
        films["first"] = found = watch(method, steps, weights, seed, n, wish)
        lines, against = [str(found.result)], None
        if other != "nothing":
            rival = watch(other, other_steps, other_weights, seed, n, wish).result
            apart = (rival.x - found.result.x).square().mean().sqrt()
            lines += [str(rival), f"rms difference {float(apart):.3f}"]
            against = shown(picture_of(rival.x.cpu(), run.item_spec))
        drawn = shown(picture_of(found.result.x.cpu(), run.item_spec))
        compared = gr.update(visible=against is not None)
        return [drawn, compared, against, "  \n".join(lines), *at(len(found.times) - 1)]

    def at(i: int) -> list[Any]:
        found = films["first"]
        k = min(int(i), len(found.times) - 1)
        return [
            gr.update(maximum=len(found.times) - 1, value=k),
            shown(state_picture(found.states[k], run.item_spec)),
            shown(picture_of(found.denoised[k], run.item_spec)),
            f"t = {float(found.times[k]):.3g}",
        ]

    @spoken
    def go_to(i: int) -> list[Any]:
        if "first" not in films:
            raise UserError("nothing has been drawn yet: press Draw.")
        return at(i)[1:]

    asked = [sampler, steps, seed, count, weights, kind, prompt, negative, guidance]
    asked += [other, other_steps, other_weights]
    button.click(draw, asked, [first, beside, second, said, moment, state, seen, when])
    moment.release(go_to, moment, [state, seen, when], show_progress="hidden")
