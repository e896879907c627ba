r"""Variational bounds: what -log p(x_0) is at most, term by term.

For a chain of times t_1 < ... < t_n the negative ELBO of DDPM (2006.11239, eq. 5) is

    L = L_T + sum_{i=2}^n L_{i-1} + L_0
    L_T     = KL( q(x_T | x_0) || N(0, prior_std^2 I) )
    L_{i-1} = KL( q(x_s | x_t, x_0) || N(mean(D(x_t, t)), var I) ),    t = t_i, s = t_{i-1}
    L_0     = -log p(x_0 | x_{t_1})

whose reverse step has the posterior's mean with Tweedie's D for x_0, and a variance that is fixed
or learned (2102.09672, eq. 15). As the chain gets finer it becomes the bound of the SDE
(2101.09258, thm. 3; 2107.00630, eq. 14): with lambda = log SNR

    L = L_T + (1/2) int E |eps_hat - eps|^2 dlambda + L_0

where importance sampling of t by g^2/sigma^2 is plain sampling of lambda. L_0 is DDPM's discretised
Gaussian for data with levels, and a Gaussian density otherwise, of mean D(x_{t_1}).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from score_sde.checks import Count, Positive, Several, Size, UserError, checked
from score_sde.likelihood.levels import Decoder
from score_sde.likelihood.setting import check_state
from score_sde.noise import NoiseFactory, SeededNoise, check_seeds, other_stream
from score_sde.ode.flow import work_dtype
from score_sde.processes.expand import expand
from score_sde.processes.gaussians import first_stds, gaussian_kl, reverse_std
from score_sde.processes.sdes import SDE
from score_sde.scores import ScoreFn, batches, check_density


@dataclass(frozen=True)
class Bound:
    """-log p(x) is at most nats, (B,) float64, in expectation over the noise.

    prior, steps, decoder: L_T (B,), L_{i-1} (n - 1, B) from the first step to the last (or the
    integral's one row), L_0 (B,), in nats. stderr: of nats over the noise of the integral, (B,);
    nan for a chain. nfe: evaluations of the score per sample. settings: what it depends on.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    stderr: Tensor
    nfe: int
    settings: dict[str, Any]
    levels: int | None = None
    dim: int = 1

    @property
    def nats(self) -> Tensor:
        """The sum of all terms, (B,)."""
        return self.prior + self.steps.sum(0) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """nats / (D log 2), (B,): L_0 is a probability already. UserError without levels."""
        if self.levels is None:
            raise UserError("bits/dim needs discrete levels; this data has none. Use .nats.")
        return self.nats / (self.dim * math.log(2))

    def __str__(self) -> str:
        unit = "nats" if self.levels is None else "bits/dim"
        scale = 1.0 if self.levels is None else self.dim * math.log(2)
        parts = (self.nats, self.prior, self.steps.sum(0), self.decoder)
        total, prior, steps, decoder = (float(part.mean()) / scale for part in parts)
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return (
            f"at most {total:.4f} {unit} = {prior:.4f} (L_T) + {steps:.4f} (steps) + "
            f"{decoder:.4f} (L_0); NFE {self.nfe}; {settings}"
        )


@dataclass(frozen=True)
class _Reader:
    """The score of one batch, read as D(x_t, t) and the share of log beta in the variance."""

    sde: SDE
    score: ScoreFn
    learned: bool

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | float]:
        if not self.learned:
            return self.sde.denoise(x, t, self.score(x, t)), 0.0
        score, v = self.score.score_and_v(x, t)  # type: ignore[attr-defined]
        return self.sde.denoise(x, t, score), v


@checked
def chain_times(sde: SDE, steps: Size) -> Tensor:
    """t_1 < ... < t_n: i t_max / n, the times of DDPM's chain; float64."""
    return torch.arange(1, steps + 1, dtype=torch.float64) * (sde.t_max / steps)


def _share_of(variance: str | float, score: ScoreFn) -> float:
    """The share of log beta in the log variance, 0 where it is learned; UserError if it is none."""
    if variance == "learned" and not hasattr(score, "score_and_v"):
        raise UserError("variance=learned needs a model trained with learned variances.")
    share = {"posterior": 0.0, "transition": 1.0, "learned": 0.0}.get(str(variance), variance)
    if isinstance(share, str) or not 0 <= share <= 1:
        raise UserError(
            f"variance {variance!r}: choose posterior, transition, learned or a number in [0, 1]."
        )
    return float(share)


@dataclass(frozen=True)
class _Chain:
    """The terms at times t (n,). share: of log beta in the variance where that is not learned."""

    sde: SDE
    t: Tensor
    share: float
    decoder: Decoder

    def term(self, i: int, x0: Tensor, eps: Tensor, read: _Reader) -> Tensor:
        """Of the step down from t_i, (B,): of the first time the decoder's, else the KL."""
        sde, t = self.sde, self.t
        mean, std = sde.marginal(x0, t[i])
        x_t = mean + std * eps.to(x0)
        denoised, share = read(x_t.to(eps.dtype), t[i])
        denoised = denoised.to(x0)
        share = share.to(x0) if isinstance(share, Tensor) else self.share
        if i == 0:
            low_std, high_std = first_stds(sde, t)
            spread = expand(low_std, x0) ** (1 - share) * expand(high_std, x0) ** share
            return -self.decoder.log_prob(x0, denoised, spread)
        mean, std = sde.posterior(x0, x_t, t[i - 1], t[i])
        guess, _ = sde.posterior(denoised, x_t, t[i - 1], t[i])
        return gaussian_kl(mean, std, guess, reverse_std(sde, t[i - 1], t[i], share).to(x0))


