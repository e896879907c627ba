"""What a network in training is told of its data beside (x, t), and how often of nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from score_sde.checks import Count, Index, Row, require, validated
from score_sde.conditioning.classes import LabelError, classes_of
from score_sde.scores import conditions_of


@validated("conditioning")
@dataclass(frozen=True)
class Conditioning:
    """What of a batch's condition the network is told.

    classes: the classes of the data, as class_labels.
    text: a text encoder for the captions of the data, see `text.make_text_encoder`; text_length:
        the most tokens of a caption.
    picture: how many times smaller a picture is that a network which enlarges is told, or 0.
    embedding: a run with an autoencoder (`runs.codecs`), whose latent of a picture, as one vector,
        the network is told as pooled: the decoder of 2204.06125.
    others: further conditions that the data bring, by name, such as "pooled".
    dropout: probability that a row is told nothing of all that, so that one network learns the
        conditional and the unconditional score, for guidance (2207.12598). Which rows is a
        function of (seed, step, row); what they see is `scores.nothing_like`, as without a
        condition.
    """

    classes: bool = False
    text: str | None = None
    text_length: Count = 24
    picture: Index = 0
    embedding: str | None = None
    others: Row[str] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        require(
            not self.dropout or bool(self.names or self.text),
            f"conditioning.dropout={self.dropout:g} has nothing to drop: set "
            "conditioning.classes=True or conditioning.text.",
        )
        require(
            not (self.text and self.embedding),
            "conditioning.text and conditioning.embedding are both told as pooled: choose one. A "
            "caption becomes an embedding by a prior (--prior).",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions that the network is told."""
        smaller = ("picture",) * bool(self.picture) + ("pooled",) * bool(self.embedding)
        return ("class_labels",) * self.classes + smaller + tuple(self.others)

    def with_text(self, condition: Iterable[str], net: nn.Module) -> Conditioning:
        """Told also what a text encoder makes of captions, as far as the network takes it."""
        taken = conditions_of(net)
        names = [name for name in condition if taken is None or name in taken]
        return replace(self, others=(*self.others, *names))

    def of(self, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network is told of a batch."""
        return {name: condition[name] for name in self.names}


def check_told(
    conditioning: Conditioning,
    there: Mapping[str, Tensor],
    classes: tuple[str, ...],
    net: nn.Module,
) -> None:
    """Raise LabelError unless the data have what the network is to be told, and it takes that.

    there: the condition of some items. classes: names of the data's classes.
    """
    if conditioning.text and not set(there) & set(conditioning.others):
        raise LabelError(f"{type(net).__name__} takes no text: set net.text to its width.")
    for name in conditioning.names:
        if name not in there:
            what = "conditioning.classes is True" if name == "class_labels" else f"{name} is asked"
            raise LabelError(f"{what}, but the data have {', '.join(there) or 'no conditions'}.")
    taken = conditions_of(net)
    for name in conditioning.names:
        if taken is not None and name not in taken:
            raise LabelError(
                f"the network is to be told {name}, but {type(net).__name__} takes "
                f"{', '.join(taken) or 'nothing'} beside x and the noise label."
            )
    if conditioning.classes and classes_of(net) not in (0, len(classes)):
        raise LabelError(
            f"net.classes is {classes_of(net)} and the data have {len(classes)} classes: leave it "
            "out, it is filled in."
        )
    if classes_of(net) and not conditioning.classes:
        raise LabelError(
            f"net.classes is {classes_of(net)}, but training tells the network no classes: set "
            "conditioning.classes=True, or leave it out."
        )


def unused(conditioning: Conditioning, classes: tuple[str, ...]) -> str | None:
    """A sentence about classes that the data have and the network is not told."""
    if conditioning.classes or not classes:
        return None
    names = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
    return (
        f"{len(classes)} classes found ({names}); this model is unconditional and ignores them "
        "(conditioning.classes=True tells it)."
    )
