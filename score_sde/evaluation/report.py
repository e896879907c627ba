"""`evaluate`: every distance of samples to a reference, with its error and its protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import Depth, Seed, UserError, check_finite, checked, real_tensor, require
from score_sde.evaluation.by_class import by_class
from score_sde.evaluation.by_class import table as class_table
from score_sde.evaluation.features import Features, find_features
from score_sde.evaluation.measures import (
    MOST,
    Featured,
    Measure,
    Statistics,
    check_found,
    check_statistics,
    compare,
    featured,
)
from score_sde.evaluation.memorisation import Memorisation, memorisation

SAME = "note: the samples and the reference are the same set, item for item."
FEW_SHARED = 0.01  # of the samples, up to which chance or duplicates may be the reason


@dataclass(frozen=True)
class Report:
    """What `evaluate` found: `report.frechet`, `report.kid`, ... are each a `Measure`.

    measures: all of them by name. memorisation: None where no training items were given.
    protocol: what all depend on. notes: what a reader should know before believing them. classes:
    measures of each class by itself, where they were asked for.
    """

    measures: Mapping[str, Measure]
    protocol: Mapping[str, Any]
    memorisation: Memorisation | None = None
    notes: tuple[str, ...] = ()
    classes: Mapping[str, Mapping[str, Measure]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Measure:
        measures = self.__dict__.get("measures", {})
        if name in measures:
            return measures[name]
        raise AttributeError(f"this report has no {name!r}; it has {', '.join(measures)}.")

    @property
    def sentence(self) -> str:
        """The first number with its protocol."""
        first = next(iter(self.measures.values()))
        p = self.protocol
        text = f"{first}; {p['n']} samples"
        text += f" ({p['samples']})" if p.get("samples") else ""
        some = "" if p["n_reference"] is None else f"{p['n_reference']} of "
        text += f" against {some}{p.get('reference') or 'the reference'}"
        text += f" [{p['reference_checksum']}], features {p['extractor']}"
        text += f" [{p['checksum']}]" if p.get("checksum") else ""
        for key in ("weights", "step", "method", "nfe", "guidance", "first_seed"):
            text += f", {key} {p[key]}" if p.get(key) is not None else ""
        return text + "."

    def table(self) -> str:
        """All numbers in rows."""
        rows = [("", "value", "+-", "corrected", "real", "n real")]
        for m in self.measures.values():
            corrected = "-" if m.corrected is None else f"{m.corrected:.5g}"
            real = "-" if m.real is None else f"{m.real:.5g}"
            n_real = str(m.protocol.get("n_real", "-"))
            rows.append((m.label, f"{m.value:.5g}", f"{m.stderr:.2g}", corrected, real, n_real))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        parts = [self.table(), self.sentence]
        if self.classes:
            parts.append(class_table(self.classes))
        if self.memorisation is not None:
            parts.append(f"memorisation: {self.memorisation.sentence()}.")
        return "\n".join([*parts, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "sentence": self.sentence,
            "measures": {name: _plain(vars(m)) for name, m in self.measures.items()},
            "memorisation": None if self.memorisation is None else self.memorisation.to_dict(),
            "protocol": _plain(self.protocol),
            "notes": list(self.notes),
            "classes": {
                name: {key: _plain(vars(m)) for key, m in found.items()}
                for name, found in self.classes.items()
            },
        }

    def to_json(self) -> str:
        """As text; a value that is not finite is null."""
        return json.dumps(self.to_dict(), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def as_items(values: Tensor | np.ndarray, what: str) -> Tensor:
    """uint8 images (n, C, H, W), or vectors (n, D) in float64; UserError says what is wrong.

    Images are uint8, or floats between 0 and 1, which are rounded to 8 bits as files would be.
    """
    x = real_tensor(values, what).detach()
    if x.ndim < 2 or len(x) == 0:
        raise UserError(f"{what} have shape {tuple(x.shape)}; give (n, D), or images (n, C, H, W).")
    check_finite(x, what)
    if x.ndim != 4:
        return x.flatten(1).double()
    if x.dtype not in (torch.uint8, torch.bool) and not x.is_floating_point():
        raise UserError(
            f"{what} are images of {x.dtype}, whose white is not known; give uint8, or floats "
            "between 0 and 1."
        )
    if x.dtype != torch.uint8:
        low, high = float(x.min()), float(x.max())
        if low < 0 or high > 1:
            raise UserError(
                f"{what} are float images from {low:.4g} to {high:.4g}; give uint8, or floats "
                "between 0 and 1. Of a run, run.data_spec.to_uint8(x) makes them."
            )
        x = (x * 255).round().to(torch.uint8)
    if x.shape[1] > 4 and x.shape[3] in (1, 3, 4):
        x = x.permute(0, 3, 1, 2)
    return x


def of_the_reference(x: Tensor, y: Tensor) -> str | None:
    """What to say if samples x (n, ...) are items of the reference y (N, ...), value for value."""
    if torch.equal(x, y):
        return SAME
    there = {hash(row.tobytes()) for row in y.cpu().contiguous().numpy()}
    shared = sum(hash(row.tobytes()) in there for row in x.cpu().contiguous().numpy()) / len(x)
    if shared <= FEW_SHARED:
        return None
    return (
        f"note: {shared:.1%} of the samples are items of the reference, value for value: distances "
        "are no judgement of new samples."
    )


@checked
def evaluate(
    samples: Tensor | np.ndarray,
    reference: Tensor | np.ndarray | Statistics,
    features: str | Features | None = None,
    *,
    train: Tensor | np.ndarray | None = None,
    held_out: Tensor | np.ndarray | None = None,
    measures: Sequence[str] | str | None = None,
    blocks: Depth = 10,
    seed: Seed = 0,
    few: bool = False,
    protocol: Mapping[str, Any] | None = None,
    labels: Tensor | np.ndarray | None = None,
    reference_labels: Tensor | np.ndarray | None = None,
) -> Report:
    """How far samples are from a reference: distances with errors, and what they depend on.

    samples, reference: images, uint8 (n, C, H, W) or floats on 0..1, or vectors (n, D); or
        `Statistics` of a reference, for the Frechet distance alone.
    features: a name of `FEATURES`, a dotted path or a callable; a default by the images' shape.
    train, held_out: training items, and items that were not trained on, for `memorisation`.
    measures: which ones, of `OF_IMAGES` or `OF_VECTORS`, in a list or a text with commas; all that
        apply when None.
    blocks, seed: of the jackknife, and of the choice of subsets. few: compute a Frechet distance of
        no more samples than the features have dimensions, which is of little worth.
    protocol: more facts to go with the numbers (sampler, NFE, weights).
    labels, reference_labels: the classes (n,), for `report.classes`, the measures of each class.

    Raises UserError for sets that cannot be compared, and for too few samples.
    """
    x = as_items(samples, "samples")
    if not isinstance(reference, Statistics):
        y = as_items(reference, "the reference's items")
        check_comparable(x, y)
        require(len(y) > 1, "the reference must have two items at least (got 1).")
    wanted = [m.strip() for m in measures.split(",")] if isinstance(measures, str) else measures
    extractor = find_features(features, x)
    mine = featured(extractor, x)
    target = reference if isinstance(reference, Statistics) else featured(extractor, y)
    copies = None
    require(train is not None or held_out is None, "held_out is of use beside train alone.")
    if train is not None:
        items, other = as_items(train, "the training items"), None
        check_comparable(x, items)
        if held_out is not None:
            other = as_items(held_out, "the held-out items")
            check_comparable(x, other)
        copies = memorisation(x[:MOST], items, other, seed)
    found = report(mine, target, wanted, blocks, seed, few, protocol, copies)
    if not isinstance(target, Statistics) and not found.notes:
        found = replace(found, notes=tuple(filter(None, [of_the_reference(x, y)])))
    if labels is None and reference_labels is None:
        return found
    if isinstance(target, Statistics):
        raise UserError("class-wise numbers need the reference's items; statistics have none.")
    named = (("labels", labels, x), ("reference_labels", reference_labels, y))
    both = [None if v is None else _labels(v, name, of) for name, v, of in named]
    return replace(found, classes=by_class(mine, target, both[0], both[1], (), blocks, seed))


def _labels(values: Tensor | np.ndarray, name: str, of: Tensor) -> Tensor:
    labels = real_tensor(values, name)
    if labels.ndim != 1 or len(labels) != len(of) or labels.is_floating_point():
        raise UserError(
            f"{name} must be whole numbers ({len(of)},), one for each item (got "
            f"{labels.dtype} of shape {tuple(labels.shape)})."
        )
    require(int(labels.min()) >= 0, f"{name} must be 0 or above (got {int(labels.min())}).")
    return labels.long()


def report(
    mine: Featured,
    target: Featured | Statistics,
    measures: Sequence[str] | None = None,
    blocks: Depth = 10,
    seed: Seed = 0,
    few: bool = False,
    protocol: Mapping[str, Any] | None = None,
    copies: Memorisation | None = None,
) -> Report:
    """The report of features that have been extracted; arguments as of `evaluate`."""
    notes = []
    facts = dict(mine.facts) | {"n": len(mine), "samples_checksum": mine.checksum}
    facts |= {"blocks": blocks, "seed": seed}
    if isinstance(target, Statistics):
        check_statistics(target, facts, mine.features.shape[1])
        facts |= {"n_reference": target.n, "reference": target.facts.get("data")}
        facts |= {"reference_checksum": target.facts.get("data_checksum", "not stated")}
    else:
        facts |= {"n_reference": len(target), "reference_checksum": target.checksum}
        if target.checksum == mine.checksum:
            notes.append(SAME)
    facts |= protocol or {}
    found = compare(mine, target, measures, blocks, seed, few)
    check_found(found, measures or ("frechet",), mine, isinstance(target, Statistics))
    return Report(found, facts, copies, tuple(notes))


def check_comparable(x: Tensor, y: Tensor) -> None:
    """Raises UserError if two sets are not of one kind of items."""
    if x.shape[1:] != y.shape[1:]:
        if x.ndim == y.ndim == 4:
            how = "read one of them as the other is, load_data(PATH, convert='L') or 'RGB'"
            if x.shape[1] == y.shape[1]:
                how = "say --resize stretch, center_crop or pad; in Python load_data(PATH, size=, "
                how += "resize=)"
            raise UserError(
                f"samples are of shape {tuple(x.shape[1:])} (C, H, W), the reference of "
                f"{tuple(y.shape[1:])}: a distance would be one of sizes. To compare them all the "
                f"same, {how}."
            )
        raise UserError(
            f"samples have shape {tuple(x.shape[1:])} and the reference {tuple(y.shape[1:])}."
        )
