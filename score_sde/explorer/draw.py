"""Draw samples of a run, watch them come, and compare two ways from the same noise."""

from __future__ import annotations

from typing import Any

from score_sde.checks import UserError
from score_sde.explorer.library import import_gradio
from score_sde.explorer.runs_here import Subject
from score_sde.explorer.widgets import picture, real, shown, spoken, whole
from score_sde.plotting.pictures import picture_of
from score_sde.runs.choices import SAMPLERS
from score_sde.runs.film import Film, film, state_picture
from score_sde.runs.wish import Wish

FRAMES = 11


def draw_tab(subject: Subject) -> None:
    """The tab; only what this run can be told is asked for."""
    gr = import_gradio()
    drawing = Drawing(subject)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            asked = [*_way(subject), *_what_is_drawn(subject)]
            gr.Markdown(subject.untold, visible=bool(subject.untold), elem_id="untold")
            with gr.Accordion("compare with, from the same noise", open=False):
                asked += _way(subject, "nothing")
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

    found = [first, beside, second, said, moment, state, seen, when]
    button.click(spoken(drawing.draw), asked, found)
    moment.release(spoken(drawing.go_to), moment, [state, seen, when], show_progress="hidden")


def _way(subject: Subject, *others: str) -> list[Any]:
    """The controls of a `Way`; the first of ``others`` is chosen in place of the run's sampler."""
    gr = import_gradio()
    own = subject.run().sampling.method
    samplers = [*others, *(SAMPLERS if own in SAMPLERS else [own])]  # a map of the flow has its own
    most = getattr(subject.run().score, "steps", None) or 200  # that a map knows
    return [
        gr.Dropdown(samplers, value=others[0] if others else own, label="sampler"),
        gr.Slider(1, most, value=min(10, most), step=1, label="steps"),
        gr.Dropdown(subject.weights, value="ema", label="weights",
                    visible=len(subject.weights) > 1),
    ]  # fmt: skip


def _what_is_drawn(subject: Subject) -> list[Any]:
    """The controls of which samples, and of what they are told."""
    gr = import_gradio()
    usual, kinds = 64 if subject.in_the_plane else 16, ["any", *subject.classes]
    return [
        gr.Number(0, label="seed of the first sample", precision=0),
        gr.Slider(1, 64, value=usual, step=1, label="samples"),
        gr.Dropdown(kinds, value="any", label="class", visible=len(kinds) > 1),
        gr.Textbox("", label="prompt", visible=subject.takes_prompts),
        gr.Textbox("", label="negative prompt: what to lead away from",
                   visible=subject.takes_prompts),
        gr.Slider(1, 10, value=1, step=0.1, label="guidance", visible=subject.takes_guidance),
    ]  # fmt: skip


class Drawing:
    """What the tab's buttons do, and the film that was drawn last, of the page's one user."""

    def __init__(self, subject: Subject):
        self.subject, self.spec = subject, subject.run().item_spec
        self.film: Film | None = None

    def draw(
        self, method: str, steps: Any, weights: str, seed: Any, n: Any, kind: str, prompt: str,
        negative: str, guidance: Any, other: str, other_steps: Any, other_weights: str,
    ) -> list[Any]:  # fmt: skip
        """Samples one way, and another way if one is chosen."""
        gr = import_gradio()
        wish = Wish(
            class_labels=None if kind == "any" else self.subject.classes.index(kind),
            prompt=prompt.strip() or None,
            negative_prompt=negative.strip() or None,
            guidance=None if guidance == 1 else real(guidance, "guidance", 0, 1000),
        )
        self.film = found = self._watch(method, steps, weights, seed, n, wish)
        of = "{}: {}" if len(self.subject.weights) > 1 else "{1}"
        lines, against = [of.format(weights, found.result)], None
        if other != "nothing":
            rival = self._watch(other, other_steps, other_weights, seed, n, wish).result
            apart = (rival.x - found.result.x).square().mean().sqrt()
            lines += [of.format(other_weights, rival), f"rms difference {float(apart):.3f}"]
            against = shown(picture_of(rival.x.cpu(), self.spec))
        drawn, last = shown(picture_of(found.result.x.cpu(), self.spec)), len(found.times) - 1
        beside, moment = gr.update(visible=against is not None), gr.update(maximum=last, value=last)
        return [drawn, beside, against, "  \n".join(lines), moment, *self._at(found, last)]

    def go_to(self, i: Any) -> list[Any]:
        """A moment of the way of what was drawn last."""
        if self.film is None:
            raise UserError("nothing has been drawn yet: press Draw.")
        last = len(self.film.times) - 1
        return self._at(self.film, min(whole(i, "the moment", 0, FRAMES), last))

    def _watch(self, method: str, steps: Any, weights: str, seed: Any, n: Any, wish: Wish) -> Film:
        steps, seed = whole(steps, "steps", 1, 1000), whole(seed, "the seed", 0, 2**63 - 1)
        return film(self.subject.run(weights), whole(n, "samples", 1, 64), seed, frames=FRAMES,
                    wish=wish, method=method, steps=steps)  # fmt: skip

    def _at(self, found: Film, k: int) -> list[Any]:
        return [
            shown(state_picture(found.states[k], self.spec)),
            shown(picture_of(found.denoised[k], self.spec)),
            f"t = {float(found.times[k]):.3g}",
        ]
