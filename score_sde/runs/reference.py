"""What restoration needs to know of a run's training data: measured once, and kept with the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from score_sde import distributed
from score_sde.conditioning.classes import classes_of
from score_sde.nets import packed
from score_sde.restoration.reference import (
    ReferenceGaussian,
    load_gaussian,
    reference_gaussian,
    save_gaussian,
)
from score_sde.restoration.residuals import (
    Residuals,
    load_residuals,
    measure_residuals,
    save_residuals,
)
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.training.checkpoints import tensor_sum

if TYPE_CHECKING:
    from score_sde.runs.run import Run

GAUSSIAN_ITEMS, RESIDUAL_ITEMS = 20_000, 400
"""Training items, at most, of which each is made."""


def gaussian_of(run: Run) -> ReferenceGaussian:
    """The Gaussian of the training data in the model's range; see `Run.gaussian`."""
    path, of = RunDirectory(run.home).gaussian, _data_of(run)
    if (found := load_gaussian(path, of)) is not None:
        return found
    if (run.config.get("data") or {}).get("name", "imported") == "imported":
        raise RunError(
            "this run was imported without its data, so their Gaussian is not known: give "
            "one of your own, reference_gaussian(data), to score_sde.restore."
        )
    data = run.data()
    items = run.data_spec.to_model(data.raw_items(range(min(len(data), GAUSSIAN_ITEMS))))
    if distributed.is_writer():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_gaussian(reference_gaussian(items), path, of)
    distributed.wait()
    kept = load_gaussian(path, of)  # as it will be found the next time, in float32
    assert kept is not None
    return kept


def _data_of(run: Run) -> str:
    """Which data the run has learned last, and in which range: they may change (resume_changed)."""
    facts, spec = RunDirectory(run.path).read_config(), run.data_spec
    scaling = [spec.shift, spec.scale, *spec.shifts, *spec.scales]
    return f"{facts.get('fingerprint')} of {facts.get('items')} items, scaled by {scaling}"


def residuals_of(run: Run) -> Residuals:
    """What the network leaves unknown of its training data; see `Run.residuals`."""
    path, of = run.home / "residuals.safetensors", tensor_sum(run.score.state_dict())
    if (found := load_residuals(path, of)) is not None:
        return found
    gaussian, data = run.gaussian, run.data()
    rows = range(min(len(data), RESIDUAL_ITEMS))
    x0 = run.data_spec.to_model(data.raw_items(rows)).to(next(run.score.parameters()).device)
    labels = data.condition_items(rows).get("class_labels")
    score = packed(run.score).bind(class_labels=labels if classes_of(run.score.net) else None)
    distributed.say(f"measuring what the network leaves unknown of {len(x0)} items, once")
    found = measure_residuals(run.sde, score, x0, gaussian)
    if distributed.is_writer():
        save_residuals(found, path, of)
    distributed.wait()
    return found
