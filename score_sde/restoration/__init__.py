"""Measurements y = A(x_0) + noise: what was measured, and draws of what is hidden."""

from score_sde.restoration.measurement import Covariance as Covariance
from score_sde.restoration.measurement import Poisson as Poisson
from score_sde.restoration.operators import Compose as Compose
from score_sde.restoration.operators import Linear as Linear
from score_sde.restoration.operators import Mask as Mask
from score_sde.restoration.operators import Matrix as Matrix
from score_sde.restoration.operators import Nonlinear as Nonlinear
from score_sde.restoration.operators import Operator as Operator
from score_sde.restoration.pictures import Blur as Blur
from score_sde.restoration.pictures import Downsample as Downsample
from score_sde.restoration.pictures import Fourier as Fourier
from score_sde.restoration.pictures import Grey as Grey
from score_sde.restoration.pictures import Pool as Pool
from score_sde.restoration.pictures import Radon as Radon
from score_sde.restoration.pictures import gaussian_kernel as gaussian_kernel
from score_sde.restoration.posterior import PosteriorScore as PosteriorScore
from score_sde.restoration.posterior import posterior_score as posterior_score
from score_sde.restoration.reference import SmoothGaussian as SmoothGaussian
from score_sde.restoration.reference import reference_gaussian as reference_gaussian
from score_sde.restoration.residuals import Residuals as Residuals
from score_sde.restoration.residuals import measure_residuals as measure_residuals
from score_sde.restoration.restore import METHODS as METHODS
from score_sde.restoration.restore import Restored as Restored
from score_sde.restoration.restore import restore as restore
