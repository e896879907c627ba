"""Classes of samples: what people call them, as the integers that a network is told.

`model.bind(class_labels=y)` is then the score p_t(x | class) that samplers and likelihoods take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from score_sde.checks import UserError, check_count, did_you_mean, number

ClassLabels: TypeAlias = int | str | Sequence[int | str] | Tensor | None
"""One class for all samples, one for each, or words for them: see `class_labels_of`."""


class LabelError(UserError):
    """Class labels that a network does not take; the message says which it does."""


def classes_of(net: nn.Module) -> int:
    """How many classes a network knows: its ``classes``, 0 if it has no such number."""
    classes = getattr(net, "classes", 0)
    return classes if isinstance(classes, int) else 0


def needs_labels(net: nn.Module) -> bool:
    """Whether a network was always told the class, so that its answer without one means nothing.

    One with ``class_dropout`` was trained without as well.
    """
    return classes_of(net) > 0 and not getattr(net, "class_dropout", 0.0)


def class_labels_of(
    net: nn.Module, given: ClassLabels, n: int, names: Sequence[str] = ()
) -> Tensor | None:
    """The classes (n,) of n samples, int64; None without any.

    given: a number or name for all; n of them; or text, as of a command line: "3", "0,1,2" or
    "boot,dress" (in turn), or "all" classes in turn. names: of the classes; what reads as a number
    is one. Raises `LabelError` for what the network does not take.
    """
    if given is None:
        return None
    classes = classes_of(net)
    if not classes:
        raise LabelError("this network knows no classes: drop class_labels.")
    values = _from_text(given, classes, names) if isinstance(given, str) else given
    values = values.tolist() if isinstance(values, Tensor | np.ndarray | np.generic) else values
    labels: list[Any] = list(values) if isinstance(values, Iterable) else [values] * n
    if isinstance(given, str):
        if len(labels) > n and given != "all":
            raise LabelError(f"{len(labels)} class labels are more than {n} samples.")
        labels = [labels[i % len(labels)] for i in range(n)]
    check_count(len(labels), n, "class labels", LabelError)
    found = [_by_name(v, names, classes) if isinstance(v, str) else v for v in labels]
    for label in found:
        whole = hasattr(label, "__index__") and not isinstance(label, bool)
        if not whole or not 0 <= int(label) < classes:
            raise LabelError(
                f"class {label!r} does not exist; there are 0 to {classes - 1}{_listed(names)}."
            )
    return torch.tensor([int(label) for label in found], dtype=torch.int64)


def _from_text(text: str, classes: int, names: Sequence[str]) -> Sequence[int]:
    """The classes that a text lists."""
    if text == "all":
        return list(range(classes))
    if text.lower() in {name.lower() for name in names}:  # a name may have a comma in it
        return [_by_name(text, names, classes)]
    return [_by_name(part.strip(), names, classes) for part in text.split(",")]


def _by_name(text: str, names: Sequence[str], classes: int) -> int:
    """The class of this number or name."""
    try:
        return number(text, int)
    except ValueError:
        places = {name.lower(): i for i, name in reversed(list(enumerate(names[:classes])))}
        if text.lower() in places:
            return places[text.lower()]
    raise LabelError(
        f"class_labels {text!r} is not a class from 0 to {classes - 1}{_listed(names)}, several "
        f"with commas between (taken in turn), or all.{did_you_mean(text, names)}"
    )


def _listed(names: Sequence[str]) -> str:
    """ " (boot, dress)", or nothing for classes that are called by their numbers."""
    if not names or all(name.isdigit() for name in names):
        return ""
    return f" ({', '.join(names[:12])}{', ...' * (len(names) > 12)})"


def drawn_labels(classes: int, seeds: Sequence[int]) -> Tensor:
    """A class for each seed, (B,) int64, all equally likely; a function of the seed alone."""
    streams = (np.random.default_rng([seed % 2**64, classes]) for seed in seeds)
    return torch.tensor([int(stream.integers(classes)) for stream in streams])
