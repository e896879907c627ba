"""What `log_likelihood` says of its own solver's error, held to what a finer solution shows."""

import pytest
import torch
from known_data import DATA, SONG

from score_sde import log_likelihood


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_error_is_that_which_a_finer_solution_of_order_four_reveals(process):
    sde, data = SONG[process], DATA["ring"]
    x = data.sample(8, 1)
    given = {"divergence": "exact", "truncation": "none", "check": 8}
    coarse = log_likelihood(sde, data.score(sde), x, nfe=32, **given)
    finer = log_likelihood(sde, data.score(sde), x, nfe=48, **given)
    change = (finer.nats - coarse.nats).square().mean().sqrt()
    # An error of order 4 is e at 32 and (2/3)^4 e at 48 evaluations: the change is what is between.
    want = change / (1 - (2 / 3) ** 4)
    said = coarse.solver_error.square().mean().sqrt()
    torch.testing.assert_close(said, want.to(said), rtol=1e-6, atol=0)
