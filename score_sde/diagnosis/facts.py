"""Numbers of a run that do not belong to one noise level: `facts_of`."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from score_sde.diagnosis.ends import law_of_ends
from score_sde.diagnosis.subject import Subject
from score_sde.diagnosis.suggest import largest_distance, smallest_spread
from score_sde.evaluation import distances
from score_sde.evaluation.jackknife import block_of
from score_sde.evaluation.memorisation import FEWEST, memorisation
from score_sde.likelihood import log_likelihood
from score_sde.sampling import ODEError

MOST_REAL = 2000
LIKELY = 32  # samples whose likelihood is looked at; in few dimensions four times as many
MOST_COORDINATES = 100  # in which values that are cut off are looked for
PILE = 5  # equal values that are no chance
DISTINCT = 0.5  # share of distinct values from which on a coordinate is continuous


def facts_of(subject: Subject, generator: torch.Generator) -> dict[str, Any]:
    """Of the data, the ends of time, the weights, and the samples if there are any."""
    some = _some(subject.train, 1000, generator)
    x = some.double().flatten(1)
    model, sde = subject.model, subject.model.sde
    std = float(subject.train.double().std())
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    facts: dict[str, Any] = {
        "n_train": len(subject.train),
        "data_std": std,
        "variance": float((x - x.mean(0)).square().mean()),
        "data_mean": float(subject.train.double().mean()),
        "low": float(subject.train.min()),
        "high": float(subject.train.max()),
        "clipped": 0.0 if subject.spec.is_image else _clipped(x),
        "diameter": largest_distance(x),
        "smallest_spread": smallest_spread(x, subject.spec)[0],
        "noise_at_t_min": float(sigma[0] / alpha[0]),
        "terminal_snr": float((alpha[1] * std / sigma[1]) ** 2),
        "prior_kl": _prior_kl(x, float(alpha[1]), float(sigma[1]), sde.prior_std()),
        "law_of_ends": law_of_ends(sde, *along_axes(x)),
        "weights_grown": _grown(subject.raw.net),
        "ema_distance": _apart(model.net, subject.raw.net),
    }
    if subject.samples is not None and subject.careful is not None:
        facts |= _sample_facts(subject, generator)
    return facts


def along_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variances of items x (n, D) along their principal axes, (D,) each.

    Fewer items than dimensions have fewer axes: what of the mean lies across all of them is one
    coordinate more, and the rest is 0.
    """
    mean = x.mean(0)
    _, sizes, axes = torch.linalg.svd(x - mean, full_matrices=False)
    along, variances = torch.zeros_like(mean), torch.zeros_like(mean)
    n = len(axes)
    along[:n], variances[:n] = axes @ mean, sizes.square() / max(len(x) - 1, 1)
    if n < len(mean):
        along[n] = (mean.square().sum() - along.square().sum()).clamp_min(0).sqrt()
    return along, variances


def _grown(net: torch.nn.Module) -> float:
    """How many times larger the weights are than PyTorch draws them, the median over layers."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    sizes = [
        math.sqrt(3 * m.weight[0].numel() * float(m.weight.detach().double().square().mean()))
        for m in net.modules() if isinstance(m, kinds)
    ]  # fmt: skip
    return sorted(sizes)[len(sizes) // 2] if sizes else math.nan


def _some(items: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n of them at random."""
    return items[torch.randperm(len(items), generator=generator)[:n]]


def _clipped(x: Tensor) -> float:
    """The largest share, over coordinates of x (n, D), of items at its least or its largest value.

    The smaller one of both ends counts: values are cut off at both, and pile up nowhere else.
    """
    most = 0.0
    for values in x.T[:MOST_COORDINATES]:
        found, counts = values.unique(return_counts=True)
        least = int(min(counts[0], counts[-1]))
        if len(found) >= DISTINCT * len(values) and least >= PILE:
            most = max(most, least / len(values))
    return most


