"""Interchangeable samplers: a method, a time grid and a noise source, run by one loop."""

from score_sde.ode.solve import ODEError as ODEError
from score_sde.ode.solve import solve_ode as solve_ode
from score_sde.sampling.calibration import calibrate as calibrate
from score_sde.sampling.catalogue import SAMPLERS as SAMPLERS
from score_sde.sampling.catalogue import list_samplers as list_samplers
from score_sde.sampling.catalogue import make_sampler as make_sampler
from score_sde.sampling.catalogue import needs_data_std as needs_data_std
from score_sde.sampling.catalogue import options_from_text as options_from_text
from score_sde.sampling.correctors import Corrector as Corrector
from score_sde.sampling.correctors import PredictorCorrector as PredictorCorrector
from score_sde.sampling.loop import SampleResult as SampleResult
from score_sde.sampling.loop import sample as sample
from score_sde.sampling.method import Predictor as Predictor
from score_sde.sampling.method import Trajectory as Trajectory
from score_sde.sampling.parallel import ParallelResult as ParallelResult
from score_sde.sampling.parallel import sample_parallel as sample_parallel
from score_sde.sampling.predictors import Affine as Affine
from score_sde.sampling.predictors import Coefficients as Coefficients
from score_sde.sampling.recipe import Recipe as Recipe
from score_sde.sampling.recipe import load_recipe as load_recipe
from score_sde.sampling.settings import SamplingSettings as SamplingSettings
from score_sde.sampling.settings import change_sampling as change_sampling
from score_sde.sampling.tolerance import ToleranceResult as ToleranceResult
from score_sde.sampling.tolerance import sample_to_tolerance as sample_to_tolerance
