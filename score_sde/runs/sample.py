"""Samples of a run as files: `--mode sample`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from score_sde import distributed
from score_sde.checks import Count, NonNegative, Seed, as_it_looks, checked
from score_sde.conditioning.classes import ClassLabels
from score_sde.data import DataSpec
from score_sde.devices import pick_device
from score_sde.plotting.pictures import (
    captioned_grid,
    enlarged,
    grid_array,
    image_array,
    picture_of,
)
from score_sde.runs.captions import captions_asked
from score_sde.runs.cascade import check_upscaler, enlarge
from score_sde.runs.classifier import load_classifier
from score_sde.runs.directory import RunError
from score_sde.runs.editing import check_strength
from score_sde.runs.film import film as make_film
from score_sde.runs.film import write_film
from score_sde.runs.load import load
from score_sde.runs.outputs import (
    Output,
    file_checksum,
    identity,
    open_output,
    write_npz,
    write_png,
)
from score_sde.runs.run import Run
from score_sde.runs.sampler import given_settings
from score_sde.runs.steering import said_of_classes
from score_sde.runs.wish import Wish, check_wish, labels_of
from score_sde.sampling import (
    SampleResult,
    SamplingSettings,
    load_recipe,
)


@checked("")
def sample_to_files(
    workdir: str | Path,
    num_samples: Count | None = None,
    first_seed: Seed = 0,
    weights: str = "ema",
    out: str | Path | None = None,
    device: str = "auto",
    class_labels: ClassLabels = None,
    method: str | None = None,
    steps: Count | None = None,
    nfe: Count | None = None,
    grid: str | None = None,
    batch_size: Count | None = None,
    options: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    prompt: str | None = None,
    prompts: str | Path | None = None,
    guidance: NonNegative | None = None,
    negative_prompt: str | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rule: str | None = None,
    guidance_options: Mapping[str, Any] | None = None,
    against: str | Path | None = None,
    against_weights: str | None = None,
    against_step: str | None = None,
    classifier: str | Path | None = None,
    init: str | Path | None = None,
    strength: float | None = None,
    upscale: str | Path | None = None,
    step: int | str | None = None,
    prior: str | Path | None = None,
    film: bool = False,
    tolerance: float | None = None,
) -> Path:
    """Sample a run and write num_samples (64) PNG files, grid.png, samples.npz and settings.json.

    prompt, or a file of prompts with a line each: captions, of all samples or taken in turn; they
    are written beside the pictures (metadata.jsonl) and into the grid. guidance and what belongs
    to it, init and strength: as of `Run.sample`, ``against`` and ``classifier`` being directories;
    against_weights and against_step say which weights of ``against``, or of this run itself.
    upscale: the directory of a run that enlarges what this one draws (`cascade`). prior: of one
    that makes an embedding of each caption, for a run that is told such (config unclip).
    class_labels is that of `Run.sample`; text lists classes to take in turn, or says "all" of
    them, and both files hold each sample's. method, steps, nfe, grid, batch_size, options: in
    place of the run's own; sampling: further such changes, by name. Files are named by seed. Data
    that are not images give the .npz and, in the plane, a picture. step: as of `load`. film: write
    film.gif too, the way of the first 16 from noise, drawn once more. tolerance: each sample in as
    many steps of adams as it needs to come this near the exact flow. Returns the
    folder: ``out``, or one named by the request. A command that was stopped goes on when it is
    given again.
    """
    changes = given_settings(sampling, method, steps, nfe, grid, batch_size, options, tolerance)
    captions, n = captions_asked(prompt, prompts, num_samples)
    start = _start(init, strength)
    if film and (init is not None or upscale is not None):
        raise RunError("--film shows the way from noise: it goes without --init and --upscale.")
    with distributed.processes(pick_device(device)) as chosen:
        run = load(workdir, weights, str(chosen), step=step)
        weaker = None
        if against is not None or against_weights is not None or against_step is not None:
            which = against_weights or weights
            weaker = load(against or workdir, which, str(chosen), step=against_step)
        leader = None if classifier is None else load_classifier(classifier, weights, str(chosen))
        large = None if upscale is None else load(upscale, weights, str(chosen))
        seeds = range(first_seed, first_seed + n)
        labels = labels_of(run, class_labels, seeds, leader)
        looked = {key: as_it_looks(text) for key, text in (guidance_options or {}).items()}
        wish = Wish(
            labels, captions, guidance, negative_prompt, weaker, guidance_interval,
            guidance_rule or "cfg", looked, leader,
            prior=None if prior is None else load(prior, weights, str(chosen)),
        )  # fmt: skip
        check_wish(run, wish, n)
        if large is not None:
            check_upscaler(large, run.item_spec)
        section, settings = run.sampling_with(changes)
        task = _Task(run, seeds, labels, wish, start, changes, settings, large)
        output = open_output(run, "samples", task.name, {"weights": weights} | task.request(), out)
        if output.facts is None:
            task.draw(output)
        distributed.wait()
        if distributed.is_writer():
            if output.facts is None:
                task.write(output)
            if film:
                task.film(output.folder / "film.gif")
        distributed.wait()
        distributed.say(str((output.facts or {}).get("line")))
        distributed.say(f"{n} samples are in {output.folder}")
    return output.folder


def _start(init: str | Path | None, strength: float | None) -> dict[str, Any]:
    """The arguments of `Run.sample` for a picture to start from."""
    if init is None:
        if strength is not None:
            raise RunError("strength is of a picture to start from: give init too.")
        return {}
    strength = 0.6 if strength is None else strength
    check_strength(strength)
    return {"init": str(init), "strength": strength}


@dataclass(frozen=True)
class _Task:
    """Samples that were asked for, checked and ready to be drawn.

    changes: of the run's own sampler; settings: what comes of them. large: enlarges them.
    """

    run: Run
    seeds: range
    labels: Tensor | None
    wish: Wish
    start: Mapping[str, Any]
    changes: Mapping[str, Any]
    settings: SamplingSettings
    large: Run | None

    @property
    def name(self) -> str:
        """How the folder begins: heun_nfe39_seeds0-63."""
        chosen = self.settings
        cost = "" if chosen.nfe is None else f"_nfe{chosen.nfe}"
        cost += "" if chosen.steps is None else f"_{chosen.steps}steps"
        method = chosen.method.rpartition(".")[2]
        return f"{method}{cost}_seeds{self.seeds[0]}-{self.seeds[-1]}"

    def request(self) -> dict[str, Any]:
        """All that the samples depend on; of a recipe, what it holds."""
        asked: dict[str, Any] = {"first_seed": self.seeds[0], "num_samples": len(self.seeds)}
        asked["sampler"] = asdict(self.settings)
        if self.settings.grid is not None and self.settings.grid.endswith(".json"):
            asked["recipe"] = asdict(load_recipe(self.settings.grid))
        if self.labels is not None:
            asked["class_labels"] = self.labels.tolist()
        asked |= {**self.wish.to_dict(), **self.start}
        if self.wish.against is not None:
            asked["against"] = identity(self.wish.against)
        if self.wish.prior is not None:
            asked["prior"] = identity(self.wish.prior)
        if self.start:
            asked["init_checksum"] = file_checksum(Path(self.start["init"]))
        if self.large is not None:
            asked["upscale"] = identity(self.large)
        return asked

    def batches(self) -> list[range]:
        """Places in the seeds that are drawn together; there is a share for every process."""
        n = len(self.seeds)
        size = min(self.settings.batch_size, -(-n // distributed.size()))
        return [range(first, min(first + size, n)) for first in range(0, n, size)]

    def draw(self, output: Output) -> None:
        """This process's share of the batches, but for those that are done."""
        batches = self.batches()
        mine = [batches[i] for i in distributed.share(len(batches))]
        shown = distributed.is_writer()
        for rows in tqdm(mine, disable=not shown or len(mine) == 1, unit="batch"):
            if output.read_part(rows) is not None:
                continue
            result = self.draw_batch(rows, progress=shown and len(mine) == 1)
            facts = {"nfe": result.nfe, "seconds": result.seconds, "settings": result.settings}
            values = {"x": result.x.float().cpu().numpy(), "facts": np.array(json.dumps(facts))}
            output.write_part(rows, values)

    def draw_batch(self, rows: range, progress: bool) -> SampleResult:
        """The samples at these places."""
        first, own = self.seeds[rows.start], self.wish.part(rows).to_arguments()
        result = self.run.sample(len(rows), first, progress, **own, **self.start, **self.changes)
        if self.large is None:
            return result
        above = enlarge(self.large, result.x, self.run.item_spec, first, progress=progress)
        return replace(result, x=above.x, seconds=result.seconds + above.seconds)

    def write(self, output: Output) -> None:
        """All batches are there: samples, pictures, and how they were made."""
        parts = output.parts(self.batches())
        facts = [json.loads(str(part["facts"])) for part in parts]
        x = torch.from_numpy(np.concatenate([part["x"] for part in parts]))
        settings = facts[0]["settings"] | said_of_classes(self.labels)
        nfe = sum(fact["nfe"] for fact in facts) // len(facts)
        result = SampleResult(x, nfe, sum(fact["seconds"] for fact in facts), settings)
        spec, captions = (self.large or self.run).item_spec, self.wish.prompt
        files = _write_samples(output.folder, x, spec, self.seeds, self.labels, captions)
        asked = {k: output.request[k] for k in ("num_samples", "first_seed", "weights", "step")}
        about = {**asked, "nfe": nfe, "seconds": result.seconds, **settings, "line": str(result)}
        if self.labels is not None:
            about["class_labels"] = self.labels.tolist()
        output.finish(about, files)

    def film(self, path: Path) -> None:
        """The way of the first 16 from noise, unless it is there."""
        if not path.is_file():
            rows = range(min(len(self.seeds), 16))
            wish = self.wish.part(rows)
            found = make_film(self.run, len(rows), self.seeds[0], wish=wish, **self.changes)
            write_film(found, self.run.item_spec, path)


