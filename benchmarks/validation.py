"""What validating the arguments of a call costs, in microseconds of CPU time; no step validates."""

import time
import timeit

import torch

from score_sde import VPSDE
from score_sde.checks.validation import _validator
from score_sde.sampling import sample
from score_sde.sampling.multistep import Adams


def main() -> None:
    validate = _validator(sample.__wrapped__)  # type: ignore[attr-defined]
    given = {"shape": (64, 2), "method": "heun", "nfe": 39, "seeds": range(64), "denoise": True}
    sde, score = VPSDE(), lambda x, t: torch.zeros_like(x)
    options = _validator(Adams.__init__.__wrapped__)  # type: ignore[attr-defined]

    def both() -> None:
        validate(sde, score, **given)
        options(None, order=3, data_std=0.5)

    costs = timeit.repeat(both, number=500, repeat=9, timer=time.process_time)
    print(f"a call of sample, and the options of its method: {min(costs) / 500 * 1e6:.1f} us")


if __name__ == "__main__":
    main()
