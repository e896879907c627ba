"""Every stream of random numbers: `streams`, and numbers by counter, `philox`."""

from score_sde.noise.streams import BrownianNoise as BrownianNoise
from score_sde.noise.streams import NoiseFactory as NoiseFactory
from score_sde.noise.streams import NoiseSource as NoiseSource
from score_sde.noise.streams import PhiloxNoise as PhiloxNoise
from score_sde.noise.streams import SeededNoise as SeededNoise
from score_sde.noise.streams import StepRandomness as StepRandomness
from score_sde.noise.streams import check_seeds as check_seeds
from score_sde.noise.streams import fresh_seeds as fresh_seeds
from score_sde.noise.streams import generator_of as generator_of
from score_sde.noise.streams import other_stream as other_stream
from score_sde.noise.streams import seed_torch as seed_torch
