"""Causes that lie in settings: data, process, target, labels, and how samples are drawn."""

from __future__ import annotations

import math

import torch

from score_sde.diagnosis.denoising import SURE
from score_sde.diagnosis.findings import Finding, Measured
from score_sde.diagnosis.readings import misread


def data_range(m: Measured) -> Finding | None:
    std, mean = m.facts["data_std"], m.facts["data_mean"]
    sde = m.subject.model.sde
    fades = float(sde.alpha(torch.tensor(sde.t_max))) < 0.5  # the signal, as VP's does
    worst = max(std, abs(mean))
    if (fades and (worst > 3 or std < 0.05)) or worst > 30 or std < 0.02 or abs(mean) > 4 * std + 1:
        return Finding(
            "wrong data range",
            f"training items lie in [{m.facts['low']:.3g}, {m.facts['high']:.3g}] with mean "
            f"{mean:.3g} and standard deviation {std:.3g} as the model sees them; the process is "
            "made for about 0 and 1",
            "set data.scaling=standard (or symmetric), and data.range if the bounds are wrong",
        )
    return None


def data_std(m: Measured) -> Finding | None:
    """The scale that the preconditioning of F and of scaled inputs is made for."""
    model, std = m.subject.model, m.facts["data_std"]
    if (model.target == "F" or model.scale_input) and abs(math.log(model.data_std / std)) > 0.9:
        return Finding(
            "wrong data_std",
            f"model.data_std is {model.data_std:.3g}, the data's standard deviation {std:.3g}: "
            f"inputs and targets of the network are off by up to a factor "
            f"{max(model.data_std / std, std / model.data_std):.3g}",
            f"set model.data_std={std:.2g} and train again",
        )
    return None


def target(m: Measured) -> Finding | None:
    found = misread(m.readings, "target", better=0.8)
    if found is None:
        return None
    own = m.readings["declared"][0]
    return Finding(
        "wrong prediction type",
        f"read as {own.name!r}, as declared, the output errs {own.over_linear.value:.3g} times as "
        f"much as a linear denoiser; read as {found.name!r}, {found.over_linear.value:.3g} times",
        f"set model.target={found.name}, or train again as {own.name}",
    )


def labels(m: Measured) -> Finding | None:
    """Noise labels that are not those of training: another scale, or another process."""
    found = [misread(m.readings, kind, better=0.93) for kind in ("label scale", "time")]
    best = min((r for r in found if r is not None), key=lambda r: r.over_declared.log, default=None)
    if best is None:
        return None
    own = m.readings["declared"][0].over_linear.value
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


def gain(m: Measured) -> Finding | None:
    found = misread(m.readings, "gain", better=0.95)
    if found is None or abs(math.log(max(float(found.name), 1e-9))) < 0.1:
        return None
    return Finding(
        "output scaled",
        f"the output times {found.name} errs {found.over_declared.value:.3g} times as much as the "
        "output as it is: a least-squares fit needs no such factor",
        "train and sample with the same scaling of the target, and the same data_std",
    )


def time(m: Measured) -> Finding | None:
    most = max(abs(v.ratio("deaf", "model").log) for v in m.levels[:-1])
    if most < 0.005 and any(v.ratio("model", "trivial").below(0.97) for v in m.learnable):
        return Finding(
            "ignored t",
            f"told the same time at all noise levels, errors change by {most:.1%} at most",
            "let forward(x, noise_label) use its noise_label: an embedding that is added to or "
            "scales the features of every block; check model.time_scale",
        )
    return None


def sigma_max(m: Measured) -> Finding | None:
    snr, kl = m.facts["terminal_snr"], m.facts["prior_kl"]
    if snr > 0.02 or kl > 0.05:
        return Finding(
            "sigma_max too small",
            f"at t_max the data still stand out: SNR {snr:.2g}, {kl:.2g} nats a dimension between "
            f"x_T and the prior; the data's diameter is {m.facts['diameter']:.3g}, sigma/alpha "
            f"there {m.levels[-1].at:.3g}",
            f"raise sde.sigma_max to {m.facts['diameter']:.2g} (VE), or beta_max or t_max, and "
            "train again",
        )
    return None


def t_min(m: Measured) -> Finding | None:
    noise, spread = m.facts["noise_at_t_min"], m.facts["smallest_spread"]
    lost = m.levels[0].optimal
    if lost > 0.02 and noise > spread / 3:
        return Finding(
            "t_min too large",
            f"at t_min = {m.subject.model.sde.t_min:g} the noise is {noise:.3g} of the signal, the "
            f"data's smallest spread {spread:.3g}: {lost:.1%} of the variance is lost there",
            "lower sde.t_min (--mode suggest gives a value)",
        )
    return None


def sampler(m: Measured) -> Finding | None:
    f = m.facts
    if "samples" not in f:
        return None
    mine, careful, error = f["samples"], f["careful"], f["samples_stderr"]
    drift = f.get("samples_likelier", 0.0) - f.get("careful_likelier", 0.0)
    far = mine > 2 * max(careful, 0) + SURE * error + 0.005 * f["spread"]
    drifts = abs(drift) > 0.15 + SURE * f.get("samples_likelier_stderr", math.inf)
    if far or drifts:
        return Finding(
            "bad sampler settings",
            f"samples by {m.subject.sampler} are {mine:.3g} +- {error:.1g} from the data (energy "
            f"distance), by a careful solver of the same model {careful:.3g}; the model finds them "
            f"{drift:+.2g} nats a dimension likelier than those",
            "more steps, or a better method at this cost: --sampler heun --nfe 39 --grid karras; "
            "correctors with a smaller snr",
        )
    return None
