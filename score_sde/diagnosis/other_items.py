"""Ways in which training may have seen the items otherwise: turned, or of another scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from score_sde.diagnosis.asked import Asked, Reading, linear_errors
from score_sde.diagnosis.denoising import Noisy, denoised
from score_sde.diagnosis.ratios import errors_of

Change = Callable[[Tensor], Any]
TURNS: dict[str, Change] = {
    "with channels (or coordinates) in reverse order":
        lambda x: x.flip(1) if x.shape[1] > 1 else None,
    "negated": lambda x: -x,
    "mirrored": lambda x: x.flip(-1) if x.ndim == 4 else None,
    "upside down": lambda x: x.flip(-2) if x.ndim == 4 else None,
    "transposed": lambda x: x.mT if x.ndim == 4 and x.shape[-1] == x.shape[-2] else None,
}  # fmt: skip
"""None where one does not apply."""
SCALED = {
    "half as large": (0.5, 0.0),
    "twice as large": (2.0, 0.0),
    "on 0..1 in place of -1..1": (0.5, 0.5),
    "on -1..1 in place of 0..1": (2.0, -1.0),
}
"""Others: a and b of a x + b."""


def other_items(asked: Asked) -> list[Reading]:
    """The network shown the items in each way, with the same noise."""
    model, levels, found = asked.model, asked.levels, []
    for name, turn in TURNS.items():
        if turn(levels[0].x0[:1]) is None:
            continue
        shown = [_shown(seen, turn(seen.x0)) for seen in levels]
        # A turn keeps lengths and is its own inverse: the linear denoiser turns with it.
        back = [seen._replace(x0=turn(seen.x0), x=turn(seen.x)) for seen in shown]
        usual = [linear_errors(asked.linear, seen) for seen in back]
        errors = [errors_of(seen.x0, denoised(model, seen)) for seen in shown]
        found.append(asked.by_errors(name, errors, usual))
    for name, (scale, shift) in SCALED.items():
        shown = [_shown(seen, scale * seen.x0 + shift) for seen in levels]
        # As if the noise were smaller by the scale, and errors larger by its square.
        back = [
            v._replace(x0=u.x0, x=(v.x - v.alpha * shift) / scale, sigma=v.sigma / scale)
            for u, v in zip(levels, shown, strict=True)
        ]
        usual = [scale**2 * linear_errors(asked.linear, seen) for seen in back]
        errors = [errors_of(seen.x0, denoised(model, seen)) for seen in shown]
        found.append(asked.by_errors(name, errors, usual))
    return found


def _shown(seen: Noisy, x0: Tensor) -> Noisy:
    """The same with the same noise, of other items."""
    return seen._replace(x0=x0, x=seen.x + seen.alpha * (x0 - seen.x0))