@torch.no_grad()
@checked
def variational_bound(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    *,
    steps: Size = 1000,
    times: Sequence[float] | None = None,
    variance: str | float = "posterior",
    levels: Several | None = None,
    low: float = -1.0,
    scale: Positive = 2.0,
    seeds: Sequence[int] | None = None,
    noise: NoiseFactory = SeededNoise,
    batch_size: Count | None = None,
    progress: bool = False,
) -> Bound:
    """The negative ELBO of the chain at `times`, per term; x (B, ...) in the model's range.

    steps: of DDPM's chain t_i = i t_max/n; or `times`, rising. variance: as of `ancestral`
    ("posterior", "transition", a number between, or "learned" for a model with that head); at the
    first step, where the posterior's is 0, that of the second (2102.09672). levels: of discrete
    data, x being the levels themselves (not dequantised) from low to low + scale.
    """
    check_state(score, x)
    check_density(score)
    decoder = Decoder(levels, low, scale)
    decoder.check(x)
    t = chain_times(sde, steps) if times is None else torch.as_tensor(times, dtype=torch.float64)
    if t.ndim != 1 or len(t) < 1 or bool((t.diff() <= 0).any()) or not 0 < float(t[0]):
        raise UserError("times must be positive and rise strictly.")
    learned = variance == "learned"
    chain = _Chain(sde, t, _share_of(variance, score), decoder)
    seeds = check_seeds(seeds, len(x))
    pieces, parts = list(batches(score, len(x), batch_size)), []
    bar = tqdm(total=len(t) * len(pieces), disable=not progress, unit="step")
    for rows, part in pieces:
        x0, read = x[rows].to(work_dtype(x)), _Reader(sde, part, learned)
        source = noise(seeds[rows], x.shape[1:], x.dtype, x.device)
        terms = []
        for i in range(len(t)):
            terms.append(chain.term(i, x0, source.draw(None, None), read))
            bar.update()
        mean, std = sde.marginal(x0, t[-1])
        prior = gaussian_kl(mean, std, torch.zeros_like(mean), torch.tensor(sde.prior_std()).to(x0))
        parts.append((prior, torch.stack(terms[1:] or [torch.zeros_like(prior)]), terms[0]))
    bar.close()
    prior, middle, first = (torch.cat(column, -1) for column in zip(*parts, strict=True))
    settings = {"bound": "chain", "steps": len(t), "variance": variance}
    return Bound(
        prior, middle, first, torch.full_like(prior, math.nan), len(t), settings, levels,
        x[0].numel(),
    )  # fmt: skip


@torch.no_grad()
@checked
def continuous_bound(
    sde: SDE,
    score: ScoreFn,
    x: Tensor,
    *,
    points: Several = 64,
    t_min: float | None = None,
    levels: Several | None = None,
    low: float = -1.0,
    scale: Positive = 2.0,
    seeds: Sequence[int] | None = None,
    batch_size: Count | None = None,
    progress: bool = False,
) -> Bound:
    """The negative ELBO of the SDE between t_min and t_max; x (B, ...) in the model's range.

    points: evaluations per sample, one noise level each, spread evenly over log SNR (a random
    offset in each of as many intervals). levels, low, scale: as in `variational_bound`.
    """
    check_state(score, x)
    check_density(score)
    decoder = Decoder(levels, low, scale)
    decoder.check(x)
    seeds = check_seeds(seeds, len(x))
    ends = torch.tensor([sde.t_min if t_min is None else t_min, sde.t_max], dtype=torch.float64)
    high, low_snr = sde.log_snr(ends).tolist()
    width = (high - low_snr) / points
    pieces, parts = list(batches(score, len(x), batch_size)), []
    bar = tqdm(total=points * len(pieces), disable=not progress, unit="level")
    for rows, here in pieces:
        x0, mine = x[rows].to(work_dtype(x)), seeds[rows]
        source = SeededNoise(mine, x.shape[1:], x.dtype, x.device)
        places = SeededNoise(other_stream(mine, 1), (points,), torch.float64).draw()
        places = torch.special.ndtr(places)  # uniform, one row a sample
        values = []
        for k in range(points):
            log_snr = high - (k + places[:, k]) * width
            t = sde.time_of_log_snr(log_snr).clamp(*ends.tolist()).to(x.device)
            mean, std = sde.marginal(x0, t)
            eps = source.draw(None, None).to(x0)
            value = here((mean + std * eps).to(x.dtype), t)
            values.append((eps + std * value.to(x0)).square().flatten(1).sum(1))
            bar.update()
        each = torch.stack(values)
        mean, std = sde.marginal(x0, ends[1])
        prior = gaussian_kl(mean, std, torch.zeros_like(mean), torch.tensor(sde.prior_std()).to(x0))
        mean, std = sde.marginal(x0, ends[0])
        x_min = mean + std * source.draw(None, None).to(x0)
        denoised = sde.denoise(x_min, ends[0], here(x_min.to(x.dtype), ends[0]).to(x0))
        first = -decoder.log_prob(x0, denoised, std / expand(sde.alpha(ends[0]), x0))
        # Strata of one point: the error is estimated from neighbours.
        noise = 0.5 * each.diff(dim=0).square().mean(0).sqrt() * width * math.sqrt(points / 2)
        parts.append((prior, 0.5 * width * each.sum(0)[None], first, noise))
    bar.close()
    prior, middle, first, stderr = (torch.cat(column, -1) for column in zip(*parts, strict=True))
    settings = {"bound": "continuous", "points": points, "t_min": float(ends[0])}
    return Bound(
        prior, middle, first, stderr, points + 1, settings, levels, x[0].numel()
    )  # fmt: skip
