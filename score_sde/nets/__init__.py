"""Networks: any `nn.Module` with `forward(x, noise_label, **condition)` serves; these are ours."""

from score_sde.nets.classifier import ImageClassifier as ImageClassifier
from score_sde.nets.classifier import VectorClassifier as VectorClassifier
from score_sde.nets.mlp import MLP as MLP
from score_sde.nets.packed import packed as packed
from score_sde.nets.presets import PRESETS as PRESETS
from score_sde.nets.transformer import Transformer as Transformer
from score_sde.nets.unet import UNet as UNet
