"""Codecs of runs: read, written, and used to make latents of data.

A run that has trained an autoencoder holds codec.safetensors: the averaged weights, and the shift
and scale that give latents of its training data mean 0 and standard deviation 1 in each channel. A
run of latents holds a copy of the codec that it was trained with, whose checksum is in its
config.json: it samples to pictures wherever it goes, and by no other codec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde import build, distributed
from score_sde.checks import cache_dir, from_json, reading, trusting, trusts_files
from score_sde.convert import ConversionError
from score_sde.convert.live_autoencoder import codec_of, read_autoencoder
from score_sde.data import Data, DataError, DataSpec
from score_sde.data.latent import LatentData
from score_sde.nets.autoencoder import latent_statistics
from score_sde.nets.codec import Codec, Moments
from score_sde.runs.directory import CODEC, RunDirectory, RunError
from score_sde.runs.reading import no_larger_than
from score_sde.runs.signature import is_signed
from score_sde.training import CheckpointError
from score_sde.training.checkpoints import load_tensors, save_tensors, tensor_sum

BATCH = 64  # pictures that are encoded or decoded at a time


@dataclass(frozen=True)
class RunCodec:
    """A codec, what pictures it is of, and which one it is.

    settings: of the autoencoder, as a config has them. spec: of the pictures that it decodes to.
    checksum: of the weights, shift and scale. path: where it was read from.
    """

    codec: Codec
    settings: Mapping[str, Any]
    spec: DataSpec
    checksum: str
    path: Path

    def encode(self, x: Tensor) -> Tensor:
        """The mean latents (B, *shape) of pictures x in the range of ``spec``."""
        with torch.no_grad():
            return torch.cat([self.codec.encode(part) for part in x.split(BATCH)])

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W), in the range of ``spec``, of latents z; on the device of z."""
        self.codec.to(z.device)
        with torch.no_grad():
            return torch.cat([self.codec.decode(part) for part in z.split(BATCH)])

    def facts(self) -> dict[str, Any]:
        """What config.json of a run says of it."""
        said = {"autoencoder": dict(self.settings), "data_spec": self.spec.to_dict()}
        return json.loads(json.dumps(said | {"checksum": self.checksum}))

    def save(self, folder: Path, name: str = CODEC) -> None:
        """The file that `codec_of_run` reads."""
        save_tensors(RunDirectory(folder).codec(name), self.codec.state_dict())


def load_codec(path: str | Path, data_spec: DataSpec | None = None) -> RunCodec:
    """The codec of a run that trained one, of a run of latents, or of a folder of diffusers' VAE.

    data_spec: of the pictures it is for, which a file of diffusers does not say. Raises RunError
    for a folder without a codec, ConversionError for one of another network.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(
            f"codec.path: there is no run {path}. Train its autoencoder first, for example with "
            "--config autoencoder:fashion --mode train."
        )
    facts = RunDirectory(path)
    found = facts.read_config() if facts.config.is_file() else {}
    if "_class_name" in found or (path / "vae").is_dir():
        return _of_diffusers(path, data_spec)
    if (said := said_of_codec(found)) is None:
        raise RunError(
            f"{path} has no autoencoder: codec.path must be a run of --config autoencoder, or a "
            "folder of a AutoencoderKL of the diffusers library."
        )
    trusted = trusts_files() or is_signed(facts.config)
    return _read(path, said, trusted)


def said_of_codec(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What config.json of a run says of its codec: the autoencoder's settings, spec, checksum."""
    own = (facts.get("config") or {}).get("autoencoder")
    if own is not None:
        return {"autoencoder": own, "data_spec": facts.get("data_spec")}
    return facts.get("codec")


def codec_of_run(path: Path, trusted: bool, name: str = CODEC) -> RunCodec | None:
    """The codec that a run of latents was trained with; None for a run of anything else.

    name: EMBEDDING for that by which a network is told pictures. Raises RunError where it is
    missing, damaged or another one.
    """
    said = RunDirectory(path).read_config().get(Path(name).stem)
    return None if said is None else _read(path, said, trusted, name)


@dataclass(frozen=True)
class CodecFacts:
    """What config.json says of a codec."""

    autoencoder: dict[str, Any]
    data_spec: DataSpec
    checksum: str | None = None


def _read(path: Path, said: Any, trusted: bool, name: str = CODEC) -> RunCodec:
    run = RunDirectory(path)
    where, file = run.config, run.codec(name)
    wrong = f"{where} does not describe an autoencoder"
    facts = from_json(json.dumps(said), CodecFacts, wrong, RunError)
    if not file.is_file():
        raise RunError(
            f"{path} has no {name}: an autoencoder is there when its training is over (go on with "
            "--resume), and a run of latents cannot be used without its own."
        )
    state = load_tensors(file)
    checksum = tensor_sum(state)
    if facts.checksum not in (None, checksum):
        raise RunError(
            f"the autoencoder in {file} is not the one that this run was trained with "
            f"(checksum {checksum}, not {facts.checksum}): its latents mean something else. "
            f"Put the old file back."
        )
    with reading(file, f"of the autoencoder that {where} describes", RunError):
        held = sum(value.numel() for value in state.values())
        with trusting(trusted), no_larger_than(held, str(where)):
            net = build.build_autoencoder({"autoencoder": facts.autoencoder}, facts.data_spec)
        codec = Codec(net, state["shift"], state["scale"])
        codec.load_state_dict(state)
    return RunCodec(_ready(codec), facts.autoencoder, facts.data_spec, checksum, path)


