"""Networks as score functions, as maps of the flow, and as classifiers of its states."""

from score_sde.models.classifier import NoisyClassifier as NoisyClassifier
from score_sde.models.flow_map import FlowMap as FlowMap
from score_sde.models.flow_map import angle as angle
from score_sde.models.flow_map import angle_speed as angle_speed
from score_sde.models.flow_map import time_of_angle as time_of_angle
from score_sde.models.score_model import PRECISIONS as PRECISIONS
from score_sde.models.score_model import TIME_SCALES as TIME_SCALES
from score_sde.models.score_model import ScoreModel as ScoreModel
