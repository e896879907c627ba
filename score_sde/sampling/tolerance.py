r"""Samples as near the exact flow as is asked for, each in as many steps as it needs.

All samples are drawn by `adams` on two grids, the second half as fine again. Where both agree to
within the tolerance the finer one is kept; the others go on to the next grid. Nearby samples take
the same flow to very different accuracy (between modes flows part), so a batch pays for its hardest
sample only once, alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.checks import Positive, Size, UserError, checked
from score_sde.noise import check_seeds
from score_sde.processes.sdes import SDE
from score_sde.sampling.loop import SampleResult, sample
from score_sde.sampling.plan import check_shape
from score_sde.scores import ScoreFn, take

FIRST, GROWTH = 10, 1.5  # steps of the first grid, and from one to the next


@dataclass(frozen=True, repr=False)
class ToleranceResult(SampleResult):
    """`SampleResult`, whose nfe is the most of any sample, with what each took and reached.

    evaluations: (B,) of the score, all grids together. error: (B,) how far the last two grids were
    apart, rms over coordinates in units of data_std.
    """

    evaluations: Tensor
    error: Tensor


@checked
def sample_to_tolerance(
    sde: SDE,
    score: ScoreFn,
    shape: Sequence[int] | None = None,
    *,
    tolerance: Positive,
    data_std: Positive,
    nfe: Size = 500,
    x_T: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    denoise: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ToleranceResult:
    """Draw x_0 by the probability flow, each sample to a tolerance.

    tolerance: of the endpoint, rms over coordinates in units of data_std. It is what two grids may
        differ by, of which the finer is kept; its own error is less, a third at the order reached.
    nfe: the most evaluations of one sample, all its grids together. The other arguments are those
    of `sample`: with seeds, noise and samples are the same.

    Raises UserError, with how many samples and the error reached, where nfe is not enough.
    """
    started, sizes = time.perf_counter(), check_shape(shape, x_T)
    seeds = check_seeds(seeds, sizes[0])
    open_ = torch.arange(sizes[0])
    spent, error = torch.zeros(sizes[0], dtype=torch.long), torch.full((sizes[0],), torch.inf)
    kept: Tensor | None = None
    steps, before = FIRST, None
    while len(open_):
        cost = steps + denoise
        if int(spent.max()) + cost > nfe:
            least = f"; the largest difference so far is {float(error[open_].max()):.2g}"
            least = least if bool(error.isfinite().all()) else ", too few for two grids"
            raise UserError(
                f"{len(open_)} of {sizes[0]} samples do not reach tolerance={tolerance:g} within "
                f"nfe={nfe} evaluations{least if before is not None else ''}. Allow more, or ask "
                "for less."
            )
        rows = open_ if len(open_) < sizes[0] else slice(0, sizes[0])
        part = score if isinstance(rows, slice) else take(score, rows, sizes[0])
        found = sample(
            sde, part, None if x_T is not None else (len(open_), *sizes[1:]),
            x_T=None if x_T is None else x_T[open_.to(x_T.device)], method="adams", steps=steps,
            data_std=data_std, seeds=[seeds[i] for i in open_.tolist()], denoise=denoise,
            device=device, dtype=dtype,
        )  # fmt: skip
        spent[open_] += cost
        kept = torch.empty(sizes, dtype=found.dtype, device=found.device) if kept is None else kept
        kept[open_.to(kept.device)] = found
        if before is not None:
            apart = (found - before).flatten(1).double().square().mean(1).sqrt().cpu() / data_std
            error[open_] = apart.float()
            still = apart > tolerance
            open_, found = open_[still], found[still.to(found.device)]
        before, steps = found, int(GROWTH * steps)
    assert kept is not None
    settings = {"method": "adams", "tolerance": tolerance, "denoise": denoise}
    seconds = time.perf_counter() - started
    return ToleranceResult(kept, int(spent.max()), seconds, settings, spent, error)
