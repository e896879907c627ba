"""How good samples are: distances to a reference, with their errors and their protocol."""

from score_sde.evaluation.measures import Measure as Measure
from score_sde.evaluation.measures import Statistics as Statistics
from score_sde.evaluation.report import Report as Report
from score_sde.evaluation.report import evaluate as evaluate
