"""Why a run's samples are bad, as a report: `--mode diagnose`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from score_sde import build, plotting
from score_sde.checks import Index, NonNegative, UserError, checked, json_lines
from score_sde.conditioning.classes import classes_of
from score_sde.data import DataError
from score_sde.diagnosis.diagnose import Diagnosis, diagnose_model
from score_sde.diagnosis.subject import Drawn, Logged, Subject
from score_sde.models import ScoreModel
from score_sde.noise import seed_torch
from score_sde.runs import pretrained
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.figures import draw_beside
from score_sde.runs.items import items_of
from score_sde.runs.load import load, load_score
from score_sde.runs.outputs import check_place, json_text, write_beside
from score_sde.runs.run import Run
from score_sde.runs.watching import spread_rows
from score_sde.sampling import ODEError
from score_sde.training.checkpoints import steps_of
from score_sde.training.logs import logged_errors

CAREFUL: dict[str, Any] = {"method": "heun", "nfe": 99, "grid": "karras"}
MOST_ITEMS = 5000
FEWEST_SAMPLES = 20
TRIVIAL = "the trivial guess"
CURVES = {
    "model": "the model", "raw": "weights as trained", "held_out": "on held-out items",
    "linear": "linear", "optimal": "best of the items", "trivial": TRIVIAL,
}  # fmt: skip
MEAN_OF = 5  # lines of the log
Items = Annotated[int, Field(ge=16, le=2**53)]


@checked
def diagnose(
    run: Run | str | Path,
    data: str | None = None,
    num_samples: Index | None = None,
    items: Items | None = None,
    weights: str = "ema",
    device: str = "auto",
    step: int | str | None = None,
    guidance: NonNegative | None = None,
) -> Diagnosis:
    """What is wrong with a run, with the evidence and the fix, or that nothing was found.

    run: a run directory, or a run that is loaded. data: in place of the run's own. num_samples: by
    the run's sampler and by a careful one (500, 64 for images; 0 for none). items: at each noise
    level (512, 192 for images). guidance: of the run's sampler, told the classes of the data; the
    careful one has none.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    loaded = run if isinstance(run, Run) else load_score(path, weights, device, step)
    raw = _raw(path, loaded, str(next(loaded.score.parameters()).device))
    train, held_out, labels, held_out_labels = _items(loaded, data)
    if num_samples is not None and 0 < num_samples < FEWEST_SAMPLES:
        raise UserError(
            f"num_samples must be at least {FEWEST_SAMPLES} to be judged, or 0 for none (got "
            f"{num_samples})."
        )
    if num_samples is None:
        num_samples = 64 if loaded.data_spec.is_image else 500
    if items is None:
        items = 192 if loaded.data_spec.is_image else 512
    samples, careful, said = None, None, ""
    if num_samples and _is_finite(loaded):
        try:
            told: dict[str, Any] = {"pixels": False}
            if guidance is not None and labels is not None:
                told["class_labels"] = labels[torch.arange(num_samples) % len(labels)].tolist()
            result = loaded.sample(num_samples, guidance=guidance, **told)
            said = f"{result.settings['method']} with {result.nfe} evaluations"
            said += "" if guidance is None else f" and guidance {guidance:g}"
            samples = result.x.cpu()
            careful = loaded.sample(num_samples, **told, **CAREFUL).x.cpu()
        except ODEError as error:  # samples that are not finite: what the weights show comes first
            print(f"no samples to judge: {error}")
    log, drawn = _log(path), _drawn(loaded)
    subject = Subject(
        loaded.score, raw, train, held_out, loaded.data_spec, log, samples, careful, said,
        _range(loaded, drawn), labels, held_out_labels, _earlier(path, loaded),
        _logged(loaded, log), drawn,
    )  # fmt: skip
    return diagnose_model(subject, items)


