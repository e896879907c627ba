"""CUDA graphs: the kernels of one evaluation of a score, recorded once and launched together.

A small network spends its time launching kernels; a graph launches all of them by one call. The
steps of a sampler around it are a few kernels each and stay as they are.

This has not been run: there was no GPU where it was written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from score_sde.checks import UserError
from score_sde.sampling.plan import Plan
from score_sde.scores import Rows, ScoreFn

WARM_UP = 3  # calls before recording, in which libraries choose their kernels


def check_graph(plan: Plan, grad: bool) -> None:
    """UserError for what cannot be recorded, or not be replayed."""
    if plan.device.type != "cuda":
        raise UserError(
            f"graph=True records CUDA's kernels, but samples are on {plan.device.type}; leave it "
            'out, or give device="cuda".'
        )
    if grad:
        raise UserError("graph=True keeps nothing to differentiate; leave out graph or grad.")
    if plan.method.evaluations == 0:
        raise UserError(
            f"graph=True needs as many samples at every evaluation, and {plan.name} adapts to "
            "each; use adams, heun or another method of fixed steps."
        )


class Graphed:
    """A score that is replayed from CUDA graphs, one for each shape of states.

    The score is asked with t as a tensor (B,) of the device. It must ask the device for no number
    while it is recorded, and compute the same of x and t at every call: guidance in an interval of
    times decides on the host, and cannot be recorded.
    """

    def __init__(self, score: ScoreFn):
        self.score = score
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.score, name)

    def take(self, rows: Rows) -> Graphed:
        """The score of these samples, recorded anew if it is told something of each."""
        part = getattr(self.score, "take", None)
        return self if part is None else Graphed(part(rows))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        key = tuple(x.shape), x.dtype
        if key not in self._recorded:
            self._recorded[key] = _Recorded(self.score, x, t)
        return self._recorded[key](x, t)


class _Recorded:
    """One graph, with the memory that it reads and writes."""

    def __init__(self, score: ScoreFn, x: Tensor, t: Tensor):
        self.x = x.clone(memory_format=torch.preserve_format)
        self.t = torch.ones(len(x), dtype=torch.float64, device=x.device) * t
        beside = torch.cuda.Stream(x.device)
        beside.wait_stream(torch.cuda.current_stream(x.device))
        with torch.no_grad(), torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                score(self.x, self.t)
        torch.cuda.current_stream(x.device).wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.no_grad(), torch.cuda.graph(self.graph):
                self.out = score(self.x, self.t)
        except RuntimeError as error:
            raise UserError(
                f"graph=True: this score cannot be recorded ({str(error).splitlines()[0][:120]}); "
                "it asks the device for numbers, or decides by them. Leave graph out."
            ) from error

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.x.copy_(x)
        self.t.copy_(t) if t.device == self.t.device else self.t.fill_(float(t))
        self.graph.replay()
        return self.out.clone()
