"""Items of a split as a run takes them: checked, in the model's range, with their classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from score_sde import build
from score_sde.checks import check_finite, trusting
from score_sde.conditioning.classes import ClassLabels, class_labels_of, classes_of, needs_labels
from score_sde.data import DataError
from score_sde.runs.directory import RunError
from score_sde.runs.run import Run


def items_of(run: Run, split: str, limit: int | None, name: str | None) -> tuple[Any, int]:
    """The data of a split, checked against the run, and how many of them are asked for.

    name: of other data than the run's own, which an imported run does not have.
    """
    said = run.config.get("data") or {}
    if name is None and said.get("name") == "imported":
        raise RunError("this run was imported without its data: say which with --data.")
    named = {"data": {**said, "name": name}} if name else {}
    with trusting(run.trusted or bool(name)):
        data = build.build_data(run.config | named, split)
    if data.spec.shape != run.item_spec.shape:
        raise DataError(
            f"the {split} items have shape {data.spec.shape}, the model's {run.item_spec.shape}."
        )
    return data, len(data) if limit is None else min(limit, len(data))


def labels_of(run: Run, data: Any, n: int, given: ClassLabels) -> Tensor | None:
    """The classes of the first n items; "data" for those that they come with.

    Raises RunError, or `LabelError` for what the network does not take.
    """
    if given is None and needs_labels(run.score.net):
        own = "" if data is None else "data (the items' own), "
        raise RunError(
            f"this network was always told the class: give class_labels, {own}a class for all, or "
            "several to take in turn (0,1,2)."
        )
    if isinstance(given, str) and given == "data" and data is not None:
        given = data.condition_items(range(n)).get("class_labels")
        if given is None:
            raise RunError("class_labels=data needs data with classes; these have none.")
        if len(data.spec.classes) != classes_of(run.score.net):
            raise RunError(
                f"the data have {len(data.spec.classes)} classes, this network has "
                f"{classes_of(run.score.net)}: they are not the same ones."
            )
    return class_labels_of(run.score.net, given, n, run.data_spec.classes)


def to_model(run: Run, raw: Tensor) -> Tensor:
    """Raw items as states of the model; DataError for what cannot be such an item."""
    check_raw(run, raw)
    return run.to_states(run.item_spec.to_model(raw)).to(next(run.score.parameters()).device)


def check_raw(run: Run, raw: Tensor) -> None:
    """DataError for values that are not finite, or outside the data's range."""
    spec = run.item_spec
    check_finite(raw, "the data", DataError)
    low, high = float(raw.min()), float(raw.max())
    if spec.low is not None and spec.high is not None and (low < spec.low or high > spec.high):
        raise DataError(
            f"values from {low:g} to {high:g} lie outside the data's range {spec.low:g} to "
            f"{spec.high:g}: give data of the range that the model was trained on."
        )


def refuse_latents(run: Run, what: str, instead: str) -> None:
    """RunError where a mode is not for runs of latents. instead: what such a user can do."""
    if run.codec is not None:
        raise RunError(f"{run.path} is a run of latents, {what}. {instead}")