def _apart(a: torch.nn.Module, b: torch.nn.Module) -> float:
    """|a - b| / |b| over all weights."""
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    apart = sum(float((p.double() - q.double()).square().sum()) for p, q in pairs)
    size = sum(float(q.double().square().sum()) for _, q in pairs)
    return math.sqrt(apart / size) if size > 0 else math.inf


def _prior_kl(x: Tensor, alpha: float, sigma: float, prior: float) -> float:
    """KL( Gaussian with the moments of x_T || prior ), nats a dimension, of one variance."""
    spread = (alpha**2 * float((x - x.mean(0)).square().mean()) + sigma**2) / prior**2
    shift = alpha**2 * float(x.mean(0).square().mean()) / prior**2
    return 0.5 * (spread - 1 - math.log(spread) + shift)


def _sample_facts(subject: Subject, generator: torch.Generator) -> dict[str, Any]:
    """Energy distances of both samplers' samples to the data, likelihoods, and copies."""
    assert subject.samples is not None and subject.careful is not None
    real = _some(subject.train, MOST_REAL, generator).flatten(1)
    found: dict[str, Any] = {}
    for name, x in (("samples", subject.samples), ("careful", subject.careful)):
        flat = x.flatten(1).double()
        if not bool(torch.isfinite(flat).all()):
            found[name], found[f"{name}_stderr"] = math.inf, 0.0
            continue
        estimate = distances.kernel_distance(
            distances.negative_distance, flat, block_of(len(flat), 10), real
        )
        found[name], found[f"{name}_stderr"] = estimate.value, estimate.stderr
    found["spread"] = float((real.double() - real.double().mean(0)).norm(dim=1).mean())
    found |= _likelihoods(subject, generator)
    if len(subject.train) >= FEWEST and bool(torch.isfinite(subject.careful).all()):
        found["memorisation"] = memorisation(subject.careful, subject.train, subject.held_out)
    return found


def _likelihoods(subject: Subject, generator: torch.Generator) -> dict[str, float]:
    """Nats a dimension that the model gives to its samples less those of real items, +- stderr.

    A sampler that is true to the model draws what the model thinks likely, and no likelier: 0 where
    the model is right as well. Of networks that are told classes nothing is said.
    """
    assert subject.samples is not None and subject.careful is not None
    if subject.labels is not None:
        return {}
    real = subject.train if subject.held_out is None else subject.held_out
    dim = real[0].numel()
    few = 4 * LIKELY if dim <= 8 else LIKELY if dim <= 500 else LIKELY // 4
    sets = {"real": _some(real, few, generator), "samples": subject.samples[:few],
            "careful": subject.careful[:few]}  # fmt: skip
    nats = {}
    device = next(subject.model.parameters()).device
    for name, x in sets.items():
        if not bool(torch.isfinite(x).all()):
            return {}
        exact: Literal["exact", "hutchinson"] = "exact" if dim <= 8 else "hutchinson"
        try:
            found = log_likelihood(
                subject.model.sde, subject.model, x.float().to(device), divergence=exact,
                truncation="none", prior="sde", nfe=40, data_std=1.0, check=0, seeds=range(len(x)),
            )  # fmt: skip
        except ODEError:
            return {}
        nats[name] = found.nats.double().cpu() / dim
    said: dict[str, float] = {}
    for name in ("samples", "careful"):
        apart = float(nats[name].mean() - nats["real"].mean())
        variance = sum(float(nats[of].var()) / len(nats[of]) for of in (name, "real"))
        said |= {f"{name}_likelier": apart, f"{name}_likelier_stderr": math.sqrt(variance)}
    drift = nats["samples"].mean() - nats["careful"].mean()
    unsure = sum(nats[of].var() / len(nats[of]) for of in ("samples", "careful"))
    return said | {"drift": float(drift), "drift_stderr": float(unsure) ** 0.5}
