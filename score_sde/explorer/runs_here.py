"""The run that the page is about, loaded once a set of weights, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from score_sde.plotting.pictures import picture_of
from score_sde.runs import pretrained
from score_sde.runs.captions import takes_prompts
from score_sde.runs.load import load
from score_sde.runs.run import Run
from score_sde.runs.steering import class_names
from score_sde.runs.weights import weights_of
from score_sde.runs.wish import trained_without


@dataclass
class Subject:
    """One run directory of the page."""

    path: Path
    device: str = "auto"
    loaded: dict[str, Run] = field(default_factory=dict)

    def run(self, weights: str = "ema") -> Run:
        """The run with these weights."""
        if weights not in self.loaded:
            self.loaded[weights] = load(self.path, weights, self.device)
        return self.loaded[weights]

    @property
    def weights(self) -> list[str]:
        """Names of all weights that it keeps."""
        return weights_of(self.path)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that the network is told, [] for none."""
        return class_names(self.run())

    @property
    def takes_prompts(self) -> bool:
        """Whether it was trained with captions."""
        return takes_prompts(self.run())

    @property
    def takes_guidance(self) -> bool:
        """Whether it can be led from nothing to what it is told."""
        return trained_without(self.run()) and (bool(self.classes) or self.takes_prompts)

    @property
    def in_the_plane(self) -> bool:
        """Whether its data are points of the plane."""
        return self.run().data_spec.shape == (2,)

    @property
    def has_pictures(self) -> bool:
        """Whether its samples can be shown: images, points, tables, signals, volumes."""
        spec = self.run().item_spec
        return picture_of(torch.zeros(1, *spec.shape), spec) is not None

    @property
    def about(self) -> str:
        """A line on it."""
        run = self.run()
        count = sum(p.numel() for p in run.score.parameters())
        return (
            f"`{run.home}`: {type(run.score.net).__name__} of {count:,} parameters, step "
            f"{run.step}, {type(run.sde).__name__}, {run.data_spec.name}"
        )

    @property
    def known(self) -> str:
        """What was measured of a model that ships; "" of other runs."""
        card = pretrained.card(self.path)
        return "\n\n".join([str(self.run().sde), *card["figures"]]) if card else ""

    @property
    def untold(self) -> str:
        """What it cannot be told, since it was trained without: a sentence, "" if nothing."""
        missing = [] if self.classes else ["classes"]
        missing += [] if self.takes_prompts else ["captions"]
        if not missing:
            return ""
        takes = "class" if missing == ["classes"] else "prompt" if self.classes else None
        takes = takes or "class and no prompt"
        return f"It was trained without {' or '.join(missing)}, so it takes no {takes}."
