"""Training of an autoencoder as a run: `--mode train` of a config with a section autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.conditioning.told import Conditioning
from score_sde.data import Data, DataError
from score_sde.evaluation.features import Features
from score_sde.evaluation.moments import Moments, frechet
from score_sde.nets.autoencoder import psnr
from score_sde.noise import seed_torch
from score_sde.plotting.pictures import picture_of
from score_sde.runs.codecs import BATCH, RunCodec, fitted
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.features import extract_shared
from score_sde.runs.prepare import Parts, as_begun, as_json, facts_of, say_of_data
from score_sde.training import Pictures
from score_sde.training.autoencoding import AutoencoderModel, AutoencoderTrainer


def prepare_autoencoder(
    config: Mapping[str, Any],
    device: torch.device,
    saved: Mapping[str, Any],
    directory: RunDirectory,
) -> Parts:
    """As `prepare`: everything, in memory only. Raises ConfigError, DataError, TrainingError."""
    build.check_sections(config)
    settings, objective = build.build_training(config), build.build_reconstruction(config)
    seed = build.build_seed(config)
    if settings.evaluate_every:
        raise RunError(
            "training.evaluate_every is for runs with a score; an autoencoder says how it does "
            "when its training is over: set it to 0."
        )
    with distributed.writer_first():  # it may have to download them
        data = build.build_data(config)
    data = as_begun(data, saved)
    if not data.spec.is_image:
        raise DataError(
            f"autoencoders here are of pictures; items have shape {data.spec.shape}. Vectors, "
            "signals and volumes are small enough for a run of their own."
        )
    say_of_data(data, settings.batch_size, Conditioning())
    seed_torch(seed)
    net = build.build_autoencoder(config, data.spec)
    model = AutoencoderModel(net, objective.precision)
    data_std = float(data.reference(1000).std())
    trainer = AutoencoderTrainer(model, objective, settings, seed, data_std, device)
    pictures = _pictures(trainer, data, settings.sample_images)
    return Parts(data, Conditioning(), trainer, pictures, facts_of(config, data, data_std))


def _pictures(trainer: AutoencoderTrainer, data: Data, count: int) -> Pictures:
    """Grids of the first items, each beside what comes back of it."""
    x = data.reference(max(1, count // 2))

    def draw(model: AutoencoderModel) -> np.ndarray | None:
        with torch.no_grad():
            back = model(x.to(trainer.device))[0].cpu()
        return picture_of(torch.stack([x, back], 1).flatten(0, 1), data.spec)

    models: Any = {"": trainer.model.with_net(trainer.ema.net), "_raw": trainer.model}
    return Pictures(draw, models)  # type: ignore[arg-type]


def finish_autoencoder(directory: RunDirectory, parts: Parts) -> RunCodec:
    """Write the codec of a trained autoencoder, and say how well it does."""
    config = parts.facts["config"]
    net = build.build_autoencoder(config, parts.data.spec)
    net.load_state_dict(parts.trainer.ema.net.state_dict())
    codec = fitted(net, parts.data, as_json(config["autoencoder"]), directory.path)
    if distributed.is_writer():
        codec.save(directory.path)
    distributed.say(f"the codec is in {directory.path}: {reconstruction(codec, parts.data)}")
    try:
        held_out = build.build_data(config, "test")
    except DataError:
        return codec
    if held_out.fingerprint() != parts.data.fingerprint():
        distributed.say(f"of held-out pictures: {reconstruction(codec, held_out)}")
    return codec


def square_errors(codec: RunCodec, data: Data, most: int = 1000) -> Tensor:
    """The mean squared error of each of the first pictures, rounded and clamped as files are."""
    found = []
    for first in range(0, min(most, len(data)), BATCH):
        raw = data.raw_items(range(first, min(first + BATCH, most, len(data))))
        x = codec.spec.to_model(raw)
        back = codec.spec.to_uint8(codec.decode(codec.encode(x)))
        off = (back.double() - codec.spec.to_uint8(x).double()) / 255
        found.append(off.square().flatten(1).mean(1))
    return torch.cat(found)


def reconstruction(codec: RunCodec, data: Data) -> str:
    """A sentence: the peak signal-to-noise ratio of what comes back, and how it is counted."""
    errors = square_errors(codec, data)
    each = psnr(errors.clamp(min=1e-10), 1.0)
    return (
        f"PSNR {float(each.mean()):.2f} dB, the mean over {len(errors)} pictures "
        f"({float(psnr(errors.mean(), 1.0)):.2f} dB of the mean error), latents "
        f"{tuple(codec.codec.autoencoder.latent_shape)}"  # type: ignore[attr-defined]
    )


def reconstruction_distance(
    codec: RunCodec, data: Data, extractor: Features, n: int, known: Tensor
) -> str:
    """A sentence: the Frechet distance of what comes back of n items to all, beside that of them.

    It is what samples of latents would have if the diffusion made no error. known: the features of
    all items.
    """
    n = min(n, len(data))
    backs = []
    for first in range(0, n, BATCH):
        x = codec.spec.to_model(data.raw_items(range(first, min(first + BATCH, n))))
        backs.append(codec.spec.to_uint8(codec.decode(codec.encode(x))))
    whole = Moments.of(known)
    back = frechet(Moments.of(extract_shared(extractor, torch.cat(backs))), whole)
    floor = frechet(Moments.of(known[:n]), whole)
    return (
        f"The autoencoder alone: frechet {back:.4g} of {n} items that went through it, against all "
        f"{len(data)}; {floor:.4g} of these items as they are. {reconstruction(codec, data)}."
    )
