"""Every stream of random numbers: what sample i draws depends on its seed alone, what an update
draws on (seed, step, place in the batch).

A source has `draw(t, s)`, a standard normal state (B, *shape) for the step from t to s. The first
draw, with no times, is the start x_T. `SeededNoise` is a stream. `BrownianNoise` gives the
increments of one Brownian path a sample, so that runs of different steps share their noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import UserError, check_count, whole_seeds
from score_sde.devices import moved
from score_sde.noise.philox import normal

# Numbers drawn per generator call, at first and later: small states would otherwise pay for the
# calls, not the numbers.
_FIRST, _LATER = 512, 2048
_NUMBERS = 4096  # drawn per seeding in training, at least


class NoiseSource(Protocol):
    """What the loop draws from."""

    def draw(
        self, t: float | None = None, s: float | None = None, which: Tensor | None = None
    ) -> Tensor:
        """A standard normal state for the step from t to s; the start x_T without times.

        which: places (n,) of the samples that draw, if not all do; then the result is (n, ...).
        """


class LogSNR(Protocol):
    """What a Brownian path needs of a process: log(alpha^2/sigma^2) of times, and its ends."""

    @property
    def t_min(self) -> float: ...

    @property
    def t_max(self) -> float: ...

    def log_snr(self, t: Tensor) -> Tensor: ...


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator that depends on all 64 bits of a seed.

    torch seeds its Mersenne Twister with the lower 32 bits alone. Where there are higher ones, its
    state is filled by SplitMix64 instead (Steele, Lea and Flood 2014); other seeds are torch's.
    """
    made = torch.Generator().manual_seed(seed)
    if seed >> 32:
        with np.errstate(over="ignore"):
            z = np.uint64(seed) + np.arange(1, 313, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        state = made.get_state()
        words = torch.from_numpy(z.view(np.uint32).astype(np.int64))
        state.view(torch.int64)[3:627] = words  # after the seed and the place in the state
        made.set_state(state)
    return made


def seed_torch(seed: int) -> None:
    """Seed torch's global generators by all 64 bits of a seed."""
    torch.manual_seed(seed)
    torch.set_rng_state(generator_of(seed).get_state())


class SeededNoise:
    """A stream of standard normal states (B, *shape), one generator a sample.

    Sample i is the same for any batch it is drawn in, on any device and in any order, because its
    numbers come from a CPU generator seeded with seed i, in chunks that depend on ``shape`` alone.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self._seeds = whole_seeds(seeds)
        self._generators: list[torch.Generator] = []  # made when they are needed
        self._alone: list[torch.Generator] = []  # for draws that not all samples make
        self._shape, self._dtype, self._device = tuple(shape), dtype, device
        numel = max(math.prod(shape), 1)
        self._chunks = [max(1, _FIRST // numel), max(1, _LATER // numel)]
        self._buffer = torch.empty(0)
        self._next = 0

    def _fill(self) -> None:
        if not self._generators:
            self._generators = [generator_of(seed) for seed in self._seeds]
        count = self._chunks.pop(0) if len(self._chunks) > 1 else self._chunks[0]
        size = (count, *self._shape)
        each = [torch.randn(size, generator=g, dtype=torch.float32) for g in self._generators]
        drawn = torch.stack(each, 1)
        self._buffer = moved(drawn.to(self._dtype), self._device)
        self._next = 0

    def draw(
        self, t: float | None = None, s: float | None = None, which: Tensor | None = None
    ) -> Tensor:
        """The next standard normal state (B, *shape), or (n, *shape) for n of the samples."""
        if which is not None:
            if not self._alone:
                self._alone = [generator_of(seed ^ 0xDEECE66D) for seed in self._seeds]
            mine = (self._alone[i] for i in which.tolist())
            drawn = [torch.randn(self._shape, generator=g, dtype=torch.float32) for g in mine]
            return moved(torch.stack(drawn).to(self._dtype), self._device)
        if self._next == len(self._buffer):
            self._fill()
        self._next += 1
        return self._buffer[self._next - 1]


class PhiloxNoise:
    """A stream of standard normal states (B, *shape), made on the device for all samples at once.

    Other numbers than those of `SeededNoise`, with the same promise: sample i depends on seed i
    alone. Nothing comes from the CPU, and no generator is kept for each sample; see `philox`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        signed = [s - (s >> 63 << 64) for s in whole_seeds(seeds)]  # the same 64 bits, as int64
        self._seeds = moved(torch.tensor(signed, dtype=torch.int64), device)
        self._shape, self._dtype, self._draws = tuple(shape), dtype, 0
        self._alone = torch.zeros_like(self._seeds)  # draws that not all samples have made

    def draw(
        self, t: float | None = None, s: float | None = None, which: Tensor | None = None
    ) -> Tensor:
        """The next standard normal state (B, *shape), or (n, *shape) for n of the samples."""
        if which is not None:
            which = moved(which, self._seeds.device)
            draws = self._alone[which]
            self._alone = self._alone.index_add(0, which, torch.ones_like(draws))
            return normal(self._seeds[which], draws, self._shape, stream=1).to(self._dtype)
        draws = torch.full_like(self._seeds[:1], self._draws)
        self._draws += 1
        return normal(self._seeds, draws, self._shape).to(self._dtype)


class BrownianNoise:
    """Increments of one Brownian path a sample over log-SNR, normalised to unit variance.

    A step from t to u and one from u to s are together the step from t to s: the noise of a
    coarse run is the sum of that of a fine one. The path is W at 2^20 points of its clock, each
    drawn between its neighbours on a binary tree from (seed, point) (Levy's construction), so any
    increment can be had in any order. Further draws within one step come from another stream.
    """

    DEPTH = 20

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        sde: LogSNR | None = None,
    ):
        if sde is None:
            raise UserError("Brownian noise needs the process whose log-SNR is its clock.")
        self._seeds, self._shape = whole_seeds(seeds), tuple(shape)
        self._dtype, self._device, self._sde = dtype, device, sde
        self._extra = SeededNoise(seeds, shape, dtype, device)
        ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
        self._low, self._high = sde.log_snr(ends).tolist()
        self._last: tuple[int, int] | None = None
        self._cache: dict[int, np.ndarray] = {}

    def _clock(self, t: float) -> int:
        """The place of time t among the points of the path, 0 at t_max."""
        value = float(self._sde.log_snr(torch.tensor(t, dtype=torch.float64)))
        share = (value - self._low) / (self._high - self._low)
        return min(max(round(share * 2**self.DEPTH), 0), 2**self.DEPTH)

    def _normal(self, point: int) -> np.ndarray:
        """Standard normal numbers (B, *shape) that belong to a point of the tree."""
        keys = (np.array([seed, point], np.uint64) for seed in self._seeds)
        streams = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
        return np.stack([stream.standard_normal(self._shape) for stream in streams])

    def _path(self, point: int) -> np.ndarray:
        """W at a point (B, *shape), the variance of the whole path being 1."""
        if point in self._cache:
            return self._cache[point]
        whole = 2**self.DEPTH
        left, right = 0, whole
        w_left = np.zeros((len(self._seeds), *self._shape))
        w_right = self._normal(whole)
        while point not in (left, right):
            middle = (left + right) // 2
            half = (w_left + w_right) / 2
            spread = math.sqrt((right - left) / (4 * whole))
            w_middle = half + spread * self._normal(middle)
            if point < middle:
                right, w_right = middle, w_middle
            else:
                left, w_left = middle, w_middle
        value = w_left if point == left else w_right
        self._cache = {**dict(list(self._cache.items())[-1:]), point: value}
        return value

    def draw(
        self, t: float | None = None, s: float | None = None, which: Tensor | None = None
    ) -> Tensor:
        """The increment of the path from t to s; x_T without times."""
        if t is None or s is None or which is not None:
            return self._extra.draw(which=which)
        a, b = self._clock(t), self._clock(s)
        if self._last == (a, b) or a == b:
            return self._extra.draw()
        self._last = (a, b)
        increment = (self._path(b) - self._path(a)) * math.sqrt(2**self.DEPTH / (b - a))
        return moved(torch.from_numpy(increment).to(self._dtype), self._device)


