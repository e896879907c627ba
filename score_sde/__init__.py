"""Continuous-time score-based diffusion models: processes, score models, samplers.

    processes   VPSDE, SubVPSDE, VESDE, CosineSDE, FlowSDE, EDMSDE, TableSDE; SDE for one of yours
    data        Gaussian, GaussianMixture: their score and density are known in closed form
    models      ScoreModel(net, sde, target) with UNet, MLP or a net of yours; ScoreMatching, a loss
    samples     sample, list_samplers, calibrate; guide and restore change what is sampled
    judging     log_likelihood, evaluate, verify, diagnose, suggest; plotting draws
    runs        train, load; load_diffusers, import_checkpoint, export_run

`help(score_sde.sample)` and the like tell more. In a minute, without training anything:

    run = score_sde.load("fashion")     # a model that ships; "emoji" takes prompts
    run.sample(16)                      # in a notebook, its picture

Importing starts nothing: nothing is compiled, downloaded, or put on a GPU.
"""

from score_sde import plotting as plotting
from score_sde.conditioning.guidance import guide as guide
from score_sde.diagnosis.suggest import suggest as suggest
from score_sde.diagnosis.verify import verify as verify
from score_sde.evaluation import evaluate as evaluate
from score_sde.exact import Gaussian as Gaussian
from score_sde.exact import GaussianMixture as GaussianMixture
from score_sde.likelihood import log_likelihood as log_likelihood
from score_sde.losses import ScoreMatching as ScoreMatching
from score_sde.models import ScoreModel as ScoreModel
from score_sde.nets import MLP as MLP
from score_sde.nets import UNet as UNet
from score_sde.processes.sdes import EDMSDE as EDMSDE
from score_sde.processes.sdes import SDE as SDE
from score_sde.processes.sdes import VESDE as VESDE
from score_sde.processes.sdes import VPSDE as VPSDE
from score_sde.processes.sdes import CosineSDE as CosineSDE
from score_sde.processes.sdes import FlowSDE as FlowSDE
from score_sde.processes.sdes import SubVPSDE as SubVPSDE
from score_sde.processes.sdes import TableSDE as TableSDE
from score_sde.restoration import restore as restore
from score_sde.runs.diagnose import diagnose as diagnose
from score_sde.runs.exchange import export_run as export_run
from score_sde.runs.exchange import import_checkpoint as import_checkpoint
from score_sde.runs.live import load_diffusers as load_diffusers
from score_sde.runs.load import load as load
from score_sde.runs.train import train as train
from score_sde.sampling import calibrate as calibrate
from score_sde.sampling import list_samplers as list_samplers
from score_sde.sampling import sample as sample
from score_sde.version import __version__ as __version__