def _ready(codec: Codec) -> Codec:
    return codec.eval().requires_grad_(False)


def _of_diffusers(path: Path, spec: DataSpec | None) -> RunCodec:
    if spec is None:
        raise RunError(f"{path} does not say what pictures its autoencoder is of: give data_spec.")
    module = read_autoencoder(path)
    codec = _ready(codec_of(module))
    settings = {"name": "diffusers", "settings": json.loads(module.to_json_string())}
    # Its pixels are in [-1, 1], whatever the range that the data are brought to.
    low, high = (0.0, 255.0) if spec.low is None or spec.high is None else (spec.low, spec.high)
    pixels = replace(spec, low=low, high=high, shift=(low + high) / 2, scale=(high - low) / 2)
    checksum = tensor_sum(codec.state_dict())
    return RunCodec(codec, settings, replace(pixels, shifts=(), scales=()), checksum, path)


def check_pictures(codec: RunCodec, spec: DataSpec) -> None:
    """Raise DataError unless the codec takes pictures of this spec and gives such back."""
    theirs, ours = codec.spec, spec
    if theirs.shape != ours.shape or (theirs.low, theirs.high) != (ours.low, ours.high):
        raise DataError(
            f"the autoencoder of {codec.path} is for pictures {theirs.shape} from {theirs.low} to "
            f"{theirs.high}; these are {ours.shape} from {ours.low} to {ours.high}."
        )
    try:
        z = codec.encode(torch.zeros(1, *ours.shape))
        back = codec.decode(z).shape[1:]
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:160]
        raise DataError(
            f"the autoencoder of {codec.path} does not take pictures {ours.shape} ({first})."
        ) from error
    if tuple(back) != ours.shape:
        raise DataError(
            f"the autoencoder of {codec.path} makes pictures {tuple(back)} of {ours.shape}: its "
            "factor does not divide them. Use another data.size."
        )


def latents_of(data: Data, codec: RunCodec, cache: Path | None = None) -> LatentData:
    """The data as latents. Their raw moments are found once, and kept in the cache folder.

    Raises DataError for pictures that the codec does not take, and for mirrored ones.
    """
    check_pictures(codec, data.spec)
    if data.flip:
        raise DataError(
            "data.flip mirrors pixels, and the latents of a mirrored picture are not the mirrored "
            "latents: set data.flip=False."
        )
    source = f"{data.fingerprint()[:16]}_{codec.checksum}"
    found = _moments(data, codec, (cache or cache_dir() / "moments") / f"{source}.safetensors")
    mean = codec.codec.standardise(found.mean)
    std = codec.codec.standardise(found.mean + found.std) - mean
    spec = DataSpec(tuple(mean.shape[1:]), classes=data.spec.classes, name=data.spec.name)
    condition = data.condition_items(range(len(data)))
    return LatentData(
        torch.stack([mean, std], 1), condition, spec, notes=data.notes, captions=data.captions,
        names=getattr(data, "names", ()), split=data.split, source=source,
    )  # fmt: skip


def _moments(data: Data, codec: RunCodec, file: Path) -> Moments:
    """Raw moments of all items, from the file if they are there and whole, else found anew."""
    if file.is_file():
        try:
            state = load_tensors(file)
            if len(state["mean"]) == len(data):
                return Moments(state["mean"], state["std"])
        except (CheckpointError, KeyError):
            distributed.say(f"{file} is damaged: the latents are found anew")
    distributed.say(f"finding the latents of {len(data)} pictures, once")
    parts = []
    with torch.no_grad():
        for first in range(0, len(data), BATCH):
            raw = data.raw_items(range(first, min(first + BATCH, len(data))))
            parts.append(codec.codec.autoencoder.moments(codec.spec.to_model(raw)))
    moments = Moments(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))
    if distributed.is_writer():
        save_tensors(file, {"mean": moments.mean, "std": moments.std})
    return moments


def fitted(net: Any, data: Data, settings: Mapping[str, Any], path: Path) -> RunCodec:
    """The codec of an autoencoder, its shift and scale those of the latents of data."""
    count = min(len(data), 10_000)
    parts = []
    with torch.no_grad():
        for first in range(0, count, BATCH):
            raw = data.raw_items(range(first, min(first + BATCH, count)))
            parts.append(net.moments(data.spec.to_model(raw)))
    moments = Moments(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))
    mean, std = latent_statistics(moments)
    codec = _ready(Codec(net, mean, 1 / std))
    return RunCodec(codec, settings, data.spec, tensor_sum(codec.state_dict()), path)


def open_codec(
    wanted: str | None,
    directory: RunDirectory,
    resume: bool,
    spec: DataSpec,
    name: str = CODEC,
) -> RunCodec | None:
    """The codec of a run that is begun or resumed; None where none is ``wanted``.

    wanted: the path in its config. A run that is resumed has a copy of its own; RunError if there
    is another one at that path now.
    """
    if not wanted:
        return None
    trusted = trusts_files() or is_signed(directory.config)
    own = codec_of_run(directory.path, trusted, name) if resume else None
    if own is not None and not Path(wanted).is_dir():
        return own  # what it was trained with has gone
    try:
        given = load_codec(wanted, spec)
    except (RunError, ConversionError):
        if own is None:
            raise
        return own
    if own is not None and given.checksum != own.checksum:
        raise RunError(
            f"the autoencoder in {wanted} is not the one that the run in {directory.path} was "
            f"trained with (checksum {given.checksum}, not {own.checksum}). Use the old one, or "
            "another --workdir."
        )
    return own or given
