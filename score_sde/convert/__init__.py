"""Foreign checkpoints in our words: score_sde_pytorch, EDM, diffusers, OpenAI's and Ho's DDPM."""

from score_sde.convert.files import read as read
from score_sde.convert.parts import ConversionError as ConversionError
from score_sde.convert.parts import Foreign as Foreign
