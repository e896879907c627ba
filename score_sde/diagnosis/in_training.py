"""Causes that lie in training: its rate and length, averages, items, noise levels and classes."""

from __future__ import annotations

import math

from score_sde.diagnosis.denoising import Level
from score_sde.diagnosis.findings import (
    BETTER,
    CONSTANT,
    FEW_DIMS,
    FINEST,
    WEAK,
    Finding,
    Measured,
    finite,
)
from score_sde.diagnosis.ratios import SURE, Ratio
from score_sde.diagnosis.readings import INNER

# Ratios of errors that a cause must pass, by four standard errors each.
WORSE_THAN_TRIVIAL = 1.05  # raw weights: no training that converges leaves them there
NOISY_WEIGHTS = 2.0  # raw weights over their average; 1.0 to 1.3 at usual rates
PEAK = 10.0  # largest late loss over the median: batches differ by a factor of 2 or 3
MOVED = 1.15  # weights over PyTorch's at the start: after ten updates 1.0
EMA_LAG = 1.1  # averaged over raw; an average in order is below 1
EMA_APART = 0.05  # of the weights' size between the two, so that they are two
NOTHING_LEARNED = 0.9  # of the trivial guess's error
EMA_SHORT = 0.9  # the mean of two checkpoints over the average
OVERFIT = 1.2  # held-out over training items
OVERFIT_COPIES = 1.1  # the same where there are copies among the samples
BY_HEART = 0.5  # over the best smooth law of the other items, and over a linear denoiser
HALF = 0.5  # of the possible gain, where the optimum is the law's and not the items'
LITTLE = 0.2  # of the possible gain: nothing to speak of
NEGLECTED = 1.2  # over a linear denoiser at one level outside of training's
CARRIED = 0.1  # of the noise at which an error of x_0 is made: in units of that it is carried on
UNWEIGHED = 1e-3  # of the weight of the loss; evenly spread over nine levels each has a ninth
NEGLECTED_INSIDE, LEVELS_INSIDE = 2.0, 2  # and at so many inside; x0 errs so at the smallest noise
CLASSES_HELP = 0.97  # a linear denoiser that knows the class over one that does not
CLASSES_USED = 0.25  # of that help, in logarithms
EXCHANGED = 0.9  # told another class over told the own one
OFF = math.log(2)  # calibration: of a network that is trained, 0.8 to 1.3
TURNING = 0.5  # curl: of a network that is trained, below 0.35
TWEEDIE = 0.35  # slopes from 1: of a network that is trained, below 0.2


