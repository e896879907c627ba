"""The run that the page is about, loaded once a set of weights, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from score_sde.runs import pretrained
from score_sde.runs.run import Run, load
from score_sde.runs.steering import class_names
from score_sde.runs.weights import weights_of
from score_sde.runs.wish import takes_prompts, trained_without


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
    def about(self) -> str:
        """A few lines on it."""
        run, card = self.run(), pretrained.card(self.path)
        lines = [f"`{run.home}`: {type(run.score.net).__name__} of "
                 f"{sum(p.numel() for p in run.score.parameters()):,} parameters at step "
                 f"{run.step}, {run.sde}, trained on {run.data_spec.name}."]  # fmt: skip
        return "  \n".join(lines + ([card["figures"][0]] if card else []))
