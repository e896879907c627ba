"""What samples of a run are told, and how strongly they are led there, as a score.

A wish is checked whole before any work: captions to a model of classes, more prompts than samples,
guidance of a model that never went without a condition are each a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from score_sde import build
from score_sde.checks import trusting
from score_sde.conditioning.classes import ClassLabels
from score_sde.conditioning.guidance import check_guidance, guide
from score_sde.conditioning.text import check_captions, encode, said_of
from score_sde.models import ScoreModel
from score_sde.nets import packed
from score_sde.runs.directory import RunError
from score_sde.scores import ScoreFn

if TYPE_CHECKING:
    from score_sde.runs.run import Run

Prompt = str | Sequence[str] | None


@dataclass(frozen=True)
class Wish:
    """What samples are to be.

    class_labels: as of `class_labels_of`. prompt: a caption for all samples, or one for each.
    guidance: the scale w of `guide`, None and 1 for none. negative_prompt: what to lead away from,
    instead of from nothing. against: another run to lead away from, told the same (autoguidance).
    interval: of log-SNR, where guidance acts. rule, rescale: of `guide`. condition: further things
    that the network is told, each with a row for each sample, such as the picture of a cascade.
    """

    class_labels: ClassLabels = None
    prompt: Prompt = None
    guidance: float | None = None
    negative_prompt: Prompt = None
    against: Run | None = None
    interval: tuple[float, float] | None = None
    rule: str = "cfg"
    rescale: float = 0.0
    condition: Mapping[str, Tensor] | None = None

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
            "condition": self.condition,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """What a folder of samples depends on but for the classes, as plain values."""
        plain = self.to_arguments() | {"class_labels": None}
        plain["against"] = None if self.against is None else str(self.against.path)
        plain["guidance_rule"] = None if self.rule == "cfg" else self.rule
        return {name: value for name, value in plain.items() if value is not None}

    @property
    def guided(self) -> bool:
        """Whether there is anything to lead away from."""
        return self.guidance is not None and self.guidance != 1


@dataclass(frozen=True)
class Steered:
    """The score of samples that were wished for, and what to write beside them."""

    score: Any
    class_labels: Tensor | None
    captions: tuple[str, ...] | None
    settings: dict[str, Any]


def steer(run: Run, wish: Wish, seeds: Sequence[int]) -> Steered:
    """The score of samples with these seeds; RunError (or another UserError) for what cannot be."""
    prompts, negative = check_wish(run, wish, len(seeds))
    labels = run.class_labels(wish.class_labels, seeds)
    condition: dict[str, Tensor | None] = {"class_labels": labels, **(wish.condition or {})}
    condition |= {} if prompts is None else _encoded(run, prompts)
    model = packed(run.score)
    score: ScoreModel = model.bind(**condition)
    settings: dict[str, Any] = {}
    if labels is not None:
        settings["class_labels"] = int(labels[0]) if len(labels.unique()) == 1 else "one each"
    if prompts is not None:
        settings["prompt"] = prompts[0] if len(set(prompts)) == 1 else "one each"
    if not wish.guided:
        return Steered(score, labels, prompts, settings)
    other: ScoreFn = model.bind()
    if negative is not None:
        other = model.bind(**{"class_labels": labels, **_encoded(run, negative)})
    if wish.against is not None:
        other = wish.against.score.bind(**condition)
    settings |= {"guidance": wish.guidance}
    guided = guide(
        score, other, float(wish.guidance or 0), interval=wish.interval, rule=wish.rule,
        rescale=wish.rescale,
    )  # fmt: skip
    return Steered(guided, labels, prompts, settings)


class Captions(NamedTuple):
    """One caption for each sample, or None."""

    prompts: tuple[str, ...] | None
    negative: tuple[str, ...] | None


def check_wish(run: Run, wish: Wish, n: int) -> Captions:
    """The captions of n samples; RunError for a wish that cannot be fulfilled, before any work."""
    prompts = _prompts(run, wish.prompt, n, "prompt")
    negative = _prompts(run, wish.negative_prompt, n, "negative_prompt")
    labels = run.class_labels(wish.class_labels, range(n))
    if wish.guidance is not None:
        check_guidance(run.sde, wish.guidance, wish.interval, wish.rescale, None)
    if negative is not None and not wish.guided:
        raise RunError("a negative prompt needs guidance to lead away from it: give guidance=3.")
    if negative is not None and prompts is None:
        raise RunError("a negative prompt goes with a prompt; give both.")
    if not wish.guided:
        if wish.against is not None:
            raise RunError("another run to lead away from needs guidance: give guidance=2.")
        return Captions(prompts, negative)
    if prompts is None and labels is None:
        raise RunError(
            f"guidance={wish.guidance:g} leads from no condition to one: give a prompt or "
            "class_labels."
        )
    if wish.against is not None:
        if wish.against.sde != run.sde or wish.against.data_spec.shape != run.data_spec.shape:
            raise RunError(
                f"{wish.against.path} is of another process or of other data than {run.path}: "
                "guidance needs a weaker model of the same ones."
            )
    elif negative is None and not trained_without(run):
        raise RunError(
            f"guidance={wish.guidance:g} needs a model that was trained without its condition at "
            "times (conditioning.dropout=0.1); this one never was."
        )
    return Captions(prompts, negative)


def trained_without(run: Run) -> bool:
    """Whether the network was at times told nothing, so that its unconditional score means one."""
    told = run.config.get("conditioning") or {}
    return bool(told.get("dropout") or getattr(run.score.net, "class_dropout", 0.0))


def _prompts(run: Run, given: Prompt, n: int, what: str) -> tuple[str, ...] | None:
    """One caption for each of n samples; None without any."""
    if given is None:
        return None
    if not (run.config.get("conditioning") or {}).get("text"):
        raise RunError(
            f"{run.path} was trained without captions, so it takes no {what}. Train one with "
            "configs/text_emoji.py, or with conditioning.text on captioned data."
        )
    captions = [given] * n if isinstance(given, str) else list(given)
    if len(captions) > n:
        raise RunError(
            f"{len(captions)} captions of {what} are more than {n} samples: give --num_samples "
            f"{len(captions)} or more."
        )
    if len(captions) != n:
        raise RunError(f"{n} samples need one {what} for all or {n}; got {len(captions)}.")
    check_captions(captions)
    return tuple(captions)


def _encoded(run: Run, captions: Sequence[str]) -> Mapping[str, Tensor]:
    """The conditions of captions by the run's text encoder; says what is cut off."""
    with trusting(run.trusted):
        encoder = build.build_text_encoder(run.config)
    found = encode(encoder, captions)
    if said := said_of(found.cut):
        print(said)
    return found.condition


def read_prompts(path: str | Path, n: int | None) -> list[str]:
    """Captions of a text file, a line each; in turn for n samples, or once.

    RunError for a file that is not there, is empty, or has an empty line among others.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the prompts of {path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise RunError(f"line {number} of {path} is empty: give a caption in each line.")
    if n is not None and len(lines) > n:
        raise RunError(
            f"{path} has {len(lines)} prompts, more than {n} samples: give --num_samples "
            f"{len(lines)}."
        )
    return [lines[i % len(lines)] for i in range(len(lines) if n is None else n)]
