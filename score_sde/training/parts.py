"""What `sharded` has written is read: each process its part, or one process the whole.

``.metadata`` is a pickle: what it may name is on a list, and nothing else is called.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from score_sde.checks import check_pickle, load_pickled
from score_sde.training.steps import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

State = dict[str, Tensor]
METADATA = "torch.distributed.checkpoint.metadata"
ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    *((METADATA, name) for name in (
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
}  # fmt: skip


def is_sharded_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint lies there in parts."""
    return (folder / ".metadata").is_file()


def is_part(name: str) -> bool:
    """Whether a file of this name is one of such a checkpoint."""
    return re.fullmatch(r"__\d+_\d+\.distcp|\.metadata(\.tmp)?", name) is not None


class _Unpickler(pickle.Unpickler):
    """Reads ``.metadata`` and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise CheckpointError(f".metadata names {module}.{name}, which no checkpoint needs")


def _reader(folder: Path) -> Any:
    """A reader of the parts that calls nothing a file names."""
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:
            data = (folder / ".metadata").read_bytes()
            check_pickle(data)
            found = _Unpickler(io.BytesIO(data)).load()
            for entry in found.state_dict_metadata.values():
                if type(entry).__name__ != "TensorStorageMetadata":
                    raise CheckpointError(".metadata lists what is no tensor")
            for place in found.storage_data.values():
                if not is_part(str(place.relative_path)):
                    raise CheckpointError(f".metadata names the file {place.relative_path}")
            _check_sizes(folder, found)
            found.storage_meta = found.storage_meta or dcp.metadata.StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    return Reader(folder)


def _check_sizes(folder: Path, found: Metadata) -> None:
    """CheckpointError for tensors that are said to be far larger than the parts that hold them."""
    entries: list[Any] = list(found.state_dict_metadata.values())
    said = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in entries)
    held = sum(part.stat().st_size for part in folder.glob("*.distcp"))
    if said > held:
        raise CheckpointError(f".metadata lists tensors of {said} bytes, and the parts have {held}")


def read_tensors(folder: Path, like: Mapping[str, Tensor], beginning: str = "") -> State:
    """The tensors whose names begin so: whole, or of each the rows that ``like`` says.

    like: by name, or by its beginning, of the same shape; sharded tensors there are read so.
    """
    import torch.distributed.checkpoint as dcp

    reader = _reader(folder)
    state: State = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(beginning):
            model = like.get(name, like.get(name.rpartition("/")[0]))
            if model is not None and model.shape == entry.size:
                state[name] = torch.empty_like(model, dtype=entry.properties.dtype)
            else:
                state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it reads alone: each process plans its own reading
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def read_weights(folder: Path, which: str) -> State:
    """The whole weights of that name."""
    found = read_tensors(folder, {}, f"{which}/")
    return {name.partition("/")[2]: value for name, value in found.items()}


def read_parts(
    folder: Path, names: list[str], like: Mapping[str, Tensor]
) -> tuple[dict[str, State], dict[str, Any]]:
    """The weights of these names, and the optimisers' state, as ``like`` has their tensors."""
    rest: Any = load_pickled(folder / "training.pt")
    states: dict[str, State] = {which: {} for which in names}
    for name, value in read_tensors(folder, like).items():
        which, _, key = name.partition("/")
        if which in states:
            states[which][key] = value
        else:
            number, (place, moment) = which.removeprefix("optimizer_"), key.split("/")
            rest["optimizers"][int(number)]["state"][int(place)][moment] = value
    return states, rest
