"""What a model says of data: exact likelihoods, bounds, and latents."""

from score_sde.likelihood.bounds import Bound, continuous_bound, variational_bound
from score_sde.likelihood.latents import decode, encode, interpolate
from score_sde.likelihood.levels import dequantize
from score_sde.likelihood.ode import log_likelihood
from score_sde.likelihood.result import Likelihood

__all__ = [
    "Bound",
    "Likelihood",
    "continuous_bound",
    "decode",
    "dequantize",
    "encode",
    "interpolate",
    "log_likelihood",
    "variational_bound",
]
