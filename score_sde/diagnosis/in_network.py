"""Causes that lie between the network and what is made of it: its target, noise labels, scale and
items are other than in training, or it does not use what it is told or shown."""

from __future__ import annotations

import math
from itertools import pairwise

from score_sde.diagnosis.findings import CONSTANT, Finding, Measured, finite
from score_sde.diagnosis.ratios import SURE
from score_sde.diagnosis.readings import misread

OTHER_TARGET = 0.8  # a right target betters a wrong one at least so much (eps as v: 0.3 and less)
OTHER_LABELS = 0.97  # labels off by a third cost little more; of right ones nothing betters 0.99
OTHER_STD = math.log(1.3)  # of the items, over training batches
OTHER_ITEMS = 0.9  # sets that are nearly symmetric are denoised as well turned around
GAIN = math.log(1.15)  # short training leaves the scale a few per cent off
DEAF = 1e-4  # share of the output that changes with t: rounding
HARDLY_HEARS = 0.02  # networks trained at many noise levels: 0.4 and more; ten updates: 0.06
MANY_LEVELS = 10.0  # largest over smallest sigma/alpha: trained at fewer, t is of no use
LEARNED = 0.97  # of the trivial guess's error at some level, surely: something has been learned
EXPLODED = 10.0  # over the trivial guess's error: such weights hear nothing, but for that reason
WORSE_THAN_LOGGED = 1.5  # errors of eps in training's last updates, of a range of levels
SURE_OF_ITSELF = 0.5  # nats a dimension, own samples over data
NO_TRAINING = 1.05  # of the trivial guess's error: none that converges leaves a network there
RANDOM = 0.02  # two outputs for one input apart; bfloat16 rounds to 0.004


def target(m: Measured) -> Finding | None:
    found = misread(m.readings, "target", better=OTHER_TARGET)
    if found is None:
        return None
    own = m.readings.declared
    return Finding(
        "wrong prediction type",
        f"read as {own.name!r}, as declared, the output errs {own.over_linear.value:.3g} times as "
        f"much as a linear denoiser; read as {found.name!r}, {found.over_linear.value:.3g} times",
        f"set model.target={found.name}, or train again as {own.name}",
    )


def labels(m: Measured) -> Finding | None:
    """Noise labels that are not those of training: another scale, or another process."""
    found = [misread(m.readings, kind, OTHER_LABELS) for kind in ("label scale", "time")]
    best = min((r for r in found if r is not None), key=lambda r: r.over_declared.log, default=None)
    if best is None:
        return None
    own = m.readings.declared.over_linear.value
    said = f"as declared it errs {own:.3g} times as much as a linear denoiser; "
    if best is found[0]:
        told = f"told noise labels {best.name} times as large, {best.over_linear.value:.3g} times"
        scale = float(best.name) * m.subject.raw.time_scale
        return Finding(
            "wrong noise labels", said + told,
            f"set model.time_scale={scale:.4g}; if it is right, model.time_input is not",
        )  # fmt: skip
    return Finding(
        "wrong noise labels",
        said + f"told other times, {best.over_linear.value:.3g} times: sigma/alpha {best.name}",
        "give the process (sde.*), time_input and time_shift that the network was trained with",
    )


def items(m: Measured) -> Finding | None:
    """Data that look otherwise than in training."""
    found = misread(m.readings, "items", OTHER_ITEMS)
    if found is None:
        return _of_another_scale(m)
    own = m.readings.declared
    return Finding(
        "data not as in training",
        f"shown the items as they are, the network errs {own.over_linear.value:.3g} times as much "
        f"as a linear denoiser; shown them {found.name}, {found.over_linear.value:.3g} times as "
        "much as a linear denoiser of those",
        "give the data, and read the samples, as in training: order of channels, orientation, "
        "data.scaling and data.range",
    )


def _of_another_scale(m: Measured) -> Finding | None:
    now = m.facts["data_std"]
    seen = [float(v["data/std"]) for v in m.subject.log[-10:] if finite(v.get("data/std"))]
    then = sum(seen) / max(len(seen), 1)
    if then <= 0 or abs(math.log(max(now, 1e-12) / then)) < OTHER_STD:
        return None
    return Finding(
        "data not as in training",
        f"the items' standard deviation is {now:.3g} as the model sees them; in training, says its "
        f"log, it was {then:.3g}",
        "give data, data.scaling and data.range as in training",
    )