def diagnose_to_file(
    workdir: str | Path,
    data: str | None = None,
    num_samples: int | None = None,
    items: int | None = None,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    step: int | str | None = None,
    guidance: NonNegative | None = None,
) -> Diagnosis:
    """`diagnose` a run, print what was found and write <workdir>/evaluation/diagnosis.json.

    A diagnosis that is there and differs is not replaced: the new one's name has a checksum.
    """
    home = pretrained.home(pretrained.find(workdir))
    folder = Path(out) if out else RunDirectory(home).evaluation
    check_place(folder)
    found = diagnose(workdir, data, num_samples, items, weights, device, step, guidance)
    print(found)
    path = write_beside(folder / "diagnosis.json", json_text(found.to_dict()))
    print(f"wrote {path}")
    if found.levels:
        levels = found.levels
        curves = {said: [getattr(v, name) for v in levels] for name, said in CURVES.items()}
        noise = [v.at for v in levels]
        draw_beside(
            path.with_suffix(".png"),
            lambda: plotting.plot_errors_over_noise(noise, curves, relative_to=TRIVIAL),
        )
    return found


def _drawn(run: Run) -> Drawn | None:
    """Times as the run's objective draws them, with their weights."""
    if not run.config.get("loss"):
        return None  # imported: how it was trained is not known
    with torch.random.fork_rng(devices=[]):
        seed_torch(0)
        objective = build.build_objective(run.config)
        times = objective.draw_times(run.score, 20_000, "cpu").double()
        return Drawn(times, objective.weights(run.score, times).double())


def _range(run: Run, drawn: Drawn | None) -> tuple[float, float] | None:
    """The range of sigma/alpha with all but 0.2 % of the times."""
    if drawn is None:
        return None
    noise = torch.exp(-0.5 * run.sde.log_snr(drawn.times))
    return float(noise.quantile(0.001)), float(noise.quantile(0.999))


def _logged(run: Run, log: Sequence[Mapping[str, Any]]) -> list[Logged]:
    """Errors of the last updates; none of networks that are told more than classes."""
    told = run.config.get("conditioning") or {}
    if told.get("text") or (log and int(log[-1].get("step", 0)) > run.step):
        return []
    last = log[-MEAN_OF:]
    simple = {low: error for low, _, error, _ in logged_errors(last, "trivial")}
    return [
        Logged(low, high, error, simple.get(low, math.inf), stderr)
        for low, high, error, stderr in logged_errors(last)
    ]


def _raw(path: Path, loaded: Run, device: str) -> Any:
    """The weights as trained, or those that are loaded where there are no others."""
    there = steps_of(RunDirectory(path).checkpoints)
    step = loaded.step if loaded.step in there else None
    try:
        return load(path, "model", device, step=step).score
    except UserError:
        return loaded.score


def _is_finite(run: Run) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in run.score.net.state_dict().values())


def _earlier(path: Path, loaded: Run) -> ScoreModel | None:
    """The weights as trained of the newest checkpoint before that which is loaded."""
    there = steps_of(RunDirectory(path).checkpoints)
    before = [step for step in there if step < loaded.step]
    try:
        return load(path, "model", "cpu", step=before[-1]).score if before else None
    except UserError:
        return None


def _items(
    run: Run, name: str | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Training items and held-out ones in the model's range, and both's classes.

    None where no split holds any, and of a network that is told no classes.
    """
    train = items_of(run, "train", None, name)[0]
    try:
        other = items_of(run, "test", None, name)[0]
    except DataError:
        other = None
    if other is not None and other.fingerprint() == train.fingerprint():
        other = None
    told = classes_of(run.score.net)

    def some(data: Any) -> tuple[Tensor, Tensor | None]:
        rows = spread_rows(len(data), MOST_ITEMS)
        labels = data.condition_items(rows).get("class_labels") if told else None
        return run.to_states(run.item_spec.to_model(data.raw_items(rows))), labels

    x, labels = some(train)
    if told and labels is None:
        raise RunError(
            "this network is told classes, and the data have none: give data with classes (--data)."
        )
    held_out, held_out_labels = (None, None) if other is None else some(other)
    return x, held_out, labels, held_out_labels


def _log(path: Path) -> list[Mapping[str, Any]]:
    """Lines of log.jsonl that can be read."""
    return [line for line in json_lines(RunDirectory(path).log) if "loss" in line]
