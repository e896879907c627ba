"""The likelihood of data under a run, with its protocol: `--mode likelihood`.

runs/vp_fashion/likelihood/test/<n>_items_<checksum>/
    likelihood.npz     per item: nats, stderr, solver_error, truncation_error, bits_per_dim, bounds
    likelihood.json    the means with their errors, and all that they depend on
    histogram.png

Items are independent of one another and seeded by their number, so any division into batches and
processes gives the same numbers. A command that was stopped goes on when it is given again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from score_sde import distributed
from score_sde.checks import Count, checked
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.devices import pick_device
from score_sde.likelihood import (
    Likelihood,
    continuous_bound,
    dequantize,
    log_likelihood,
    variational_bound,
)
from score_sde.likelihood.solve import Settings
from score_sde.noise import other_stream
from score_sde.runs.items import items_of, labels_of, refuse_latents, to_model
from score_sde.runs.load import load_score
from score_sde.runs.outputs import Output, open_output, write_json, write_npz
from score_sde.runs.run import Run
from score_sde.sampling import ScoreFn
from score_sde.writing import replacing

OPTIONS = tuple(field.name for field in fields(Settings))  # that a command may set
LATENTS = (
    "and a density of latents is none of pictures: it depends on the scale that the autoencoder "
    "happens to give them"
)
Bound = Literal["none", "chain", "continuous", "both"]
BOUNDS = get_args(Bound)


@checked("")
def likelihood_to_files(
    workdir: str | Path,
    split: str = "test",
    num_samples: Count | None = None,
    *,
    bound: Bound = "none",
    repeats: Count = 1,
    batch_size: Count = 64,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    resume: str = "auto",
    class_labels: ClassLabels = None,
    data: str | None = None,
    probes: Count | None = None,
    nfe: Count | None = None,
    options: Mapping[str, Any] | None = None,
    step: int | str | None = None,
) -> dict[str, Any]:
    """The likelihood of a split's first num_samples items (all of them if None), into files.

    bound: a variational bound beside it: chain, continuous, both. repeats: dequantisations of each
    item that has levels; their mean is reported, and the tighter importance-weighted bound
    log mean exp (1509.00519) as well. class_labels: of the items, as of `class_labels_of`, or
    "data" for their own: the likelihood is then log p(x | class). data: the name of other data
    than the run's. probes, nfe and further options: of `log_likelihood`; the defaults here are
    the sampling prior and, for data with levels, the truncation's bound. resume: "no" does what is
    done already again. Returns the summary that likelihood.json holds.
    """
    given = {key: v for key, v in {"probes": probes, "nfe": nfe}.items() if v is not None}
    options = given | dict(options or {})
    Settings(**options)  # what cannot be asked of any run
    with distributed.processes(pick_device(device)) as chosen:
        run = load_score(workdir, weights, str(chosen), step=step)
        refuse_latents(run, LATENTS, "Likelihoods are of runs of pixels.")
        settings = _settings(run, options)
        items, n = items_of(run, split, num_samples, data)
        split = items.split  # "all" of data without parts, whatever was asked for
        labels = labels_of(run, items, n, class_labels)
        spec = run.data_spec
        protocol = _protocol(run, items.spec.name, split, bound, repeats, weights, settings)
        if labels is not None:
            named = isinstance(class_labels, str | int)
            protocol["class_labels"] = class_labels if named else labels.tolist()
        counted = {"items": n, "batch_size": batch_size, "fingerprint": items.fingerprint()}
        request = protocol | counted
        output = open_output(run, f"likelihood/{split}", f"{n}_items", request, out)
        if resume == "no":
            output.forget()
        if output.facts is None:
            _evaluate(run, items, labels, output, protocol["options"])
        distributed.wait()
        if distributed.is_writer() and output.facts is None:
            _write(output, spec, protocol)
        distributed.wait()
        summary = output.facts or {}
        distributed.say(str(summary.get("line")))
        distributed.say(f"per item in {output.folder}/likelihood.npz, means in likelihood.json")
        return summary


def _settings(run: Run, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of `log_likelihood`; UserError for what cannot be asked of this run."""
    truncation = "bound" if run.data_spec.levels else "corrected"
    settings = {"prior": "sde", "truncation": truncation, **options}
    Settings(**settings).start(run.sde)
    return settings | {"data_std": run.data_std}


