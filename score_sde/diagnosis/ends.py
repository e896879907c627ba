r"""What the two ends of time make of the law of samples, whatever the solver: `law_of_ends`.

Sampling starts from the prior N(0, prior_std^2 I) where the data at t_max are N(alpha mu, alpha^2
lambda + sigma^2), and stops at t_min, where r = sigma/alpha of noise is left. Along the axes of
Gaussian data N(mu, lambda) the exact flow is linear, so both are in closed form: it leads from the
prior to

    mean  (1 - k alpha) mu,    std  k prior_std,    k^2 = (lambda + r^2)/(alpha^2 lambda + sigma^2)

instead of mu and sqrt(lambda + r^2); and that std, or lambda/sqrt(lambda + r^2) after Tweedie's
step, is not sqrt(lambda). All are W_2, relative to the data's size sqrt(sum lambda). For data that
are no Gaussian, moving each sample onto its item shows that the truncation is at most r sqrt(D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.processes.sdes import SDE


class Ends(NamedTuple):
    """W_2 over the data's size. truncation: of the stop at t_min. prior, prior_mean: of the start
    at t_max, around the mean and in it. bound: of the truncation, of any data of these variances.
    """

    truncation: float
    prior: float
    prior_mean: float
    bound: float

    def __str__(self) -> str:
        return (
            f"before any solver, relative to the data's size: stopping at t_min leaves W2 "
            f"{self.truncation:.2g} (at most {self.bound:.2g} if data are no Gaussian), the prior "
            f"at t_max W2 {self.prior:.2g} and a mean that is off by {self.prior_mean:.2g}"
        )


def law_of_ends(
    sde: SDE, mean: Tensor, variances: Tensor, times: Tensor | None = None, denoise: bool = True
) -> Ends:
    """What exact samples of N(mean, diag(variances)) are off by, both (D,).

    times: (2,), where sampling starts and stops; by default t_max and t_min. denoise: whether
    Tweedie's step is taken at the end.
    """
    ends = torch.tensor([sde.t_max, sde.t_min]) if times is None else times
    start, stop = ends.to(torch.float64).unbind()
    mean, variances = mean.double().cpu(), variances.double().cpu()
    alpha, sigma = sde.alpha(start), sde.sigma(start)
    noise = (sde.sigma(stop) / sde.alpha(stop)) ** 2
    size = variances.sum().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    left = variances + noise  # of x / alpha at t_min
    shrunk = variances / left if denoise else torch.ones_like(left)
    scale = (left / (alpha**2 * variances + sigma**2)).sqrt()
    wide = shrunk * (scale * sde.prior_std() - left.sqrt())
    return Ends(
        truncation=float((shrunk * left.sqrt() - variances.sqrt()).norm() / size),
        prior=float(wide.norm() / size),
        prior_mean=float((shrunk * scale * alpha * mean).norm() / size),
        bound=float((noise * len(variances)).sqrt() / size),
    )
