"""Data sets, their specs, and endless batches of them."""

from score_sde.data.load import load_data as load_data
from score_sde.data.sources import ArrayData as ArrayData
from score_sde.data.sources import Data as Data
from score_sde.data.sources import StreamData as StreamData
from score_sde.data.spec import DataError as DataError
from score_sde.data.spec import DataSpec as DataSpec
from score_sde.data.toy import TOYS as TOYS
