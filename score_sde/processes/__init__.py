"""The mathematical ground: processes, DDPM's table, what a network can predict."""

from score_sde.processes.chain import BETA_TABLES as BETA_TABLES
from score_sde.processes.chain import Chain as Chain
from score_sde.processes.expand import expand as expand
from score_sde.processes.sdes import EDMSDE as EDMSDE
from score_sde.processes.sdes import SDE as SDE
from score_sde.processes.sdes import VESDE as VESDE
from score_sde.processes.sdes import VPSDE as VPSDE
from score_sde.processes.sdes import CosineSDE as CosineSDE
from score_sde.processes.sdes import FlowSDE as FlowSDE
from score_sde.processes.sdes import SubVPSDE as SubVPSDE
from score_sde.processes.sdes import TableSDE as TableSDE
from score_sde.processes.targets import TARGETS as TARGETS
