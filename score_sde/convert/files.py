"""Opening foreign files without running anything in them, and telling which kind they are."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from score_sde.checks import UserError, check_names, load_pickled, read_json, reading
from score_sde.convert import diffusers, diffusers_transformer, edm, ho, openai, song
from score_sde.convert.parts import ConversionError, Foreign, strip_prefix

KNOWN = (
    "score_sde_pytorch (.pth), EDM (.pkl), diffusers (a folder or hub id), guided-diffusion and "
    "improved-diffusion (.pt), PyTorch versions of Ho's DDPM (.ckpt)"
)
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch.save began before it wrote zip files


def _numpy_scalars() -> list[Any]:
    """What a NumPy number in a checkpoint is made of, under the names of NumPy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "?")}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *kinds]


def load_torch(path: Path) -> Any:
    """A file of torch.save: tensors and plain values, with weights_only."""
    with reading(path, "a whole file of torch.save", ConversionError):
        try:
            with torch.serialization.safe_globals(_numpy_scalars()):
                return load_pickled(path)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"asks for {named[1]}" if named else "holds more than weights"
            raise ConversionError(
                f"{path.name} {what}, which weights do not need; loading it could run foreign "
                "code. Nothing of it was executed."
            ) from error


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """A .safetensors file."""
    with reading(path, "a whole .safetensors file", ConversionError):
        return load_file(path)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """ConversionError for weights that are not finite."""
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConversionError(
                f"{what}: the weights {key} hold values that are not finite. The training that "
                "made them had diverged; take an earlier checkpoint."
            )


def read(path: str | Path, given: Mapping[str, Any]) -> Foreign:
    """A foreign checkpoint in our words; ConversionError says what cannot be read.

    given: what files of some layouts do not say, see `OPTIONS` of each.
    """
    try:
        foreign = _read(path, given)
        check_finite(foreign.averaged | foreign.trained, str(path))
        return foreign
    except UserError as error:
        raise (
            error if isinstance(error, ConversionError) else ConversionError(str(error))
        ) from error
    except (
        AttributeError, IndexError, KeyError, MemoryError, OverflowError, RuntimeError, TypeError,
        ValueError, ZeroDivisionError,
    ) as error:  # fmt: skip
        # Whatever settings of the wrong kind and tensors of the wrong shape provoke.
        first = (str(error).strip().splitlines() or [""])[0]
        raise ConversionError(
            f"{path} holds settings or tensors that do not fit its layout "
            f"({type(error).__name__}: {first})."
        ) from error


def _read(path: str | Path, given: Mapping[str, Any]) -> Foreign:
    path = _fetch(str(path)) if not Path(path).exists() else Path(path)
    if path.is_dir():
        return _folder(path, _known(given, diffusers.OPTIONS, "diffusers"))
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty (0 bytes).")
    with path.open("rb") as file:
        start = file.read(64)
    if start[:1] == b"\x80" and _LEGACY not in start:
        return edm.read(path, _known(given, (), "EDM"))
    if path.suffix == ".safetensors":
        raise ConversionError(
            f"{path.name} holds weights alone; give the folder that has its config.json too."
        )
    if start[:2] != b"PK" and _LEGACY not in start:
        raise ConversionError(f"{path} is not a checkpoint. Known are {KNOWN}.")
    found = load_torch(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise ConversionError(f"{path} holds {type(found).__name__}, not weights by name.")
    if isinstance(found.get("ema"), Mapping) and isinstance(found.get("model"), Mapping):
        if "shadow_params" in found["ema"]:
            return song.read(found, _known(given, song.OPTIONS, "score_sde_pytorch"))
    tensors = strip_prefix({str(k): v for k, v in found.items()}, "module.")
    if "time_embed.0.weight" in tensors:
        return openai.read(tensors, _known(given, openai.OPTIONS, "OpenAI"))
    if "temb.dense.0.weight" in tensors:
        return ho.read(tensors, _known(given, ho.OPTIONS, "DDPM"))
    raise ConversionError(
        f"{path} is of an unknown layout (it begins with {', '.join(list(tensors)[:3])}). "
        f"Known are {KNOWN}."
    )


def _known(given: Mapping[str, Any], names: tuple[str, ...], layout: str) -> Mapping[str, Any]:
    check_names(given, names, f"{layout} files: the option", ConversionError)
    return given


def _fetch(name: str) -> Path:
    """The folder of a hub id, through huggingface_hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).suffix in (".pth", ".pt", ".pkl"):
        raise ConversionError(f"there is no file or folder {name!r}.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConversionError(
            f"there is no file or folder {name}. If it is a hub id, pip install huggingface_hub."
        ) from error
    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin"])
        )  # fmt: skip
    except Exception as error:  # no network, no such model, no permission: many classes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(f"there is no folder {name}, and the hub says: {first}") from error


def _folder(folder: Path, given: Mapping[str, Any]) -> Foreign:
    """A folder of diffusers: a model or a pipeline."""
    if (folder / "checkpoints").is_dir():
        raise ConversionError(f"{folder} is a run of this toolkit already; use it as --workdir.")
    named = (folder / name for name in ("unet", "transformer"))
    inner = next((p for p in named if (p / "config.json").is_file()), folder)
    if not (inner / "config.json").is_file():
        raise ConversionError(f"{inner} has no config.json, so it is not a folder of diffusers.")
    said = _json(inner / "config.json")
    kind = said.get("_class_name", "no class")
    readers = dict.fromkeys(("UNet2DModel", "UNetUnconditionalModel", "NCSNpp"), diffusers.read)
    readers |= dict.fromkeys(diffusers_transformer.CLASSES, diffusers_transformer.read)
    if kind not in readers:
        raise ConversionError(
            f"{inner}/config.json is of {kind}; {', '.join(readers)} can be imported."
        )
    files = [p for p in sorted(inner.glob("*.safetensors")) if "non_ema" not in p.name]
    files = files or sorted(inner.glob("*.bin"))
    if len(files) != 1:
        raise ConversionError(f"{inner} has {len(files)} weight files; one is needed.")
    one = files[0]
    tensors = load_safetensors(one) if one.suffix == ".safetensors" else load_torch(one)
    if not isinstance(tensors, Mapping):
        raise ConversionError(f"{one} holds {type(tensors).__name__}, not weights by name.")
    places = (folder / "scheduler", folder, inner.parent / "scheduler")
    scheduler = next(
        (s for p in places if (s := p / "scheduler_config.json").is_file()), None
    )  # fmt: skip
    return readers[kind](said, _json(scheduler) if scheduler else None, tensors, given)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any], "the description of a network", ConversionError)
