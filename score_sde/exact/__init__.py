"""Data whose score is known in closed form: the oracle of the tests, notebooks and benchmarks."""

from score_sde.exact.gaussian import Gaussian as Gaussian
from score_sde.exact.mixture import GaussianMixture as GaussianMixture
from score_sde.exact.score import ExactScore as ExactScore
