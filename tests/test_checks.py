"""What a user may give: strict types and ranges, one sentence each, names looked up once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from score_sde import SDE, VPSDE
from score_sde.checks import (
    Count,
    Extended,
    Fraction,
    NonNegative,
    Positive,
    Row,
    UserError,
    checked,
    lookup,
    require,
    trusting,
    validated,
)
from score_sde.sampling import Predictor


@checked
def draw(
    sde: SDE,
    score: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int] | None = None,
    *,
    steps: Count | None = None,
    grid: str | Tensor | None = None,
    eta: NonNegative = 1.0,
    flag: bool = False,
    end: Extended = 0.0,
    divergence: Literal["exact", "hutchinson"] = "exact",
    channels: Row[Count] = (),
    pair: tuple[float, float] = (0.0, 1.0),
):
    return steps, eta, channels, pair


@validated("training")
@dataclass(frozen=True)
class Settings:
    lr: Positive = 1e-3
    share: Fraction = 0.5

    def __post_init__(self):
        require(self.lr < self.share, f"training.lr ({self.lr}) must be below training.share.")


def score(x, t):
    return -x


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": "5"}, "steps must be a whole number (got '5')."),
        ({"steps": True}, "steps must be a whole number (got True)."),
        ({"steps": 1.5}, "steps must be a whole number (got 1.5)."),
        ({"steps": 0}, "steps must be at least 1 (got 0)."),
        ({"eta": float("nan")}, "eta must be finite (got nan)."),
        ({"eta": "x"}, "eta must be a number (got 'x')."),
        ({"eta": -1}, "eta must be at least 0 (got -1)."),
        ({"grid": 5}, "grid must be text or of type Tensor (got 5)."),
        ({"flag": "false"}, "flag must be True or False (got 'false')."),
        ({"shape": 4}, "shape must be a list (got 4)."),
        ({"shape": (1, 2.5)}, "shape (item 2) must be a whole number (got 2.5)."),
        ({"divergence": "hutchinsen"}, "Did you mean 'hutchinson'?"),
        ({"channels": [1, 0]}, "channels (item 2) must be at least 1 (got 0)."),
        ({"pair": (1,)}, "pair (item 2) must be of more items (got (1,))."),
        ({"stps": 3}, "stps is unknown. Did you mean 'steps'?"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_field_value_and_what_is_allowed(given, said):
    with pytest.raises(UserError) as caught:
        draw(VPSDE(), score, **given)
    message = str(caught.value)
    assert message.startswith("draw: ") and said in message and "\n" not in message


def test_missing_and_misplaced_arguments():
    with pytest.raises(UserError, match="score is missing"):
        draw(VPSDE())
    with pytest.raises(UserError, match=r"sde must be of type SDE \(got 3\)"):
        draw(3, score)
    with pytest.raises(UserError, match="by its name"):
        draw(VPSDE(), score, (2, 3), 7)

    @checked
    def scaled(x: float, *, by: float) -> float:
        return x * by

    with pytest.raises(UserError, match="by is missing"):
        scaled(1.0)


def test_numpys_scalars_are_numbers_and_lists_are_tuples():
    given = {"steps": np.int64(5), "eta": np.float32(0.5), "channels": [1, 2], "pair": [1, 2]}
    assert draw(VPSDE(), score, end=float("inf"), **given) == (5, 0.5, (1, 2), (1.0, 2.0))
    assert draw(VPSDE(), score) == (None, 1.0, (), (0.0, 1.0))


def test_fields_of_settings_are_named_with_their_section():
    with pytest.raises(UserError, match=r"^training.lr must be greater than 0 \(got -1\).$"):
        Settings(lr=-1)
    with pytest.raises(UserError, match="training.lrr is unknown. Did you mean 'lr'"):
        Settings(lrr=1)
    with pytest.raises(UserError, match="must be below training.share"):
        Settings(lr=0.9)
    assert Settings(torch.tensor(0.25)).lr == 0.25


def test_our_own_mistakes_stay_as_they_are():
    @checked
    def broken(n: Count):
        return [][n]

    with pytest.raises(IndexError):
        broken(1)


def test_names_are_short_or_dotted():
    table = {"ddim": Predictor}
    assert lookup(table, "ddim", "sampler") is Predictor
    assert lookup(table, "collections.OrderedDict", "sampler")
    for name in ("DDIM", "dim"):
        with pytest.raises(UserError, match="sampler '.*' is unknown. Did you mean 'ddim'"):
            lookup(table, name, "sampler")
    for name in ("no_such_module.X", "os.no_such_name", "a..b", ".x", "", 5, None):
        with pytest.raises(UserError, match="^sampler"):
            lookup(table, name, "sampler")


@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "os.system",
        "score_sde.runs.exchange.Path",
        "score_sde.processes.sdes.math",
        "score_sde.processes.sdes.Chain",
        "score_sde.build.build_sde",
        "score_sde.nothing.X",
        "torch.nn.Linear",
    ],
)
def test_without_trust_a_path_leads_to_our_own_classes_of_that_kind_only(name):
    with pytest.raises(UserError, match=f"sde.name asks for '{name}'.*--trust"):
        lookup({}, name, "sde.name", kind=SDE, trust=False)
    with trusting(False), pytest.raises(UserError, match="--trust"):
        lookup({}, name, "sde.name", kind=SDE)


def test_without_trust_our_own_names_are_found():
    with trusting(False):
        assert lookup({}, "score_sde.processes.sdes.VPSDE", "sde.name", kind=SDE) is VPSDE
        assert lookup({"vp": VPSDE}, "vp", "sde.name") is VPSDE