def learning_rate(m: Measured) -> Finding | None:
    losses = [float(v["loss"]) for v in m.subject.log if finite(v.get("loss"))]
    skipped = max((int(v.get("skipped_steps") or 0) for v in m.subject.log), default=0)
    worse, noisy = m.pooled("raw", "trivial", m.seen), m.pooled("raw", "model", m.seen)
    late = sorted(losses[len(losses) // 2 :])
    peaks = late[-1] / (late[len(late) // 2] + 1e-12) if len(late) >= 4 else 1.0
    # A dead network, one at its start, or one of which nothing is known, may err so as well.
    moved = not m.facts["weights_grown"] < MOVED  # NaN of layers of other kinds
    told = bool(m.subject.log) and moved and m.readings.varies > CONSTANT
    # Wild weights are so at all noise, and were so in training: what is bad at some noise only was
    # not trained there, and what was good in training has been changed since.
    low, high = m.subject.trained or (0.0, math.inf)
    inside = [v for v in m.levels if low <= v.at <= high]
    well = any(v.ratio("raw", "trivial").below(WORSE_THAN_TRIVIAL) for v in inside) or _went_well(m)
    wild = told and ((worse.above(WORSE_THAN_TRIVIAL) and not well) or noisy.above(NOISY_WEIGHTS))
    if skipped or wild or m.saturated or peaks > PEAK:
        return Finding(
            "learning rate too high",
            f"raw weights err {worse.value:.2g} times the trivial guess and {noisy.value:.2g} "
            f"times their average; they are {m.facts['weights_grown']:.2g} times as large as at a "
            f"start; {skipped} updates without a finite gradient; the largest late loss is "
            f"{peaks:.2g} times the median",
            "divide training.lr by 3 to 10, with training.grad_clip=1 and warmup_steps; if it is a "
            "usual one, a larger training.batch_size",
        )
    return None


def _went_well(m: Measured) -> bool:
    """Whether the log says that the last updates erred less than the trivial guess."""
    logs = [math.log(max(v.error, 1e-12) / v.trivial) for v in m.subject.logged if v.trivial > 0]
    return bool(logs) and sum(logs) < 0


def ema(m: Measured) -> Finding | None:
    lag = m.pooled("model", "raw", m.levels)
    if m.pooled("raw", "linear", m.bettering).below(WEAK):  # elsewhere any weights are as good
        lag = max(lag, m.pooled("model", "raw", m.bettering))
    if lag.above(EMA_LAG) and m.facts["ema_distance"] > EMA_APART:
        trivial = m.pooled("model", "trivial").value
        return Finding(
            "EMA never updated" if trivial > NOTHING_LEARNED else "EMA lags",
            f"averaged weights err {lag.value:.2f} times as much as raw ones, {trivial:.2f} times "
            f"the trivial guess, and differ from them by {m.facts['ema_distance']:.0%}",
            "sample with --weights model now; train with training.ema_sigma_rel=0.1, which needs "
            "not know the run's length, or a smaller ema_decay",
        )
    mean: Ratio | None = m.facts.get("mean_over_model")
    if mean is not None and mean.below(EMA_SHORT):
        return Finding(
            "EMA too short",
            f"the mean of two checkpoints' weights errs {mean.value:.2f} times as much as the "
            "averaged weights do",
            "a longer average: training.ema_sigma_rel=0.1 or a larger ema_decay; or let the "
            "learning rate fall (training.decay)",
        )
    return None


def overfit(m: Measured) -> Finding | None:
    pairs = [v for v in m.learnable if v.held_out is not None]
    gap = m.pooled("held_out", "model", pairs)
    copies = m.facts.get("memorisation")
    found = copies is not None and copies.found
    known = [] if pairs else _by_heart(m)
    if gap.above(OVERFIT) or (found and (not pairs or gap.above(OVERFIT_COPIES))) or known:
        said = f"held-out items are denoised with {gap.value:.2f} times the error of training items"
        if not pairs:
            said = "there are no held-out items to compare with"
        if known:
            least = min(v.ratio("model", "unseen").value for v in known)
            said += (
                f", but at sigma/alpha {', '.join(f'{v.at:.2g}' for v in known)} training items "
                f"are denoised with down to {least:.2f} times the error of the best smooth law of "
                "the other items"
            )
        return Finding(
            "overfit",
            said + (f"; {copies.sentence()}" if copies is not None else ""),
            f"more data than {m.facts['n_train']} items, a smaller network, dropout, or an earlier "
            "checkpoint (training.keep_best, --step best)",
        )
    return None


def _by_heart(m: Measured) -> list[Level]:
    """Where, in few dimensions, more is known of the items than the others tell of them."""
    if m.subject.train[0].numel() > FEW_DIMS or m.subject.labels is not None:
        return []  # networks generalise better than a smooth law of items; classes say more
    simple = [v for v in m.learnable if v.ratio("model", "linear").below(BY_HEART)]
    return [v for v in simple if v.ratio("model", "unseen").below(BY_HEART)]


def _weak(m: Measured) -> tuple[float, float] | None:
    """Of a model no better than a Gaussian's denoiser where a better one exists: its error over
    that one's, and what share of the possible gain it has."""
    better = m.bettering
    if m.reachable:  # and what the other items tell: the optimum knows the finest by heart
        better = [v for v in better if v.unseen < BETTER * v.linear]
    if not better:
        return None
    worse = m.pooled("model", "linear", better)
    least = "unseen" if m.reachable else "optimal"
    possible = sum(v.linear - getattr(v, least) for v in better)
    gain = sum(v.linear - v.model for v in better) / possible
    squares = [float((v.errors["linear"] - v.errors["model"]).var()) / len(v.errors["model"])
               for v in better]  # fmt: skip
    unsure = SURE * math.sqrt(sum(squares)) / possible
    if worse.above(WEAK) or (m.reachable and gain + unsure < HALF):
        return worse.value, gain
    return None


def coverage(m: Measured) -> Finding | None:
    """Noise levels that sampling asks about and the model knows nothing of: training's times leave
    them out, or its weighting does."""
    if m.subject.trained is None:
        return None
    low, high = m.subject.trained
    # What moves a sample by less than a third of the finest detail of the data is of no matter.
    fine = (m.facts["smallest_spread"] / m.facts["data_std"]) ** 2 / 10
    matter = [v for v in m.levels if v.model - v.optimal > fine]
    outside = [v for v in matter if v.at < low / 2 or v.at > 2 * high]
    sides = [[v for v in outside if v.at < low], [v for v in outside if v.at > high]]
    poor = [v for side in sides if m.pooled("model", "linear", side).above(NEGLECTED)
            for v in side if v.model > NEGLECTED * v.linear]  # fmt: skip
    bad = [v for v in outside if v in poor or v.ratio("model", "linear").above(NEGLECTED)
           or _learned_little(v)]  # fmt: skip
    if bad and not (len(m.bettering) >= 2 and _weak(m)):  # weak where it was trained, too
        return Finding(
            "noise levels not trained",
            f"all but 0.2 % of the training times lie at sigma/alpha from {low:.2g} to {high:.2g}; "
            f"at {_those(bad)}",
            "widen the density of training times: loss.times=uniform, or a larger "
            "loss.log_sigma_std, and loss.t_min at or below sde.t_min",
        )
    carried = (CARRIED / m.facts["data_std"]) ** 2
    inside = [v for v in matter if v not in outside and v.model - v.optimal > carried * v.at**2]
    bad = [v for v in inside if v.ratio("model", "linear").above(NEGLECTED_INSIDE)]
    good = [v for v in inside if v.ratio("model", "linear").below(WEAK)]
    shares = [_weight(m, v) for v in bad]
    unweighed = all(share is not None and share < UNWEIGHED for share in shares)
    if len(bad) >= LEVELS_INSIDE and (good or unweighed):
        said = "the model betters a linear denoiser"
        if unweighed:
            said = "the model is trained"
            good = [v for v in inside if v not in bad]
        return Finding(
            "noise levels neglected",
            f"at sigma/alpha {', '.join(f'{v.at:.2g}' for v in good)} {said}, but at "
            + _those(bad)
            + (
                f"; of the loss's weight {max(s or 0 for s in shares):.1g} or less is there"
                if unweighed
                else ""
            ),
            "let the loss weigh all noise levels alike: loss.weighting=edm for the target F, eps "
            "or output for others; or draw more times there",
        )
    return None


def _weight(m: Measured, level: Level) -> float | None:
    """The share of the objective around a level."""
    at = [v.at for v in m.levels]
    i = at.index(level.at)
    step = (at[-1] / at[0]) ** (0.5 / (len(at) - 1))
    return m.subject.weight_at(at[i] / step, at[i] * step)


def _those(bad: list[Level]) -> str:
    return (
        f"{', '.join(f'{v.at:.2g}' for v in bad)} the model errs up to "
        f"{max(v.model / v.linear for v in bad):.3g} times as much as a linear denoiser, "
        f"{max(v.model / max(v.optimal, 1e-12) for v in bad):.3g} times the optimum"
    )


def _learned_little(v: Level) -> bool:
    possible, got = v.linear - v.optimal, v.linear - v.model
    return v.at > FINEST and possible > 0.1 * v.linear and got < LITTLE * possible


def undertrained(m: Measured) -> Finding | None:
    weak = _weak(m)
    if weak is None:
        return None
    updates = int(m.subject.log[-1]["step"]) if m.subject.log else None
    rates = [float(v["lr"]) for v in m.subject.log if finite(v.get("lr"))]
    return Finding(
        "undertrained",
        f"the model errs {weak[0]:.2f} times as much as a linear denoiser, and has learned "
        f"{max(weak[1], 0):.0%} of what can be bettered on it"
        + (f", after {updates} updates" if updates else "")
        + (f" at a learning rate of {max(rates):.2g} at most" if updates and rates else ""),
        "train longer (--resume with more training.steps), at a larger training.lr if the loss "
        "falls slowly; if it no longer falls, a larger network",
    )


def classes(m: Measured) -> Finding | None:
    c = m.classes
    if c is None or not c.linear.below(CLASSES_HELP):
        return None  # knowing the class is of no help with these data
    moved = [f"{i} as {j}" for i, j in enumerate(c.best) if i != j]
    if moved and c.best_over_own.below(EXCHANGED):
        return Finding(
            "labels exchanged",
            f"items are denoised with {c.best_over_own.value:.2f} times the error if told other "
            f"classes than their own: {', '.join(moved[:6])}",
            "use the order of the classes that the network was trained with",
        )
    weak = _weak(m)
    if weak is not None and weak[1] < LITTLE:
        return None  # nothing has been learned yet, classes neither
    if c.right.log + SURE * c.right.stderr > CLASSES_USED * c.linear.log:
        return Finding(
            "labels ignored",
            f"told the right class, the model errs {c.right.value:.3f} times as much as told one "
            f"at random; a linear denoiser that knows the class {c.linear.value:.3f} times as one "
            "that does not",
            "check that labels belong to their items in training, that conditioning.dropout is "
            "well below 1, and that the network uses class_labels",
        )
    return None


def identities(m: Measured) -> Finding | None:
    """What every posterior mean obeys, whatever the data."""
    inside = [v for v in m.seen if INNER[0] < v.at < INNER[1]]
    off = [v for v in inside
           if abs(math.log(max(v.calibration, 1e-9)))
           > OFF + SURE * v.calibration_stderr / max(v.calibration, 1e-9)]  # fmt: skip
    turning = [v for v in inside if v.curl > TURNING]
    sloping = [v for v in inside if v.tweedie.off(TWEEDIE) or v.energy.off(TWEEDIE)]
    found = next((bad for bad in (off, turning, sloping) if len(bad) >= 2), None)
    if found is not None:
        worst = max(inside, key=lambda v: abs(v.tweedie.value - 1))
        return Finding(
            "not a posterior mean",
            f"at sigma/alpha {', '.join(f'{v.at:.2g}' for v in found)} the denoiser's error is not "
            f"what its Jacobian says (calibration up to {max(v.calibration for v in inside):.2g}), "
            f"its field is no gradient (curl {max(v.curl for v in inside):.2g}), or the data do "
            f"not rise with its guesses as they must (slope {worst.tweedie.value:.2g} for 1)",
            "the objective is not denoising score matching of these data with this process: check "
            "weighting, target and guidance baked into the weights; or train longer",
        )
    return None
