"""Runs from their directories: `load`."""

from __future__ import annotations

from pathlib import Path

from score_sde.checks import checked, trusting, trusts_files
from score_sde.devices import pick_device
from score_sde.models import FlowMap
from score_sde.runs import pretrained
from score_sde.runs.codecs import codec_of_run
from score_sde.runs.directory import EMBEDDING, RunDirectory, RunError
from score_sde.runs.reading import build_with, read_facts
from score_sde.runs.run import Run
from score_sde.runs.signature import is_signed
from score_sde.runs.weights import find_weights
from score_sde.runs.wish import always_told_a_picture
from score_sde.training.checkpoints import strays


@checked
def load(
    path: str | Path,
    weights: str = "ema",
    device: str = "auto",
    trust: bool = False,
    step: int | str | None = None,
) -> Run:
    """A run from its directory alone, on any device; or a model that ships: load("fashion").

    weights: "ema", "model" (as trained), or another average that the run keeps.
    step: of the checkpoint; "best" for the one with the smallest held-out loss, None for the
        newest: if that is damaged, it is named, and the one before is used.
    A folder that was exported as safetensors has one set of weights, whichever is asked for.
    trust: whether names in its config may run code of other packages than this one. A run that
    this user trained on this machine needs no trust: its config is signed, see `signature`.
    """
    path = pretrained.find(path)
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise RunError(
            f"{path} is not a run directory (no config.json). Train one with "
            "`python main.py --config configs/vp_fashion.py --mode train`, or take one that ships: "
            f"{', '.join(pretrained.CONFIGS)}."
        )
    facts = read_facts(path)
    trusted = trust or trusts_files() or is_signed(directory.config)
    trusted = trusted or pretrained.is_ours(directory.config)
    at, state = find_weights(path, weights, step)
    at = at or facts.step
    with trusting(trusted):
        model = build_with(path, facts, state)
    if others := strays(directory.checkpoints):
        print(
            f"{directory.checkpoints} holds what is no checkpoint, and is left alone: {others[:5]}"
        )
    model = model.to(pick_device(device)).eval().requires_grad_(False)
    config, spec, codec = dict(facts.config), facts.data_spec, codec_of_run(path, trusted)
    eye = codec_of_run(path, trusted, EMBEDDING)
    std = facts.data_std
    return Run(path, model.sde, model, spec, config, at, std, trusted, codec, eye, weights)


def load_score(
    path: str | Path,
    weights: str = "ema",
    device: str = "auto",
    step: int | str | None = None,
) -> Run:
    """`load` for who needs a score at all times and tells it of no picture; RunError for others."""
    run = load(path, weights, device, step=step)
    if isinstance(run.score, FlowMap):
        raise RunError(f"{run.path}: {run.score.no_density}")
    if always_told_a_picture(run):
        raise RunError(
            f"{run.path} was always told a picture (net.picture), and its score without one means "
            f"nothing. It enlarges what another run draws: --mode sample --upscale {run.path}."
        )
    return run
