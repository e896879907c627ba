"""How good a sampler is, measured where the truth is known."""

from score_sde.diagnosis.verify import VerifyReport as VerifyReport
from score_sde.diagnosis.verify import verify as verify
