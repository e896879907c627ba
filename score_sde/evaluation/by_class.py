"""The measures that hold for few items, class by class: who of the classes is drawn badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from score_sde.checks import UserError, check_count
from score_sde.evaluation.measures import Featured, Measure, compare

OF_IMAGES = ("kid", "precision", "recall")  # of 2048 features and 100 items nothing else is known
OF_VECTORS = ("energy", "precision", "recall")
FEWEST = 20  # samples and reference items of a class


def by_class(
    mine: Featured,
    target: Featured,
    labels: Tensor | None,
    target_labels: Tensor | None,
    names: Sequence[str],
    blocks: int = 10,
    seed: int = 0,
) -> dict[str, Mapping[str, Measure]]:
    """Measures of the samples of each class against the reference's items of that class.

    labels, target_labels: the classes (n,) and (N,). names: of the classes by their numbers; a
    class with fewer than 20 of either is left out. Raises UserError where there are no labels, or
    too few items of every class.
    """
    for what, given, n in (
        ("samples", labels, len(mine)),
        ("reference", target_labels, len(target)),
    ):
        if given is None:
            raise UserError(
                f"class-wise numbers need the class of every item, and the {what} have none: "
                "samples of a run that is told classes, and folders or labels that name them."
            )
        check_count(len(given), n, f"labels of the {what}")
    assert labels is not None and target_labels is not None
    found: dict[str, Mapping[str, Measure]] = {}
    for number in torch.cat([labels, target_labels]).unique().tolist():
        rows, others = ((given == number).nonzero().flatten() for given in (labels, target_labels))
        if min(len(rows), len(others)) >= FEWEST:
            name = names[number] if number < len(names) else str(number)
            wanted = OF_IMAGES if mine.images else OF_VECTORS
            found[name] = compare(mine.rows(rows), target.rows(others), wanted, blocks, seed)
    if not found:
        raise UserError(f"no class has {FEWEST} samples and as many items of the reference.")
    return found


def agreement(
    mine: Featured, labels: Tensor, target: Featured, target_labels: Tensor | None
) -> Measure:
    """The share of samples whose class, to the extractor's classifier, is the one asked for.

    labels, target_labels: the classes (n,) and (N,), as the classifier numbers them. The share of
    real items, whose classes people gave, is what no model need exceed.
    """

    def share(items: Featured, classes: Tensor) -> float:
        assert items.logits is not None
        return float((items.logits.argmax(1) == classes).double().mean())

    value, n = share(mine, labels), len(mine)
    real = None if target_labels is None else share(target, target_labels)
    protocol = {"n": n} | ({} if real is None else {"n_real": len(target)})
    error = (value * (1 - value) / n) ** 0.5
    label = f"agreement of {mine.facts['extractor']}"
    return Measure("agreement", label, value, error, None, real, protocol)


def table(classes: Mapping[str, Mapping[str, Measure]]) -> str:
    """A row for each class, the worst by the first measure first."""
    measures = list(next(iter(classes.values())))
    first = measures[0]
    order = sorted(classes, key=lambda name: -classes[name][first].value)
    labels = [next(iter(classes.values()))[name].label for name in measures]
    rows = [["class", "n", *labels]]
    for name in order:
        values = [
            f"{classes[name][m].value:.4g} +- {classes[name][m].stderr:.2g}" for m in measures
        ]
        rows.append([name, str(classes[name][first].protocol["n"]), *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
