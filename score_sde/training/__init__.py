"""Training: the loop, optimisers, averages of weights, checkpoints and logs."""

from score_sde.training.checkpoints import CheckpointError as CheckpointError
from score_sde.training.ema import EMA as EMA
from score_sde.training.logs import Logger as Logger
from score_sde.training.session import Pictures as Pictures
from score_sde.training.session import Session as Session
from score_sde.training.settings import TrainingSettings as TrainingSettings
from score_sde.training.stopping import Interrupted as Interrupted
from score_sde.training.trainer import Trainer as Trainer
from score_sde.training.trainer import TrainingError as TrainingError