def loading(m: Measured) -> Finding | None:
    """Errors that the log of training does not have: something else has changed since then.

    The error of eps falls with noise: at a level it is at most the mean over the range below.
    """
    worse = []
    for below, own in pairwise(m.subject.logged):
        for v in m.levels:
            if below.high == own.low and own.low < v.at <= own.high:
                error = v.errors["raw"] * (m.facts["variance"] / v.at**2)
                sure = float(error.mean()) - SURE * float(error.std()) / len(error) ** 0.5
                most = max(below.error, own.error)
                if sure > WORSE_THAN_LOGGED * most:
                    worse.append((v.at, float(error.mean()), most))
    if len(worse) >= 2:
        at = ", ".join(f"{level:.2g}" for level, _, _ in worse)
        _, now, then = max(worse, key=lambda found: found[1] / found[2])
        said = (
            f"at sigma/alpha {at} the weights as trained err more than in training: up to {now:.3g}"
            f" (of eps) where the log of the last updates says at most {then:.3g}"
        )
    elif (said := _sure_of_others(m)) == "":
        return None
    return Finding(
        "loaded otherwise than trained",
        said,
        "something is not as it was in training, and no simple change of it explains all: compare "
        "the data and their order of pixels, data.*, sde.*, model.* and net.* with those of "
        "training",
    )


def _sure_of_others(m: Measured) -> str:
    """Of a model without a log: it draws what it thinks likely, and is sure that data are not."""
    likelier, stderr = (m.facts.get(f"careful_likelier{of}", math.nan) for of in ("", "_stderr"))
    linear, trivial = (m.pooled("raw", simple, m.seen) for simple in ("linear", "trivial"))
    sure = linear.above(1) and likelier - SURE * stderr > SURE_OF_ITSELF
    if m.subject.log or not (sure or trivial.above(NO_TRAINING)):
        return ""
    said = (
        f"the model errs {linear.value:.3g} times as much as a linear denoiser of these data and "
        f"{trivial.value:.3g} times as much as the trivial guess"
    )
    if math.isfinite(likelier):
        said += f"; its own samples are {likelier:.2g} nats a dimension likelier to it"
    return said + ": it has learned something else"


def gain(m: Measured) -> Finding | None:
    factor, read = m.readings.gain
    size = abs(factor.value)
    off = math.inf if factor.value < 0 else abs(math.log(max(size, 1e-9)))
    sure = size > SURE * factor.stderr and off - SURE * factor.stderr / size > GAIN
    if not (sure and read.over_linear.below(1) and read.over_declared.log < 0):
        return None
    return Finding(
        "output scaled",
        f"the output times {factor.value:.3g} +- {factor.stderr:.2g} errs "
        f"{read.over_declared.value:.3g} times as much as the output as it is: by least squares, "
        "which training does, the factor is 1",
        "train and sample with the same scaling of the target, and the same data_std",
    )


def time(m: Measured) -> Finding | None:
    most = max(v.heard for v in m.levels)
    learned = any(v.ratio("model", "trivial").below(LEARNED) for v in m.learnable)
    exploded = m.pooled("raw", "trivial").above(EXPLODED) or m.saturated
    if exploded or m.readings.varies < CONSTANT:
        return None
    low, high = m.subject.trained or (0.0, math.inf)
    if most < DEAF or (most < HARDLY_HEARS and learned and high > MANY_LEVELS * low):
        return Finding(
            "ignored t",
            f"told the same time at all noise levels, the output changes by {most:.2%} at most",
            "let forward(x, noise_label) use its noise_label: an embedding that is added to or "
            "scales the features of every block; check model.time_scale",
        )
    return None


def constant(m: Measured) -> Finding | None:
    """A network that has died, or whose last layer has never left its zeros."""
    if m.readings.varies >= CONSTANT:
        return None
    return Finding(
        "output is constant",
        f"outputs for different inputs differ by {m.readings.varies:.1g} of their size at most",
        "the network is dead: look whether gradients reach its weights (requires_grad, detach, a "
        "last layer of zeros that is left out of the optimiser); if they did, the learning rate "
        "was too high: divide training.lr by 10",
    )


def random_output(m: Measured) -> Finding | None:
    """Dropout that is on, and normalisation by the batch."""
    again, alone = m.readings.unlike, m.readings.unlike_alone
    if again > RANDOM:
        return Finding(
            "output is random",
            f"two outputs for the same inputs are {again:.0%} of their size apart",
            "switch dropout off outside of training: net.eval(), and F.dropout(x, p, "
            "training=self.training) in forward",
        )
    if alone > RANDOM:
        return Finding(
            "output depends on the batch",
            f"outputs for the same inputs in a larger and a smaller batch are {alone:.0%} of their "
            "size apart",
            "normalise within each item (group or layer normalisation), not over the batch, or "
            "call net.eval()",
        )
    return None
