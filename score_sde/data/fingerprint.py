"""A checksum of what a run's numbers depend on in its data, to know the same data again.

It does not depend on where the data lies: a folder may be moved, its pictures may not be changed,
added to or renamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

HASHED_WHOLE = 1 << 30  # bytes up to which all of the content is read
SAMPLED_ITEMS = 256


def fingerprint(
    n: int,
    raw_items: Callable[[range], Tensor],
    condition: Mapping[str, Tensor],
    facts: Sequence[str],
    item_bytes: int,
) -> str:
    """SHA-256 (hex) of n items, of what is known of each, and of facts such as their names.

    All items are read where they take less than 1 GiB, else 256 that are spread evenly over them.
    """
    digest = hashlib.sha256()
    for fact in (str(n), *facts):
        encoded = fact.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    whole = n * item_bytes <= HASHED_WHOLE
    count = n if whole else min(n, SAMPLED_ITEMS)
    chunk = max(1, (1 << 24) // max(item_bytes, 1)) if whole else 1
    for k in range(0, count, chunk):
        first = k if whole else k * n // count
        _add(digest, raw_items(range(first, min(first + chunk, n))))
    for name in sorted(condition):
        digest.update(name.encode())
        _add(digest, condition[name])
    return digest.hexdigest()


def _add(digest: hashlib._Hash, values: Tensor) -> None:
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    flat = values.detach().cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data if len(flat) else b"")
