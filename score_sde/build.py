"""A config becomes objects here, and nowhere else; nothing below knows that configs exist.

A config is a plain dictionary of sections. Each section is the arguments of one constructor, so a
key that nobody reads cannot exist: it is an error that names the nearest one that does.

    data      data.load_data               loss       losses.ScoreMatching
    sde       a process (SDES)             training   training.TrainingSettings
    net       a network (NETS)             seed       a number
    model     models.ScoreModel            sampling   of `sampling.sampling_of`, not built here
    conditioning   conditioning.told.Conditioning
    codec     CodecSettings, of a run whose states are latents
    flow_map  training.map_matching.MapMatching, in place of loss, of a map of the flow
    teacher   training.map_matching.TeacherSettings, of a map of the flow of another run

The config of an autoencoder has autoencoder (AUTOENCODERS) and reconstruction
(training.autoencoding.Reconstruction) in place of sde, net, model, loss and sampling.

``name`` in sde and net is a key of a table here or the dotted path of a class of yours.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from score_sde.checks import UserError, check_names, lookup, memory_for, validated, whole_seeds
from score_sde.conditioning.text import make_text_encoder
from score_sde.conditioning.told import Conditioning
from score_sde.convert.live_autoencoder import autoencoder_of
from score_sde.data import Data, DataSpec, load_data
from score_sde.losses import ScoreMatching
from score_sde.models import FlowMap, NoisyClassifier, ScoreModel
from score_sde.nets import MLP, ImageClassifier, Transformer, UNet, VectorClassifier
from score_sde.nets.autoencoder import KLAutoencoder
from score_sde.nets.layout import in_fast_layout as in_fast_layout
from score_sde.nets.magnitude import MagnitudeUNet
from score_sde.processes.sdes import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowSDE,
    SubVPSDE,
    TableSDE,
)
from score_sde.training import TrainingSettings
from score_sde.training.autoencoding import Reconstruction
from score_sde.training.classification import Classification
from score_sde.training.map_matching import MapMatching, TeacherSettings

SDES = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "cosine": CosineSDE,
    "flow": FlowSDE,
    "edm": EDMSDE,
    "table": TableSDE,
}
NETS = {"unet": UNet, "edm2": MagnitudeUNet, "transformer": Transformer, "mlp": MLP}
AUTOENCODERS = {"kl": KLAutoencoder, "diffusers": autoencoder_of}
CLASSIFIERS = {"image_classifier": ImageClassifier, "vector_classifier": VectorClassifier}
Config = Mapping[str, Any]


class ConfigError(UserError):
    """A config that cannot be built; the message names the key, the choices and the fix."""


@validated("codec")
@dataclass(frozen=True)
class CodecSettings:
    """Of a run whose states are latents. path: the run of an autoencoder, or a diffusers VAE."""

    path: str


SECTIONS = (
    "data", "conditioning", "sde", "net", "model", "loss", "training", "sampling", "codec",
    "flow_map", "teacher",
)  # fmt: skip
OF_AUTOENCODERS = ("data", "autoencoder", "reconstruction", "training")


def _call(make: Callable[..., Any], section: str, values: Config, given: Config) -> Any:
    """make(**values, **given), where given are arguments that a config does not set."""
    parameters = inspect.signature(make).parameters
    known = [name for name in parameters if name not in given]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_names(values, known, f"{section}: the key")
    try:
        inspect.signature(make).bind(**values, **given)
    except TypeError as error:
        raise ConfigError(f"{section}: {error}.") from error
    return make(**values, **given)


def is_autoencoder(config: Config) -> bool:
    """Whether a config is that of an autoencoder."""
    return "autoencoder" in config


def is_flow_map(config: Config) -> bool:
    """Whether a config is that of a map of the flow."""
    return config.get("flow_map") is not None


def check_sections(config: Config) -> None:
    """Raises UserError for a section that does not exist, is missing or is none, and the seed."""
    needed: tuple[str, ...] = ("data", "sde", "net")
    known = [*SECTIONS, "seed"]
    if is_autoencoder(config):
        needed, known = ("data",), [*OF_AUTOENCODERS, "seed"]
    whole_seeds([config.get("seed", 0)])
    check_names(config, known, "the section")
    missing = [key for key in needed if key not in config]
    if missing:
        raise ConfigError(f"the config lacks the sections {missing}.")
    if is_flow_map(config) and config.get("loss"):
        raise ConfigError(
            "a map of the flow is trained by flow_map, not by loss: drop one of them."
        )
    if config.get("teacher") and not is_flow_map(config):
        raise ConfigError("a teacher is for a map of the flow: give flow_map too, or drop teacher.")


def _section(config: Config, name: str) -> dict[str, Any]:
    found = config.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise ConfigError(f"{name} must be a section of fields (got {found!r}).")
    return dict(found or {})


def build_data(config: Config, split: str | None = None) -> Data:
    """The data set of the config; DataError says what is wrong with it."""
    values = _section(config, "data")
    if split is not None:
        values["split"] = split
    return _call(load_data, "data", values, {})


def build_sde(config: Config) -> SDE:
    """The process."""
    values = _section(config, "sde")
    return _call(lookup(SDES, values.pop("name", "vp"), "sde.name", kind=SDE), "sde", values, {})


SHAPES = (
    "signals (C, L), images (C, H, W) and volumes (C, D, H, W) go with unet, images also with "
    "transformer and edm2, vectors (D,) and anything as one (data.layout=vector) with mlp"
)


def build_net(
    config: Config, spec: DataSpec, nets: Mapping[str, Callable[..., nn.Module]] = NETS
) -> nn.Module:
    """The network for data of this spec: it is given what its constructor asks for by name of
    channels, size (H, W), dim, shape and classes."""
    values = _section(config, "net")
    name = values.pop("name", "unet")
    if nets is NETS and name in CLASSIFIERS:
        raise ConfigError(
            f"net.name={name} is a classifier of noisy samples: train it with --mode "
            "train_classifier, and lead samples of another run with it by --classifier."
        )
    make = lookup(nets, name, "net.name", kind=nn.Module)
    accepted = inspect.signature(make).parameters
    facts: dict[str, Any] = {"shape": spec.shape}
    if _section(config, "model").get("learned_variance") and "out_channels" not in values:
        if "out_channels" not in accepted or len(spec.shape) < 2:
            raise ConfigError("model.learned_variance needs images and a network like unet.")
        facts["out_channels"] = 2 * spec.shape[0]
    if 2 <= len(spec.shape) <= 4:
        facts |= {"channels": spec.shape[0], "size": spec.shape[1:]}
    if len(spec.shape) != 3 or set(spec.shape[1:]) == {1}:
        facts |= {"dim": math.prod(spec.shape)}
    told = build_conditioning(config)
    if told.classes:
        facts |= {"classes": len(spec.classes), "class_dropout": told.dropout}
        for given_name in {"classes", "class_dropout"} & set(values):
            raise ConfigError(
                f"net.{given_name} is filled in from data and conditioning: leave it out."
            )
    if is_flow_map(config):
        facts["second_time"] = True
        if "second_time" not in accepted:
            raise ConfigError(f"net.name={name} is told no second time: take unet or mlp.")
    given = {key: value for key, value in facts.items() if key in accepted}
    needed = {"channels", "size", "dim"} & set(accepted) - set(given)
    flat = name in ("transformer", "edm2") and len(spec.shape) != 3
    if needed or flat:
        raise ConfigError(f"net.name={name} does not take items of shape {spec.shape}: {SHAPES}.")
    with memory_for("net"):
        return _call(make, "net", values, given)


def build_autoencoder(config: Config, spec: DataSpec) -> Any:
    """The autoencoder of a config for pictures of this spec."""
    values = _section(config, "autoencoder")
    make = lookup(AUTOENCODERS, values.pop("name", "kl"), "autoencoder.name", kind=nn.Module)
    if len(spec.shape) != 3:
        raise ConfigError(
            f"autoencoders here are of pictures (C, H, W); items have shape {spec.shape}."
        )
    accepted = inspect.signature(make).parameters
    facts: dict[str, Any] = {"channels": spec.shape[0], "size": spec.shape[1:]}
    given = {key: value for key, value in facts.items() if key in accepted}
    return in_fast_layout(_call(make, "autoencoder", values, given))


def build_reconstruction(config: Config) -> Reconstruction:
    """The objective of an autoencoder."""
    return _call(Reconstruction, "reconstruction", _section(config, "reconstruction"), {})


def build_codec(config: Config) -> CodecSettings | None:
    """Where the codec of a run of latents is; None for other runs."""
    values = _section(config, "codec")
    return _call(CodecSettings, "codec", values, {}) if values.get("path") else None


def build_conditioning(config: Config) -> Conditioning:
    """What the network is told of its data."""
    return _call(Conditioning, "conditioning", _section(config, "conditioning"), {})


def build_text_encoder(config: Config) -> Any:
    """The text encoder of conditioning.text, None without one."""
    told = build_conditioning(config)
    return make_text_encoder(told.text, told.text_length) if told.text else None


def build_model(config: Config, spec: DataSpec) -> ScoreModel:
    """Network and process as a score function, on the CPU, in a memory layout that suits it."""
    given: dict[str, Any] = {"net": build_net(config, spec), "sde": build_sde(config)}
    values = _section(config, "model")
    if values.get("center"):  # filled from the data when a training begins, and saved with it
        classes = len(spec.classes) if build_conditioning(config).classes else 0
        given["net"].register_buffer("means", torch.zeros(classes + 1, *spec.shape))
    if not is_flow_map(config):
        return in_fast_layout(_call(ScoreModel, "model", values, given))
    if values.get("learned_variance"):
        raise ConfigError("a map of the flow has no variances: set model.learned_variance=False.")
    made = _call(FlowMap, "model", values, given)
    made.steps = build_map_objective(config).steps
    return in_fast_layout(made)


def build_map_objective(config: Config) -> MapMatching:
    """The objective of a map of the flow, without its teacher."""
    return _call(MapMatching, "flow_map", _section(config, "flow_map"), {})


def build_teacher(config: Config) -> TeacherSettings | None:
    """Which run a map of the flow learns from; None where it learns from the data alone."""
    values = _section(config, "teacher")
    return _call(TeacherSettings, "teacher", values, {}) if values.get("path") else None


def build_classifier(config: Config, spec: DataSpec) -> NoisyClassifier:
    """A classifier of noisy samples, on the CPU; ConfigError without classes to tell apart."""
    if (name := _section(config, "net").get("name", "unet")) in NETS:
        raise ConfigError(
            f"net.name={name} makes scores, not classes. A classifier is trained with --mode "
            f"train_classifier and net.name one of {', '.join(CLASSIFIERS)}, as in "
            "configs/classifier_fashion.py."
        )
    if not spec.classes:
        raise ConfigError(f"a classifier needs data with classes; {spec.name} has none.")
    told = build_conditioning(config)
    if not told.classes or told.dropout:
        raise ConfigError(
            "a classifier is trained with conditioning.classes=True and conditioning.dropout=0."
        )
    net = build_net(config, spec, CLASSIFIERS)
    if getattr(net, "classes", None) != len(spec.classes):
        raise ConfigError(f"{type(net).__name__} must say of {len(spec.classes)} classes.")
    given = {"net": net, "sde": build_sde(config)}
    return in_fast_layout(_call(NoisyClassifier, "model", _section(config, "model"), given))


def build_classification(config: Config) -> Classification:
    """The objective of a classifier, at the times of the loss section."""
    return Classification(_call(ScoreMatching, "loss", _section(config, "loss"), {}))


def build_objective(config: Config) -> ScoreMatching:
    """The training objective."""
    objective = _call(ScoreMatching, "loss", _section(config, "loss"), {})
    if objective.t_min is not None and objective.t_min >= (end := build_sde(config).t_max):
        raise ConfigError(f"loss.t_min ({objective.t_min:g}) must be below sde.t_max ({end:g}).")
    learned = bool(_section(config, "model").get("learned_variance"))
    if learned != (objective.variance_weight > 0):
        raise ConfigError(
            f"model.learned_variance is {learned} but loss.variance_weight is "
            f"{objective.variance_weight:g}: set both (0.001) or neither."
        )
    if objective.uncertainty and not _section(config, "net").get("log_variance"):
        raise ConfigError(
            "loss.uncertainty=True needs a network that learns how uncertain it is: "
            "net.name=edm2 with net.log_variance=True."
        )
    return objective


def build_seed(config: Config) -> int:
    """The seed of weights, data order and noise."""
    seed = config.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1 (got {seed!r}).")
    return seed


def build_training(config: Config) -> TrainingSettings:
    """How to train."""
    return _call(TrainingSettings, "training", _section(config, "training"), {})