def _seed_all(seed: int) -> None:
    """`torch.manual_seed`, but for devices that have not begun.

    For each kind of these that one keeps the stack as text: a tenth of a small network's update.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


class StepRandomness:
    """What is random in one update of ``batch_size`` items: a function of (seed, step, place).

    Nothing random has to be saved, a resumed run goes on exactly, and a batch that is divided over
    passes and processes has the noise of the whole one.
    """

    def __init__(self, seed: int, step: int, batch_size: int):
        states = np.random.SeedSequence([seed, step]).generate_state(1 + 2 * batch_size).tolist()
        self._place, self._batch_size = (seed, step), batch_size
        self._times, self._noise = states[0], states[1 : 1 + batch_size]
        self._layers = states[1 + batch_size :]

    def for_times(self) -> None:
        """Seed torch's generators for the times of the whole batch."""
        _seed_all(self._times)

    def for_layers(self, first: int) -> None:
        """Seed torch's generators for the dropout of a pass that begins at row ``first``."""
        _seed_all(self._layers[first])

    def dropped(self, probability: float, rows: range) -> Tensor:
        """Which of these rows (len(rows),) are told nothing, each with this probability."""
        drawn = np.random.default_rng([*self._place, 2]).random(self._batch_size)
        return torch.from_numpy(drawn[rows.start : rows.stop] < probability)

    def noise(self, like: Tensor, rows: range) -> Tensor:
        """Standard normal values like x (len(rows), ...), for these rows of the batch."""
        block = max(1, _NUMBERS // max(like[0].numel(), 1))  # rows that share a seed
        first, last = rows.start // block, -(-rows.stop // block)
        drawn = like.new_empty((last - first) * block, *like.shape[1:])
        generator = torch.Generator(like.device)
        for seed, part in zip(self._noise[first:last], drawn.split(block), strict=True):
            part.normal_(generator=generator.manual_seed(seed))
        return drawn[rows.start - first * block :][: len(rows)]


NoiseFactory = Callable[..., NoiseSource]


def other_stream(seeds: Sequence[int], number: int) -> list[int]:
    """Seeds of further numbers for the same samples: number * 2^40 above theirs, modulo 2^64."""
    return [(seed + number * 2**40) % 2**64 for seed in whole_seeds(seeds)]


def fresh_seeds(n: int) -> list[int]:
    """n seeds from torch's global generator, so that `torch.manual_seed` governs them."""
    return torch.randint(0, 2**62, (n,)).tolist()


def check_seeds(seeds: Sequence[int] | None, n: int) -> list[int]:
    """One integer a sample, or fresh ones for None; UserError unless they are n integers."""
    if seeds is None:
        return fresh_seeds(n)
    found = whole_seeds(seeds)
    check_count(len(found), n, "seeds")
    return found
