"""A run directory, loaded: its model, the data it is of, and samples from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from score_sde import build, distributed
from score_sde.checks import Count, Seed, check_size, checked, trusting
from score_sde.conditioning.classes import (
    ClassLabels,
    class_labels_of,
    classes_of,
    drawn_labels,
    needs_labels,
)
from score_sde.data import Data, DataSpec
from score_sde.models import FlowMap, ScoreModel
from score_sde.restoration.reference import ReferenceGaussian
from score_sde.restoration.residuals import Residuals
from score_sde.runs import pretrained
from score_sde.runs.codecs import RunCodec, latents_of
from score_sde.runs.directory import CODEC, EMBEDDING, RunDirectory, RunError
from score_sde.runs.editing import Picture, Start, read_picture, start_from
from score_sde.runs.reference import gaussian_of, residuals_of
from score_sde.runs.sampler import RunSamples, gathered, make_sampler
from score_sde.runs.steering import said_of_classes, steer
from score_sde.runs.wish import Prompt, Wish
from score_sde.sampling import SDE, SampleResult, SamplingSettings, change_sampling, sampling_of
from score_sde.sampling.loop import Hook
from score_sde.training.checkpoints import steps_of

if TYPE_CHECKING:
    from score_sde.evaluation import Report
    from score_sde.runs.classifier import Classifier


@dataclass(repr=False)
class Run:
    """A trained model and what it was trained on.

    score: the score function score(x, t), with averaged weights unless loaded otherwise.
    data_std: standard deviation of the training data in the model's range.
    trusted: whether the config may name classes of other packages, see `load`.
    codec: of a run whose states are latents, what makes them pictures; None for other runs.
    eye: of a run that is told pictures by their latents (conditioning.embedding), their codec.
    weights: the name of those that it was loaded with.
    """

    path: Path
    sde: SDE
    score: ScoreModel
    data_spec: DataSpec
    config: dict[str, Any]
    step: int
    data_std: float
    trusted: bool = True
    codec: RunCodec | None = None
    eye: RunCodec | None = None
    weights: str = "ema"

    @property
    def codecs(self) -> dict[str, RunCodec]:
        """Those that travel with the run, by the names of their files."""
        both = {CODEC: self.codec, EMBEDDING: self.eye}
        return {name: codec for name, codec in both.items() if codec is not None}

    def embedding_of(self, items: Tensor) -> Tensor:
        """What the network is told of pictures (B, C, H, W) in the range of ``item_spec``.

        (B, D), for condition={"pooled": ...} of `sample`: variations of these pictures.
        """
        if self.eye is None:
            raise RunError(f"{self.path} is told no pictures (conditioning.embedding).")
        raw = self.item_spec.to_raw(items)
        return self.eye.encode(self.eye.spec.to_model(raw)).flatten(1)

    @property
    def item_spec(self) -> DataSpec:
        """What samples are of, once decoded: ``data_spec`` but for runs of latents."""
        return self.data_spec if self.codec is None else self.codec.spec

    def to_states(self, items: Tensor) -> Tensor:
        """States of items in the range of ``item_spec``: their mean latents, or as they are."""
        return items if self.codec is None else self.codec.encode(items)

    def to_items(self, states: Tensor) -> Tensor:
        """Items in the range of ``item_spec``: states decoded, or as they are."""
        return states if self.codec is None else self.codec.decode(states)

    def data(self, split: str = "train") -> Data:
        """The run's data as it was trained on them, latents for a run of latents."""
        with trusting(self.trusted):
            found = build.build_data(self.config, split)
        return found if self.codec is None else latents_of(found, self.codec)

    def __repr__(self) -> str:
        net, numbers = (
            type(self.score.net).__name__,
            sum(p.numel() for p in self.score.parameters()),
        )
        return (
            f"Run {self.path}: {net} of {numbers:,} parameters at step {self.step}, {self.sde}, "
            f"trained on {self.data_spec.name} {self.data_spec.shape}"
        )

    def _repr_png_(self) -> bytes | None:
        """The newest grid that was drawn in training, for notebooks."""
        drawn = RunDirectory(self.path).pictures()
        return drawn[-1].read_bytes() if drawn else None

    @property
    def sampling(self) -> SamplingSettings:
        """How it is sampled unless told otherwise."""
        with trusting(self.trusted):
            return sampling_of(self.config.get("sampling"))

    def sampling_with(self, changes: Mapping[str, Any]) -> tuple[dict[str, Any], SamplingSettings]:
        """The section sampling with changes, and its settings.

        What is changed is the user's own word; of the rest no name of somebody else's is code.
        """
        _ = self.sampling
        section = change_sampling(self.config.get("sampling"), changes)
        return section, sampling_of(section)

    @property
    def home(self) -> Path:
        """Where what is made of it is written: its path, but for models that ship."""
        return pretrained.home(self.path)

    @cached_property
    def gaussian(self) -> ReferenceGaussian:
        """The Gaussian of the training data in the model's range, kept with the run.

        Made of at most 20 000 items when it is first asked for. Raises RunError for a run that was
        imported without its data: make one by `reference_gaussian`.
        """
        return gaussian_of(self)

    @property
    def residuals(self) -> Residuals:
        """What the network leaves unknown of its training data, see `measure_residuals`.

        Of 400 items, when it is first asked for; kept with the run, for these weights.
        Raises RunError as `gaussian` does.
        """
        return residuals_of(self)

    def class_labels(self, given: ClassLabels, seeds: Sequence[int]) -> Tensor | None:
        """The classes of samples with these seeds, (B,) int64; None for samples without a class.

        given: as of `class_labels_of`. When None, a network that was also trained without classes
        goes without, and one that always was told the class gets one drawn by each seed.
        """
        net = self.score.net
        if given is None and needs_labels(net):
            return drawn_labels(classes_of(net), seeds)
        return class_labels_of(net, given, len(seeds), self.data_spec.classes)

    def sample(
        self,
        n: int,
        first_seed: int = 0,
        progress: bool = False,
        class_labels: ClassLabels = None,
        prompt: Prompt = None,
        guidance: float | None = None,
        negative_prompt: Prompt = None,
        against: Run | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rule: str = "cfg",
        guidance_options: Mapping[str, Any] | None = None,
        classifier: Classifier | None = None,
        condition: Mapping[str, Tensor] | None = None,
        init: Picture | None = None,
        strength: float = 0.6,
        pixels: bool = True,
        hook: Hook | None = None,
        prior: Run | None = None,
        **changes: Any,
    ) -> SampleResult:
        """n samples with the run's sampler; sample i has seed first_seed + i.

        class_labels: one integer for all or n of them, see `class_labels`. prompt: one caption for
        all or n of them. guidance and what belongs to it, classifier, condition: see `wish.Wish`;
        guidance_options are the fields of the rule, and rescale and threshold of `guide`.
        init: a picture to start from, and strength: the share of the steps from there, in (0, 1].
        prior: a run that draws, from each prompt, the embedding that this one is told (`steering`).
        pixels: of a run of latents, whether they come decoded, in the range of ``item_spec``.
        hook: called with (x, t) after each step of a batch, see `score_sde.sample`.
        changes replace settings of the run: method, steps, nfe, grid, denoise, batch_size, options.
        A new method comes with its own steps, grid and options. grid may be the path of a recipe;
        the methods that need the data's scale are given it, and `ancestral` takes the variances
        that a model has learned. Raises `LabelError` for classes that the network does not have.
        """
        seeds = _seeds(n, first_seed)
        check_size(4 * n * math.prod(self.data_spec.shape), "so many samples")
        wish = Wish(
            class_labels, prompt, guidance, negative_prompt, against, guidance_interval,
            guidance_rule, guidance_options or {}, classifier, condition, prior,
        )  # fmt: skip
        steered = steer(self, wish, seeds)
        _, chosen = self.sampling_with(changes)
        device = next(self.score.parameters()).device
        sampler = make_sampler(chosen, self.score, self.data_std)
        start = None
        if init is not None:
            start = self._start(init, strength, seeds, chosen)
            steered.settings["strength"] = strength
        shape = (n, *self.data_spec.shape)
        result = sampler.run(self.sde, steered.score, shape, seeds, device, progress, hook, start)
        x = self.to_items(result.x) if pixels else result.x
        settings = result.settings | steered.settings
        spec = self.item_spec if pixels else None
        return RunSamples(x, result.nfe, result.seconds, settings, spec)

    def _start(
        self, init: Picture, strength: float, seeds: Sequence[int], chosen: SamplingSettings
    ) -> Start:
        """A picture with noise, and the times from there; RunError for a map of the flow."""
        if isinstance(self.score, FlowMap):
            raise RunError("a map of the flow starts from noise: drop init, or use its teacher.")
        device = next(self.score.parameters()).device
        picture = self.to_states(read_picture(init, self.item_spec).to(device))
        return start_from(self.sde, picture, strength, seeds, chosen, self.data_std)

    def evaluate(self, **words: Any) -> Report:
        """What `--mode evaluate` says of this run, by its words: num_samples=500, nfe=20, ...

        See `score_sde.runs.evaluate.evaluate_to_files`, of which workdir, weights, step and device
        are those of this run unless given.
        """
        from score_sde.runs.evaluate import evaluate_to_files

        step = self.step if steps_of(RunDirectory(self.path).checkpoints) else None
        device = str(next(self.score.parameters()).device)
        own = {"weights": self.weights, "step": step, "device": device}
        report = evaluate_to_files(self.path, **own | words)
        assert report is not None  # that is without a run
        return report

    def sample_shared(
        self,
        n: int,
        first_seed: int = 0,
        progress: bool = False,
        class_labels: ClassLabels = None,
        **changes: Any,
    ) -> SampleResult:
        """`sample` divided over the processes of a torchrun; each receives all n samples."""
        mine = distributed.share(n)
        if distributed.size() == 1:
            return self.sample(n, first_seed, progress, class_labels, **changes)
        labels = self.class_labels(class_labels, range(first_seed, first_seed + n))
        # A process without samples of its own draws one, so that all know how it was drawn.
        count = max(len(mine), 1)
        own = None if labels is None else labels[mine.start : mine.start + count]
        part = self.sample(count, first_seed + mine.start,
                           progress and distributed.is_writer(), own, **changes)  # fmt: skip
        found = gathered(part, mine, n)
        return replace(found, settings=found.settings | said_of_classes(labels))


@checked("")
def _seeds(n: Count, first_seed: Seed) -> range:
    """The seeds of n samples."""
    return range(first_seed, first_seed + n)