def _protocol(
    run: Run,
    data: str,
    split: str,
    bound: str,
    repeats: int,
    weights: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the numbers depend on but the items."""
    levels = run.data_spec.levels
    return {
        "split": split, "bound": bound, "repeats": repeats if levels else 1, "weights": weights,
        "step": run.step, "options": dict(settings), "process": str(run.sde), "data": data,
        "levels": levels, "dequantisation": "uniform" if levels else None,
    }  # fmt: skip


def _batches(output: Output) -> list[range]:
    n, size = output.request["items"], output.request["batch_size"]
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def _evaluate(
    run: Run, items: Any, labels: Tensor | None, output: Output, settings: Mapping[str, Any]
) -> None:
    """This process's share of the batches, but for those that are done."""
    if run.data_spec.levels is None:
        distributed.say("the data have no discrete levels: reporting nats, not bits/dim.")
    batches = _batches(output)
    mine = [batches[i] for i in distributed.share(len(batches))]
    bound, repeats = output.request["bound"], output.request["repeats"]
    for rows in tqdm(mine, disable=not distributed.is_writer(), unit="batch"):
        if output.read_part(rows) is not None:
            continue
        own = None if labels is None else labels[rows.start : rows.stop]
        score, raw = run.score.bind(class_labels=own), items.raw_items(rows)
        values, facts = _batch(run, score, raw, rows, settings, bound, repeats)
        if own is not None:
            values["class_labels"] = own.numpy()
        output.write_part(rows, values | {"facts": np.array(json.dumps(facts))})


def _write(output: Output, spec: Any, protocol: Mapping[str, Any]) -> None:
    """All batches are there: their means, values and picture."""
    parts = output.parts(_batches(output))
    facts = json.loads(str(parts[0]["facts"]))
    values = {k: np.concatenate([p[k] for p in parts]) for k in parts[0] if k != "facts"}
    summary = _summary(values, spec, protocol, facts)
    write_npz(output.folder / "likelihood.npz", values)
    write_json(output.folder / "likelihood.json", summary)
    _histogram(values, spec.levels is not None, output.folder / "histogram.png")
    output.finish(summary, ["likelihood.npz", "likelihood.json"])


def levels_of(spec: DataSpec) -> dict[str, Any]:
    """Number, lowest value and whole width of the levels in the model's units; {} without any."""
    if spec.levels is None or spec.low is None or spec.high is None:
        return {}
    low, scale = (spec.low - spec.shift) / spec.scale, (spec.high - spec.low) / spec.scale
    return {"levels": spec.levels, "low": low, "scale": scale}


def likelihood_of(
    run: Run, score: ScoreFn, raw: Tensor, seeds: Sequence[int], k: int = 0, **settings: Any
) -> Likelihood:
    """log p of raw items (B, ...); those that have levels are dequantised, here the k-th time.

    score: of the run. seeds: one integer an item. settings: of `log_likelihood`.
    """
    x, levels = to_model(run, raw), levels_of(run.data_spec)
    known = {key: levels[key] for key in ("levels", "scale") if levels}
    if levels:
        x = dequantize(x, levels["levels"], levels["low"], levels["scale"], seeds, k)
    return log_likelihood(run.sde, score, x, seeds=other_stream(seeds, 4 * k), **known, **settings)


def _batch(
    run: Run,
    score: ScoreFn,
    raw: Tensor,
    rows: range,
    settings: Mapping[str, Any],
    bound: str,
    repeats: int,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Values per item, and facts that are the same for all."""
    spec, x = run.data_spec, to_model(run, raw)
    seeds = list(rows)
    levels = levels_of(spec)
    draws = [
        likelihood_of(run, score, raw, seeds, k, **dict(settings))
        for k in range(repeats if levels else 1)
    ]
    nats = torch.stack([draw.nats for draw in draws])
    found = {
        "nats": nats.mean(0),
        "stderr": torch.stack([d.stderr for d in draws]).square().mean(0).sqrt()
        / math.sqrt(len(draws)),
        "solver_error": torch.stack([d.solver_error for d in draws]).mean(0),
        "truncation_error": torch.stack([d.truncation_error for d in draws]).mean(0),
    }
    facts: dict[str, Any] = {**draws[0].settings, "nfe": draws[0].nfe * len(draws)}
    offset = draws[0].offset if levels else 0.0
    dim = x[0].numel()
    if levels:
        found["bits_per_dim"] = -found["nats"] / (dim * math.log(2)) + offset
    if len(draws) > 1:
        weighted = torch.logsumexp(nats, 0) - math.log(len(draws))
        found["importance_weighted_nats"] = weighted
        found["importance_weighted_bits_per_dim"] = -weighted / (dim * math.log(2)) + offset
    for name, make in (("chain", variational_bound), ("continuous", continuous_bound)):
        if bound not in (name, "both"):
            continue
        more: dict[str, Any] = {"steps": _chain_steps(run)} if name == "chain" else {}
        if name == "chain":
            more["variance"] = "learned" if run.score.learned_variance else "posterior"
        result = make(run.sde, score, x, seeds=seeds, **levels, **more)  # type: ignore[operator]
        for term in ("prior", "decoder"):
            found[f"{name}_{term}"] = getattr(result, term)
        found[f"{name}_steps"] = result.steps.sum(0)
        found[f"{name}_bound"] = result.nats
        facts[f"{name}_nfe"] = result.nfe
        facts[name] = result.settings
    return {key: value.double().cpu().numpy() for key, value in found.items()}, facts


def _chain_steps(run: Run) -> int:
    """Of the chain that the model was trained on, or 1000."""
    sde, loss = run.config.get("sde") or {}, run.config.get("loss") or {}
    return int(sde.get("steps") or loss.get("steps") or 1000)


def _summary(
    values: Mapping[str, np.ndarray], spec: Any, protocol: Mapping[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    n, dim = len(values["nats"]), math.prod(spec.shape)

    def mean(name: str, scale: float = 1.0) -> dict[str, float | None]:
        v = values[name] * scale
        error = float(v.std(ddof=1) / math.sqrt(n)) if n > 1 else None
        return {"mean": float(v.mean()), "stderr": error}

    summary: dict[str, Any] = {"items": n, "dimensions": dim, "nats": mean("nats")}
    probes = float(np.sqrt((values["stderr"] ** 2).sum()) / n)
    summary["stderr_over_probes_of_the_mean"] = probes
    known = values["solver_error"][np.isfinite(values["solver_error"])]
    summary["solver_error"] = float(known.mean()) if len(known) else None
    summary["truncation_error"] = float(values["truncation_error"].mean())
    for name in values:
        if name.endswith("bits_per_dim"):
            summary[name] = mean(name)
        if name.startswith(("chain_", "continuous_")):
            unit = 1 / (dim * math.log(2)) if spec.levels else 1.0
            summary[name] = mean(name, unit) | {"unit": "bits/dim" if spec.levels else "nats"}
    summary |= {"protocol": dict(protocol), "facts": facts}
    unit = "bits_per_dim" if spec.levels else "nats"
    line = f"{_with_error(summary[unit])} {unit.replace('_per_', '/')} over {n} "
    line += f"item{'s' * (n > 1)} of {protocol['data']} "
    line += f"({protocol['split']}); NFE {facts['nfe']}, {facts['divergence']} divergence"
    line += f" of {facts['probes']} probes" if facts["probes"] else ""
    line += f", {facts['solver']}, truncation {facts['truncation']} at t={facts['t_min']:g}"
    line += f", prior {facts['prior']}"
    line += ", uniform dequantisation" if spec.levels else ""
    for name in ("chain", "continuous"):
        if f"{name}_bound" in summary:
            line += f"; {name} bound {_with_error(summary[f'{name}_bound'])}"
    summary["line"] = line
    return summary


def _with_error(found: Mapping[str, Any]) -> str:
    """A mean and its standard error, which one item does not have."""
    error = "" if found["stderr"] is None else f" +- {found['stderr']:.4f}"
    return f"{found['mean']:.4f}{error}"


def _histogram(values: Mapping[str, np.ndarray], bits: bool, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no histogram: matplotlib is not installed (pip install 'score-sde[plot]')")
        return
    name, label = ("bits_per_dim", "bits/dim") if bits else ("nats", "log-likelihood, nats")
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(values[name], bins=min(60, max(5, len(values[name]) // 5)))
    mean = float(values[name].mean())
    axes.axvline(mean, color="black", label=f"mean {mean:.3f}")
    axes.set(xlabel=label, ylabel="items")
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")
