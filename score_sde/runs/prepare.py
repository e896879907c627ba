"""What a training needs, built from its config and checked before anything is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from score_sde import build, distributed
from score_sde.conditioning.told import Conditioning, check_told, unused
from score_sde.data import Data, DataSpec
from score_sde.models import FlowMap, ScoreModel
from score_sde.noise import seed_torch
from score_sde.plotting.pictures import picture_of
from score_sde.runs.codecs import RunCodec, latents_of, open_codec
from score_sde.runs.conditions import with_told
from score_sde.runs.configs import plain
from score_sde.runs.directory import CODEC, EMBEDDING, RunDirectory, RunError
from score_sde.runs.means import means_of
from score_sde.runs.sampler import Sampler, make_sampler
from score_sde.runs.teacher import Teacher, open_teacher
from score_sde.runs.watching import (
    Watcher,
    drawing,
    repeated,
    spread_rows,
    watcher_of,
)
from score_sde.sampling import change_sampling, sampling_of
from score_sde.training import Pictures, Trainer
from score_sde.training.objective import Ending
from score_sde.version import __version__

FEW_IMAGES = 500


@dataclass(frozen=True)
class Parts:
    """All that a training needs, built and checked.

    facts: what config.json will hold. codecs: those that travel with the run, by their files.
    """

    data: Data
    conditioning: Conditioning
    trainer: Trainer
    pictures: Pictures | None
    facts: dict[str, Any]
    codecs: Mapping[str, RunCodec] = field(default_factory=dict)
    watcher: Watcher | None = None


def prepare(
    config: Mapping[str, Any],
    device: torch.device,
    saved: Mapping[str, Any],
    directory: RunDirectory,
) -> Parts:
    """Everything, in memory only. Raises ConfigError, DataError, LabelError, TrainingError.

    saved: what config.json of the run that is resumed holds, {} for a new one.
    """
    build.check_sections(config)
    settings, is_map = build.build_training(config), build.is_flow_map(config)
    objective: Any = (build.build_map_objective if is_map else build.build_objective)(config)
    conditioning, seed = build.build_conditioning(config), build.build_seed(config)
    sampling = sampling_of(config.get("sampling"))
    with distributed.writer_first():  # it may have to download them
        data = build.build_data(config)
        asked, resume = build.build_codec(config), bool(saved)
        codec = open_codec(asked.path if asked else None, directory, resume, data.spec)
        data = data if codec is None else latents_of(data, codec)
        eye = open_codec(conditioning.embedding, directory, resume, data.spec, EMBEDDING)
    data = as_begun(data, saved)
    say_of_data(data, settings.batch_size, conditioning)
    seed_torch(seed)
    model = build.build_model(config, data.spec)
    objective.check(model.sde)
    teacher, objective, ending = _taught(config, model, objective, data, codec, saved, device)
    data, named = with_told(config, data, conditioning, eye)
    conditioning = conditioning.with_text(named, model.net)
    known = data.condition_items(range(min(len(data), 2)))
    check_told(conditioning, known, data.spec.classes, model.net)
    if model.center and teacher is None:
        net: Any = model.net
        net.means.copy_(means_of(data, len(net.means) - 1))
    data_std = float(data.reference(1000).std())
    sampler = make_sampler(sampling, model, data_std)
    sampler.rehearse(model, data.spec.shape)
    if settings.sample_nfe and not is_map:
        cheap = {"method": "dpmpp_2m", "nfe": settings.sample_nfe}
        quick = change_sampling(config.get("sampling"), cheap)
        sampler = make_sampler(sampling_of(quick), model, data_std)
        sampler.rehearse(model, data.spec.shape)
    trainer = Trainer(
        model, objective, settings, seed, data_std, device, conditioning.dropout, ending
    )
    pictures, facts = None, facts_of(config, data, data_std)
    if codec is not None or picture_of(data.reference(4), data.spec) is not None:
        points = codec is None and len(data.spec.shape) == 1
        count = 5 * sampling.batch_size if points else settings.sample_images
        pictures = _pictures(trainer, sampler, data, conditioning, count, codec)
    codecs = {n: c for n, c in ((CODEC, codec), (EMBEDDING, eye)) if c is not None}
    facts |= {Path(name).stem: found.facts() for name, found in codecs.items()}
    if teacher is not None:
        facts["teacher"] = teacher.facts()
    watcher = None
    if settings.evaluate_every:
        watcher = watcher_of(config, trainer, sampler, data, conditioning, codec, eye)
    return Parts(data, conditioning, trainer, pictures, facts, codecs, watcher)


def _taught(
    config: Mapping[str, Any], model: ScoreModel, objective: Any, data: Data,
    codec: RunCodec | None, saved: Mapping[str, Any], device: torch.device,
) -> tuple[Teacher | None, Any, Ending | None]:  # fmt: skip
    """The teacher of a map of the flow, its objective, and that of the end of its training."""
    if not isinstance(model, FlowMap):
        return None, objective, None
    if (wanted := build.build_teacher(config)) is None:
        if objective.moments:
            raise RunError("flow_map.moments needs a teacher, to see them by: set it to 0.")
        return None, objective, None
    told, begun = config.get("conditioning") or {}, saved.get("teacher") or {}
    teacher = open_teacher(wanted, model, data.spec, told, codec, begun, device)
    teacher.begin(model)
    return teacher, objective.of_teacher(teacher, wanted.steps), teacher.ending(objective, data)


def facts_of(config: Mapping[str, Any], data: Data, data_std: float) -> dict[str, Any]:
    """What config.json of a run holds."""
    facts = {"config": as_json(config), "data_spec": as_json(data.spec.to_dict())}
    facts |= {"data_std": data_std, "items": len(data), "fingerprint": _fingerprint(data)}
    return facts | {"version": __version__}


def _pictures(
    trainer: Trainer,
    sampler: Sampler,
    data: Data,
    conditioning: Conditioning,
    count: int,
    codec: RunCodec | None,
) -> Pictures:
    """Grids of ``count`` samples: of all classes in turn, told what items all over the data are."""
    known = conditioning.of(data.condition_items(spread_rows(len(data), count)))
    told = repeated(known, count)
    if conditioning.classes:
        told["class_labels"] = torch.arange(count) % len(data.spec.classes)
    draw = drawing(trainer, sampler, (count, *data.spec.shape), told, codec)
    spec = data.spec if codec is None else codec.spec
    models = {"": trainer.model.with_net(trainer.ema.net), "_raw": trainer.model}
    return Pictures(lambda model: picture_of(draw(model).cpu(), spec), models)


def say_of_data(data: Data, batch_size: int, conditioning: Conditioning) -> None:
    """What is worth knowing of the data before training on them."""
    for note in (*data.notes, unused(conditioning, data.spec.classes)):
        if note:
            distributed.say(note)
    n = len(data)
    if n < batch_size:
        distributed.say(f"{n} items < batch {batch_size}: items repeat within a batch.")
    if data.spec.is_image and n < FEW_IMAGES:
        distributed.say(
            f"{n} images are few: a model of usual size learns them by heart, and its samples "
            "are copies. Compare them with the training images, or train a smaller one."
        )


def _fingerprint(data: Data) -> str | None:
    """Of the data; None if its items are others whenever one looks, as augmented ones are."""
    few = range(min(len(data), 4))
    return data.fingerprint() if torch.equal(*(data.raw_items(few) for _ in "ab")) else None


def as_begun(data: Data, saved: Mapping[str, Any]) -> Data:
    """The data of a run, with the spec of its config.json where that differs by rounding alone."""
    if _same_spec(data.spec.to_dict(), saved.get("data_spec")):
        return replace(data, spec=DataSpec.from_dict(saved["data_spec"]))
    return data


def _same_spec(spec: Mapping[str, Any], saved: Any) -> bool:
    """Whether a spec is the saved one but for rounding: a mean depends on the threads that add."""
    if not isinstance(saved, dict):
        return False
    pairs = [(value, as_json(spec.get(key))) for key, value in saved.items()]
    return all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in pairs
    )


def as_json(value: Any) -> Any:
    """A value as JSON would return it."""
    return json.loads(json.dumps(plain(value)))
