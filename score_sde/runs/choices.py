"""The names that a command may choose from, for its help and its errors."""

from score_sde.conditioning.rules import RULES as RULES
from score_sde.data.decoding import RESIZES as RESIZES
from score_sde.evaluation.features import FEATURES as FEATURES
from score_sde.restoration import METHODS as METHODS
from score_sde.sampling import SAMPLERS as SAMPLERS
from score_sde.sampling import list_samplers as list_samplers
from score_sde.sampling.grids import GRIDS as GRIDS
