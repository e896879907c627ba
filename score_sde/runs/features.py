"""Items of data as files hold them, and as the extractors of evaluation see them."""

from __future__ import annotations

import torch
from torch import Tensor

from score_sde import distributed
from score_sde.data import Data
from score_sde.evaluation.features import BATCH, Features, checksum, extract, facts_of
from score_sde.evaluation.measures import Featured, with_logits
from score_sde.evaluation.report import as_items
from score_sde.evaluation.statistics import kept


def stored_items(data: Data, n: int | None = None, rows: range | None = None) -> Tensor:
    """The first n items, or these rows (all when None): uint8 for images, else values in the data's
    own range."""
    if rows is None:
        rows = range(len(data) if n is None else min(n, len(data)))
    raw = data.raw_items(rows)
    if not data.spec.is_image or raw.dtype == torch.uint8:
        return raw
    return data.spec.to_uint8(data.spec.to_model(raw))


def extract_shared(features: Features, items: Tensor) -> Tensor:
    """As `extract`, divided over the processes.

    Batches are the same however many processes there are, and so is the result.
    """
    batches = items.split(BATCH)
    found = [extract(features, batches[i]) for i in distributed.share(len(batches))]
    if distributed.size() == 1:
        return torch.cat(found)
    # A process without a batch learns the width from the others.
    mine = torch.tensor([found[0].shape[1] if found else 0])
    width = int(distributed.gather(mine, distributed.size()).max())
    padded = torch.zeros(len(found), BATCH, width, dtype=torch.float64)
    for row, part in zip(padded, found, strict=True):
        row[: len(part)] = part
    return distributed.gather(padded, len(batches)).flatten(0, 1)[: len(items)]


def featured(extractor: Features, items: Tensor) -> Featured:
    """Items (n, ...) as an extractor sees them, divided over the processes."""
    features = extract_shared(extractor, items)
    return with_logits(extractor, features, checksum(items), items.ndim == 4)


def reference_features(data: Data, extractor: Features) -> Featured:
    """All items of the data as an extractor sees them, kept by both their checksums."""
    facts, checksum = facts_of(extractor), data.fingerprint()[:16]
    images = data.spec.is_image

    def make() -> Tensor:
        return extract_shared(extractor, as_items(stored_items(data), "the reference's items"))

    if not images or not facts.get("checksum"):
        return with_logits(extractor, make(), checksum, images)
    key = f"{checksum} {sorted(facts.items())}"
    return with_logits(extractor, kept(key, make, distributed.is_writer()), checksum, images)
