"""Causes that lie in settings: range and scale of the data, ends of time, the sampler."""

from __future__ import annotations

import math

import torch

from score_sde.diagnosis.findings import Finding, Measured
from score_sde.diagnosis.ratios import SURE

# Data: mean 0 and standard deviation 1 are what processes and networks are made for; images on
# -1..1 have a deviation from 0.3 to 0.9.
FADING = 0.5  # alpha at t_max below which the signal fades, as VP's does, and scale matters most
LARGE, SMALL = 3.0, 0.05  # of such a process
LARGE_ANYWHERE, SMALL_ANYWHERE = 30.0, 0.02  # VE goes to noise of 50 and from 0.01
OFF_CENTRE = 4.0  # deviations that the mean may lie from 0, and 1
CLIPPED = 0.01  # share of a continuous coordinate's values at each end; a smooth law has 1/n
DATA_STD = 0.9  # of the logarithm: a factor 2.5; EDM's 0.5 is used for data from 0.3 to 1
# The ends of time.
STANDS_OUT = 0.02  # SNR at t_max: VP with beta_max = 20 has 4e-5, VE at the data's diameter 0.01
PRIOR_KL = 0.05  # nats a dimension
NARROW = 0.05  # W_2 over the data's size; of images the mean over pixels says little
WASTED = 100.0  # diameters of the data; EDM's 80 is 5 to 30 for what it is used for
LOST = 0.01  # of the variance, by the best denoiser at t_min
FINE = 1 / 3  # of the data's smallest spread
# Samples, by the run's sampler and by a careful one.
FURTHER = 2.0  # times the careful one's energy distance to the data,
AND_BY = 0.005  # and by this share of the data's spread
LIKELIER = 0.15  # nats a dimension between the two


def data_range(m: Measured) -> Finding | None:
    std, mean = m.facts["data_std"], m.facts["data_mean"]
    sde = m.subject.model.sde
    fades = float(sde.alpha(torch.tensor(sde.t_max))) < FADING
    worst = max(std, abs(mean))
    if (
        (fades and (worst > LARGE or std < SMALL))
        or worst > LARGE_ANYWHERE
        or std < SMALL_ANYWHERE
        or abs(mean) > OFF_CENTRE * std + 1
    ):
        return Finding(
            "wrong data range",
            f"training items lie in [{m.facts['low']:.3g}, {m.facts['high']:.3g}] with mean "
            f"{mean:.3g} and standard deviation {std:.3g} as the model sees them; the process is "
            "made for about 0 and 1",
            "set data.scaling=standard (or symmetric), and data.range if the bounds are wrong",
        )
    return None


def clipped(m: Measured) -> Finding | None:
    share = m.facts["clipped"]
    if share > CLIPPED:
        return Finding(
            "values cut off",
            f"{share:.1%} of a coordinate's values, or more, lie exactly at its least value, and "
            "as many at its largest",
            "look for a clip or clamp in what made the data, and for a range narrower than they",
        )
    return None


def data_std(m: Measured) -> Finding | None:
    """The scale that the preconditioning of F and of scaled inputs is made for."""
    model, std = m.subject.model, m.facts["data_std"]
    scaled = model.target == "F" or model.scale_input
    if scaled and abs(math.log(model.data_std / std)) > DATA_STD:
        return Finding(
            "wrong data_std",
            f"model.data_std is {model.data_std:.3g}, the data's standard deviation {std:.3g}: "
            f"inputs and targets of the network are off by up to a factor "
            f"{max(model.data_std / std, std / model.data_std):.3g}",
            f"set model.data_std={std:.2g} and train again",
        )
    return None


def sigma_max(m: Measured) -> Finding | None:
    snr, kl, prior = m.facts["terminal_snr"], m.facts["prior_kl"], m.facts["law_of_ends"].prior
    if snr > STANDS_OUT or kl > PRIOR_KL or prior > NARROW:
        return Finding(
            "sigma_max too small",
            f"at t_max the data still stand out: SNR {snr:.2g}, {kl:.2g} nats a dimension between "
            f"x_T and the prior, which leaves samples off by {prior:.2g} of the data's size; the "
            f"data's diameter is {m.facts['diameter']:.3g}, sigma/alpha "
            f"there {m.levels[-1].at:.3g}",
            f"raise sde.sigma_max to {m.facts['diameter']:.2g} (VE), or beta_max or t_max, and "
            "train again",
        )
    return None


def sigma_max_wasted(m: Measured) -> Finding | None:
    """Of processes that add noise without end, noise that hides nothing more."""
    sde = m.subject.model.sde
    grows = float(sde.alpha(torch.tensor(sde.t_max))) >= FADING
    top, diameter = m.levels[-1].at, m.facts["diameter"]
    if not grows or top < WASTED * diameter:
        return None
    return Finding(
        "sigma_max too large",
        f"at t_max the noise is {top:.3g} where the data's diameter is {diameter:.3g}: beyond that "
        "there is nothing to learn, and steps are spent there",
        f"set sde.sigma_max={diameter:.2g} (VE), or sde.t_max (EDM), and train again",
    )


def t_min(m: Measured) -> Finding | None:
    noise, spread = m.facts["noise_at_t_min"], m.facts["smallest_spread"]
    lost = m.attained(m.levels[0])
    if lost > LOST and noise > FINE * spread:
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
    drift, unsure = f.get("drift", 0.0), f.get("drift_stderr", math.inf)
    far = mine > FURTHER * max(careful, 0) + SURE * error + AND_BY * f["spread"]
    drifts = abs(drift) > LIKELIER + SURE * unsure
    if far or drifts:
        return Finding(
            "bad sampler settings",
            f"samples by {m.subject.sampler} are {mine:.3g} +- {error:.1g} from the data (energy "
            f"distance), by a careful solver of the same model {careful:.3g}; the model finds them "
            f"{drift:+.2g} nats a dimension likelier than those",
            "more steps, or a better method at this cost: --sampler heun --nfe 39 --grid karras; "
            "correctors with a smaller snr; less guidance, or none at large noise",
        )
    return None