def _write_samples(
    folder: Path,
    x: Tensor,
    spec: DataSpec,
    seeds: Sequence[int],
    labels: Tensor | None,
    captions: Sequence[str] | None = None,
) -> list[str]:
    """samples.npz and pictures; returns the names of the files."""
    more: dict[str, Any] = {} if labels is None else {"class_labels": labels.numpy()}
    if not spec.is_image:
        raw, files = spec.to_raw(x).numpy(), ["samples.npz"]
        write_npz(folder / "samples.npz", {"samples": raw} | more)
        if spec.columns:
            _write_table(folder / "samples.csv", raw, spec, labels)
            files.append("samples.csv")
        picture = picture_of(x, spec)
        if picture is not None:
            write_png(folder / "grid.png", picture)
            files.append("grid.png")
        return files
    pixels = spec.to_uint8(x)
    images = pixels.permute(0, 2, 3, 1).numpy()
    write_npz(folder / "samples.npz", {"samples": images} | more, compress=True)
    names = [f"{seed:06d}.png" for seed in seeds]
    for name, image in zip(names, pixels, strict=True):
        write_png(folder / name, image_array(image))
    if captions is None:
        write_png(folder / "grid.png", enlarged(grid_array(pixels[:256])))
        return ["samples.npz", "grid.png", *names]
    write_png(folder / "grid.png", captioned_grid(pixels[:256], captions[:256]))
    lines = [{"file_name": n, "text": c} for n, c in zip(names, captions, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return ["samples.npz", "grid.png", "metadata.jsonl", *names]


def _write_table(path: Path, rows: np.ndarray, spec: DataSpec, labels: Tensor | None) -> None:
    """Rows under the names of the columns, and the class of each where they were told one."""
    numbers = [] if labels is None else labels.tolist()
    names = [spec.classes[i] if spec.classes else i for i in numbers]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*spec.columns, *(["class"] if names else [])])
        for i, row in enumerate(rows.tolist()):
            table.writerow([*(f"{value:.6g}" for value in row), *names[i : i + 1]])
