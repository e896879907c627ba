"""A time grid of `adams` fitted to a run: `--mode calibrate`."""

from __future__ import annotations

from pathlib import Path

from score_sde.checks import Count, checked
from score_sde.runs.directory import RunDirectory
from score_sde.runs.load import load_score
from score_sde.runs.outputs import check_place, write_beside
from score_sde.sampling import Recipe, calibrate, load_recipe


@checked("")
def calibrate_run(
    workdir: str | Path,
    nfe: Count = 20,
    thorough: bool = False,
    weights: str = "ema",
    recipe: str | Path | None = None,
    device: str = "auto",
    step: int | str | None = None,
    num_samples: Count = 64,
) -> Path:
    """Fit a time grid of `adams` to a run's model and save it: recipe_<nfe>.json in the run.

    num_samples: of the pilot, each of at most 200 evaluations; with more of them a gain is told
    from chance where fewer leave the grid as it is. A recipe that is there and differs is not
    replaced; the path of the new one is returned.
    """
    if recipe is not None and Path(recipe).exists():
        load_recipe(recipe)  # another file is not replaced, nor is the work done for nothing
    run = load_score(workdir, weights, device, step=step)
    wanted = Path(recipe) if recipe else RunDirectory(run.home).recipe(nfe)
    check_place(wanted.parent)
    where = next(run.score.parameters()).device
    shape = (num_samples, *run.data_spec.shape)
    score = run.score.bind(class_labels=run.class_labels(None, range(shape[0])))
    found: Recipe = calibrate(
        run.sde, score, shape, nfe, data_std=run.data_std, thorough=thorough, device=where
    )
    path = write_beside(wanted, found.to_json())
    print(found)
    if path != wanted:
        print(f"{wanted} holds another recipe and stays as it is")
    print(f"saved {path}; use it with --sampler adams --grid {path}")
    return path
