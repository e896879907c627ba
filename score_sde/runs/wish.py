"""What samples of a run are to be: classes, captions, and how strongly they are led there.

A wish is checked whole before any work: captions to a model of classes, more prompts than samples,
guidance of a model that never went without a condition are each a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from score_sde.checks import check_alone, shown
from score_sde.conditioning.classes import ClassLabels, class_labels_of, classes_of
from score_sde.conditioning.guidance import check_guidance
from score_sde.conditioning.rules import BESIDE, make_rule
from score_sde.models import FlowMap
from score_sde.runs.captions import Prompt, prompts_of, takes_prompts
from score_sde.runs.directory import RunError

if TYPE_CHECKING:
    from score_sde.runs.classifier import Classifier
    from score_sde.runs.run import Run


@dataclass(frozen=True)
class Wish:
    """What samples are to be.

    class_labels: as of `class_labels_of`. prompt: a caption for all samples, or one for each.
    guidance: the scale w of `guide`, None and 1 for none. negative_prompt: what to lead away from,
    instead of from nothing. against: another run to lead away from, told the same (autoguidance).
    classifier: of noisy samples, which leads to the classes (2105.05233). interval: of log-SNR,
    where guidance acts. rule: of `guide`; options: its fields, and rescale and threshold.
    condition: further things that the network is told, each with a row for each sample, such as
    the picture of a cascade. prior: a run that draws the embedding of a picture from a caption, for
    a run that is told such embeddings (2204.06125).
    """

    class_labels: ClassLabels = None
    prompt: Prompt = None
    guidance: float | None = None
    negative_prompt: Prompt = None
    against: Run | None = None
    interval: tuple[float, float] | None = None
    rule: str = "cfg"
    options: Mapping[str, Any] = field(default_factory=dict)
    classifier: Classifier | None = None
    condition: Mapping[str, Tensor] | None = None
    prior: Run | None = None

    def part(self, rows: range) -> Wish:
        """The wish for some of the samples that it gives one each."""

        def some(given: Any) -> Any:
            single = given is None or isinstance(given, str | int)
            return given if single else given[rows.start : rows.stop]

        return replace(
            self, class_labels=some(self.class_labels), prompt=some(self.prompt),
            negative_prompt=some(self.negative_prompt),
        )  # fmt: skip

    def to_arguments(self) -> dict[str, Any]:
        """As arguments of `Run.sample`."""
        return {
            "class_labels": self.class_labels, "prompt": self.prompt, "guidance": self.guidance,
            "negative_prompt": self.negative_prompt, "against": self.against,
            "guidance_interval": self.interval, "guidance_rule": self.rule,
            "guidance_options": self.options, "classifier": self.classifier,
            "condition": self.condition, "prior": self.prior,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """What a folder of samples depends on but for the classes, as plain values."""
        plain = self.to_arguments() | {"class_labels": None}
        for name in ("against", "prior"):
            plain[name] = None if plain[name] is None else str(plain[name].path)
        plain["classifier"] = None if self.classifier is None else self.classifier.identity
        plain["guidance_rule"] = None if self.rule == "cfg" else self.rule
        plain["guidance_options"] = dict(self.options) or None
        return {name: value for name, value in plain.items() if value is not None}

    @property
    def guided(self) -> bool:
        """Whether there is anything to lead away from."""
        return self.guidance is not None and self.guidance != 1

    @property
    def said(self) -> dict[str, Any]:
        """How it is guided, for the settings of samples, but for the scale."""
        found: dict[str, Any] = {"guidance_interval": self.interval}
        found["guidance_options"] = dict(self.options)
        found["guidance_rule"] = None if self.rule == "cfg" else self.rule
        found["against"] = None if self.against is None else str(self.against.path)
        return {name: value for name, value in found.items() if value}

    @property
    def rule_options(self) -> dict[str, Any]:
        """Those of the options that are fields of the rule."""
        return {name: v for name, v in self.options.items() if name not in BESIDE}


class Captions(NamedTuple):
    """One caption for each sample, or None."""

    prompts: tuple[str, ...] | None
    negative: tuple[str, ...] | None


def labels_of(
    run: Run, given: ClassLabels, seeds: Sequence[int], classifier: Classifier | None = None
) -> Tensor | None:
    """The classes of samples with these seeds, as the run, or else the classifier, knows them."""
    if classifier is None or classes_of(run.score.net):
        return run.class_labels(given, seeds)
    return class_labels_of(classifier.model.net, given, len(seeds), classifier.data_spec.classes)


def _check_others(run: Run, wish: Wish) -> None:
    from score_sde.runs.classifier import Classifier

    kinds: dict[str, tuple[type, str]] = {
        "against": (type(run), "a run, of score_sde.load"),
        "prior": (type(run), "a run, of score_sde.load"),
        "classifier": (Classifier, "a classifier, of score_sde.runs.classifier.load_classifier"),
    }
    for name, (kind, wanted) in kinds.items():
        given = getattr(wish, name)
        if given is not None and not isinstance(given, kind):
            raise RunError(f"{name} must be {wanted} (got {shown(given)}).")


def check_wish(run: Run, wish: Wish, n: int) -> Captions:
    """The captions of n samples; RunError for a wish that cannot be fulfilled, before any work."""
    _check_others(run, wish)
    if isinstance(run.score, FlowMap) and (wish.guided or wish.classifier is not None):
        raise RunError(
            f"{run.path} is a map of the flow, which cannot be led while it is sampled: guide its "
            "teacher when it is distilled, --mode distill --guidance 2."
        )
    speaker = run if wish.prior is None else wish.prior
    check_prior(run, wish.prior, wish.prompt is not None)
    prompts = prompts_of(speaker, wish.prompt, n, "prompt")
    negative = prompts_of(speaker, wish.negative_prompt, n, "negative_prompt")
    labels = labels_of(run, wish.class_labels, range(n), wish.classifier)
    rescale, threshold = (wish.options.get(name) for name in BESIDE)
    check_guidance(
        run.sde, 1.0 if wish.guidance is None else wish.guidance, wish.interval,
        0.0 if rescale is None else rescale, threshold,
    )  # fmt: skip
    make_rule(wish.rule, wish.rule_options)
    _check_always_told(run, wish, prompts is not None)
    if wish.classifier is not None:
        _check_classifier(run, wish, labels)
    if not wish.guided:
        _check_unguided(wish, negative)
    elif wish.classifier is None:
        _check_guided(run, wish, Captions(prompts, negative), labels)
    return Captions(prompts, negative)


def _check_always_told(run: Run, wish: Wish, prompted: bool) -> None:
    """RunError without what the network was always told: what it then draws means nothing."""
    given = set(wish.condition or {})
    if always_told_a_picture(run) and "picture" not in given:
        raise RunError(
            f"{run.path} was always told a picture (net.picture), so it draws nothing without one: "
            "it enlarges what another run draws, --workdir OTHER --upscale "
            f'{run.path}; from Python, condition={{"picture": ...}}.'
        )
    if prompted or trained_without(run) or "pooled" in given:
        return
    if takes_prompts(run) and "text" not in given:
        raise RunError(
            f"{run.path} was always told a caption (conditioning.dropout=0), so it draws nothing "
            "without one: give a prompt."
        )
    if run.eye is not None:
        raise RunError(
            f"{run.path} was always told an embedding (conditioning.dropout=0), so it draws "
            "nothing without one: give --prior and a prompt; from Python, "
            'condition={"pooled": ...}.'
        )


def _check_unguided(wish: Wish, negative: tuple[str, ...] | None) -> None:
    """RunError for what has no effect without guidance."""
    given: dict[str, Any] = {"a negative prompt": negative, "another run": wish.against}
    given["guidance_interval"] = wish.interval
    given["guidance_options"] = wish.options or None
    given["guidance_rule"] = None if wish.rule == "cfg" else wish.rule
    for name, value in given.items():
        if value is not None:
            raise RunError(f"{name} has no effect without guidance: give guidance=2.")


def _check_guided(run: Run, wish: Wish, captions: Captions, labels: Tensor | None) -> None:
    """RunError for guidance that this run cannot give."""
    guidance = f"guidance={wish.guidance:g}"
    if captions.negative is not None and captions.prompts is None:
        raise RunError("a negative prompt goes with a prompt; give both.")
    away = {"a negative prompt": captions.negative, "another run to lead away from": wish.against}
    check_alone(away, RunError)
    told = captions.prompts is not None or labels is not None or bool(wish.condition)
    if not told and wish.against is None:
        raise RunError(f"{guidance} leads from no condition to one: {_what_to_give(run)}.")
    if wish.against is not None:
        if wish.against.sde != run.sde or wish.against.data_spec.shape != run.data_spec.shape:
            raise RunError(
                f"{wish.against.path} is of another process or of other data than {run.path}: "
                "guidance needs a weaker model of the same ones."
            )
    elif captions.negative is None and not trained_without(run):
        raise RunError(
            f"{guidance} needs a model that was trained without its condition at times "
            "(conditioning.dropout=0.1); this one never was."
        )


def _what_to_give(run: Run) -> str:
    if (run.config.get("conditioning") or {}).get("text"):
        return "give a prompt"
    if classes_of(run.score.net):
        return f"give class_labels, of {', '.join(run.data_spec.classes[:12]) or 'its classes'}"
    return "this run was trained without any, so it takes a classifier, or another run as against"


def _check_classifier(run: Run, wish: Wish, labels: Tensor | None) -> None:
    """RunError for a classifier that cannot lead the samples of this run."""
    found = wish.classifier
    assert found is not None
    if labels is None:
        names = ", ".join(found.data_spec.classes[:12])
        raise RunError(f"a classifier leads to a class: give class_labels, of {names}.")
    if wish.negative_prompt is not None or wish.against is not None:
        raise RunError("a classifier leads by itself: leave out against and the negative prompt.")
    ours, theirs = run.data_spec, found.data_spec
    alike = ours.shape == theirs.shape and all(
        math.isclose(getattr(ours, name), getattr(theirs, name), rel_tol=1e-3, abs_tol=1e-3)
        for name in ("shift", "scale")
    )
    if found.model.sde != run.sde or not alike:
        raise RunError(
            f"the classifier {found.path} knows samples of {theirs.name} {theirs.shape} under "
            f"{found.model.sde}; {run.path} makes {ours.name} {ours.shape} under {run.sde}: train "
            "one with the same data, scaling and process."
        )
    if classes_of(run.score.net) not in (0, found.model.classes):
        raise RunError(
            f"the classifier {found.path} knows {found.model.classes} classes, {run.path} "
            f"{classes_of(run.score.net)}."
        )


def check_prior(run: Run, prior: Run | None, prompted: bool) -> None:
    """RunError unless a prior draws the embeddings that the run is told."""
    if run.eye is not None and prior is None and prompted:
        raise RunError(
            f"{run.path} is told embeddings of pictures, no captions: give --prior, a run of "
            "config unclip:prior that makes the one of the other."
        )
    if prior is None:
        return
    if run.eye is None:
        raise RunError(
            f"{run.path} is not told embeddings (conditioning.embedding), so that a prior is in "
            "vain: drop it."
        )
    if prior.codec is None or prior.codec.checksum != run.eye.checksum:
        raise RunError(
            f"{prior.path} does not draw the embeddings that {run.path} is told: train both with "
            f"the autoencoder {run.eye.path}."
        )
    if not prompted:
        raise RunError("a prior draws from captions: give a prompt.")


def trained_without(run: Run) -> bool:
    """Whether the network was at times told nothing, so that its unconditional score means one."""
    told = run.config.get("conditioning") or {}
    return bool(told.get("dropout") or getattr(run.score.net, "class_dropout", 0.0))


def always_told_a_picture(run: Run) -> bool:
    """Whether the network was told a picture beside x, and never went without."""
    return bool(getattr(run.score.net, "picture", 0)) and not trained_without(run)
