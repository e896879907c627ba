"""Measurements y = A(x_0) + noise: what was measured, and draws of what is hidden."""

from score_sde.restoration.operators import Blur as Blur
from score_sde.restoration.operators import Compose as Compose
from score_sde.restoration.operators import Downsample as Downsample
from score_sde.restoration.operators import Fourier as Fourier
from score_sde.restoration.operators import Grey as Grey
from score_sde.restoration.operators import Linear as Linear
from score_sde.restoration.operators import Mask as Mask
from score_sde.restoration.operators import Matrix as Matrix
from score_sde.restoration.operators import Nonlinear as Nonlinear
from score_sde.restoration.operators import Operator as Operator
from score_sde.restoration.operators import Pool as Pool
from score_sde.restoration.operators import Radon as Radon
from score_sde.restoration.operators import gaussian_kernel as gaussian_kernel
