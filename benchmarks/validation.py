"""What validating the arguments of a call costs, in microseconds; no step validates anything."""

import timeit

import torch

from score_sde import VPSDE
from score_sde.checks.validation import _validator
from score_sde.sampling import sample


def main() -> None:
    validate = _validator(sample.__wrapped__)  # type: ignore[attr-defined]
    given = {"shape": (64, 2), "method": "heun", "nfe": 39, "seeds": range(64), "denoise": True}
    sde, score = VPSDE(), lambda x, t: torch.zeros_like(x)
    costs = timeit.repeat(lambda: validate(sde, score, **given), number=500, repeat=7)
    print(f"a call of sample: {min(costs) / 500 * 1e6:.1f} us")


if __name__ == "__main__":
    main()
