"""Causes that lie between the network and what is made of it: its target, noise labels, scale and
items are other than in training, or it does not use what it is told or shown."""

from __future__ import annotations

import math

from score_sde.diagnosis.as_trained import grown
from score_sde.diagnosis.asked import Reading
from score_sde.diagnosis.findings import CONSTANT, Finding, Measured, finite
from score_sde.diagnosis.other_labels import PROCESSES
from score_sde.diagnosis.ratios import SURE, Slope
from score_sde.diagnosis.readings import misread
from score_sde.models import TIME_SCALES

OTHER_TARGET = 0.8  # a right target betters a wrong one at least so much (eps as v: 0.3 and less)
OTHER_LABELS = 0.97  # labels off by a third cost little more; of right ones nothing betters 0.99
HALF_WAY, TOO_FAR = 0.5, 2.0  # of a change of labels that data ask for: right ones 0, wrong ones 1
AT_STAKE = 0.99  # of the error: where labels hardly matter their best scale is chance, .999
EQUAL = 0.01  # of the logarithm of an error: two readings that are the same
OTHER_STD = math.log(1.3)  # of the items, over training batches
OTHER_ITEMS = 0.9  # sets that are nearly symmetric are denoised as well turned around
GAIN = math.log(1.15)  # short training leaves the scale a few per cent off
DEAF = 1e-4  # share of the output that changes with t: rounding
HARDLY_HEARS = 0.02  # networks trained at many noise levels: 0.4 and more; ten updates: 0.06
MANY_LEVELS = 10.0  # largest over smallest sigma/alpha: trained at fewer, t is of no use
LEARNED = 0.97  # of the trivial guess's error at some level, surely: something has been learned
EXPLODED = 10.0  # over the trivial guess's error: such weights hear nothing, but for that reason
GROWN = 1.15  # errors of eps over those of training's last updates, which are weights as good
WORSE_THAN_LOGGED = 1.5  # and at one range of levels alone
SURE_OF_ITSELF = 0.5  # nats a dimension, own samples over data
NO_TRAINING = 1.05  # of the trivial guess's error: none that converges leaves a network there
AT_BOUND = 0.02  # share of outputs at their largest value: of smooth laws a ten thousandth
BEYOND = 1.1  # of that value, what they should reach
RANDOM = 0.02  # two outputs for one input apart; bfloat16 rounds to 0.004


def target(m: Measured) -> Finding | None:
    found = misread(m.readings, "target", better=OTHER_TARGET)
    if found is None or _deaf(m):
        return None
    own = m.readings.declared
    return Finding(
        "wrong prediction type",
        f"read as {own.name!r}, as declared, the output errs {own.over_linear.value:.3g} times as "
        f"much as a linear denoiser; read as {found.name!r}, {found.over_linear.value:.3g} times",
        f"set model.target={found.name}, or train again as {own.name}",
    )


def labels(m: Measured) -> Finding | None:
    """Noise labels that are not those of training: another scale or kind, or another process."""
    kinds = ("label scale", "time_input", "time", "process")
    readings = {kind: _other_labels(m, kind) for kind in kinds}
    found = {kind: r for kind, r in readings.items() if r is not None}
    if not found or _deaf(m):
        return None
    kind, best = min(found.items(), key=lambda pair: pair[1].over_declared.log)
    if "process" in found and found["process"].over_declared.log < best.over_declared.log + EQUAL:
        kind, best = "process", found["process"]  # which explains times as well
    own, raw = m.readings.declared.over_linear.value, m.subject.raw
    said = f"as declared it errs {own:.3g} times as much as a linear denoiser; "
    share = best.share
    asked = "" if share is None else (
        f", and the data ask for {share.value:.2f} +- {share.stderr:.1g} of the change"
    )  # fmt: skip
    then = f"{best.over_linear.value:.3g} times"
    if kind == "label scale":
        scale = float(best.name) * raw.time_scale
        evidence = f"told noise labels {best.name} times as large, {then}"
        fix = f"set model.time_scale={scale:.4g}; if it is right, model.time_input or sde.* is not"
    elif kind == "time_input":
        evidence, fix = f"told {best.name}, {then}", f"set model.time_input={best.name}"
        if best.name not in TIME_SCALES:
            fix = "tell the network time from 0 at the data to t_max in noise, as in training"
    elif kind == "time":
        evidence = f"told other times, {then}: sigma/alpha {best.name}"
        fix = "give the process (sde.*), time_input and time_shift of training"
    else:
        evidence = f"shown x_t of the process {best.name!r} with its times, {then}"
        fix = f"set sde.name={best.name}, with its sde.* of training"
    same = kind != "process" or type(PROCESSES[best.name]) is type(raw.sde)
    name = "wrong noise labels" if same else "wrong process"
    return Finding(name, said + evidence + asked, fix)


def _other_labels(m: Measured, kind: str) -> Reading | None:
    """The best reading of a kind, if it is surely right: by the error, or by what data ask for."""
    found = misread(m.readings, kind, OTHER_LABELS)
    if found is None and kind != "time":  # times are chosen level by level, the best of many
        found = misread(m.readings, kind, 1.0)
        if found is not None and not (
            found.share is not None
            and asked_for(found.share)
            and found.over_declared.value < AT_STAKE
        ):
            return None
    return found


def asked_for(share: Slope) -> bool:
    """Whether data ask for a change: surely for more than half of it, and not for much more."""
    return share.value - SURE * share.stderr > HALF_WAY and share.value < TOO_FAR


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
    """Errors that training did not have: something else has changed since then."""
    pooled = grown(m.again)
    worse = [v for v in m.again if v.ratio.above(WORSE_THAN_LOGGED)]
    if pooled.above(GROWN) or worse:
        most = max(worse or m.again, key=lambda v: v.ratio.log)
        said = (
            f"the weights as trained err {pooled.value:.3g} times as much as the log says of the "
            f"last updates, with times and items drawn as there; at sigma/alpha {most.low:g} to "
            f"{most.high:g} {most.now:.3g} (of eps) where the log says {most.then:.3g}"
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


def _deaf(m: Measured) -> bool:
    """Whether the output does not change at all with what is told of t."""
    return max(v.heard for v in m.levels) < DEAF and m.readings.varies > CONSTANT


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


def not_finite(m: Measured) -> Finding | None:
    """Overflow, as of float16, or a division by what may be 0."""
    if m.readings.finite == 1:
        return None
    return Finding(
        "output not finite",
        f"of the outputs at one noise level {1 - m.readings.finite:.1%} are NaN or infinity, "
        "though all weights are finite",
        "evaluate in fp32 or bf16 (model.precision), and look for divisions, logarithms and roots "
        "of what may be 0 in forward",
    )


def bounded(m: Measured) -> Finding | None:
    """A last layer that cannot reach what it should say: tanh, a sigmoid, a clamp."""
    most, share, wanted = m.readings.bound
    if share < AT_BOUND or wanted < BEYOND * most or m.readings.varies < CONSTANT:
        return None
    return Finding(
        "output bounded",
        f"{share:.1%} of all outputs lie at {most:.3g}, which none exceeds; a hundredth of what "
        f"they should be is beyond {wanted:.3g}",
        "no tanh, sigmoid or clamp after the last layer, and no clipping of guesses in training",
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
