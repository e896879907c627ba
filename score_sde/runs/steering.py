"""A wish as a score: what samples of a run are told is bound, and guided where that is wished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from score_sde import build
from score_sde.checks import trusting
from score_sde.conditioning.classes import classes_of
from score_sde.conditioning.guidance import guide
from score_sde.conditioning.rules import make_rule
from score_sde.conditioning.text import encode, said_of
from score_sde.nets import packed
from score_sde.runs.wish import Wish, check_wish, labels_of
from score_sde.sampling import ScoreFn

if TYPE_CHECKING:
    from score_sde.runs.run import Run


@dataclass(frozen=True)
class Steered:
    """The score of samples that were wished for, and what to write beside them."""

    score: Any
    class_labels: Tensor | None
    captions: tuple[str, ...] | None
    settings: dict[str, Any]


def said_of_classes(labels: Tensor | None) -> dict[str, Any]:
    """What the settings of samples say of their classes."""
    if labels is None:
        return {}
    return {"class_labels": int(labels[0]) if len(labels.unique()) == 1 else "one each"}


def class_names(run: Run) -> list[str]:
    """Names of the classes that the network is told, [] for none."""
    count, names = classes_of(run.score.net), run.data_spec.classes
    return list(names) if len(names) == count else [str(i) for i in range(count)]


def steer(run: Run, wish: Wish, seeds: Sequence[int]) -> Steered:
    """The score of samples with these seeds; RunError (or another UserError) for what cannot be."""
    captions = check_wish(run, wish, len(seeds))
    labels = labels_of(run, wish.class_labels, seeds, wish.classifier)
    known = classes_of(run.score.net) > 0
    condition: dict[str, Tensor | None] = {"class_labels": labels if known else None}
    condition |= dict(wish.condition or {})
    condition |= (
        {} if captions.prompts is None else _encoded(run, captions.prompts, wish.prior, seeds)
    )
    model = packed(run.score)
    score: Any = model.bind(**condition)
    settings = said_of_classes(labels)
    if captions.prompts is not None:
        same = len(set(captions.prompts)) == 1
        settings["prompt"] = captions.prompts[0] if same else "one each"
    other: ScoreFn = model.bind()
    if captions.negative is not None:
        led = _encoded(run, captions.negative, wish.prior, seeds)
        other = model.bind(**{"class_labels": labels, **led})
    if wish.against is not None:
        other = wish.against.score.bind(**condition)
    if wish.classifier is not None:
        settings["classifier"] = str(wish.classifier.path)
        assert labels is not None
        score, other = wish.classifier.model.told(score, labels), score
    if wish.guided:
        settings |= {"guidance": wish.guidance, **wish.said}
        score = _guided(run, wish, score, other)
    return Steered(score, labels, captions.prompts, settings)


def _guided(run: Run, wish: Wish, score: ScoreFn, other: ScoreFn) -> ScoreFn:
    """The score led away from the other one as wished."""
    spec = run.data_spec
    bounds = (-1.0, 1.0)
    if spec.low is not None and spec.high is not None:
        ends = spec.to_model(torch.tensor([spec.low, spec.high]).reshape(2, *[1] * len(spec.shape)))
        bounds = (float(ends[0].min()), float(ends[1].max()))
    return guide(
        score, other, float(wish.guidance or 0), interval=wish.interval,
        rule=make_rule(wish.rule, wish.rule_options), rescale=wish.options.get("rescale") or 0.0,
        threshold=wish.options.get("threshold"), bounds=bounds,
    )  # fmt: skip


def _encoded(
    run: Run, captions: Sequence[str], prior: Run | None, seeds: Sequence[int]
) -> Mapping[str, Tensor]:
    """The conditions of captions by the run's text encoder, or by a prior; says what is cut off."""
    if prior is not None:
        drawn = prior.sample(len(seeds), seeds[0], prompt=captions, pixels=False)
        return {"pooled": drawn.x.flatten(1)}
    with trusting(run.trusted):
        encoder = build.build_text_encoder(run.config)
    found = encode(encoder, captions)
    if said := said_of(found.cut):
        print(said)
    return found.condition
