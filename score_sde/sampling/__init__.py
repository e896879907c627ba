"""Interchangeable samplers: a method, a time grid and a noise source, run by one loop."""

from score_sde.sampling.loop import SAMPLERS as SAMPLERS
from score_sde.sampling.loop import SampleResult as SampleResult
from score_sde.sampling.loop import list_samplers as list_samplers
from score_sde.sampling.loop import make_sampler as make_sampler
from score_sde.sampling.loop import sample as sample
from score_sde.sampling.ode import ODEError as ODEError
from score_sde.sampling.ode import solve_ode as solve_ode
from score_sde.sampling.predictors import Predictor as Predictor
from score_sde.sampling.predictors import Trajectory as Trajectory
