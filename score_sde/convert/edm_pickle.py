"""EDM's pickles, read without running what is in them.

Each network in such a file comes with the source code of its class, which EDM executes to load
it. Here a pickle may name nothing but tensors, plain containers and bare layers; the source is
never touched, and everything else is refused by name.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checks import check_pickle, check_tensors, reading
from score_sde.convert.parts import ConversionError, State


class Bare:
    """A layer or class of which only the contents are kept."""

    def __init__(self, *_: Any):
        self.name = ""
        self.contents: dict[str, Any] = {}

    def __setstate__(self, contents: Any) -> None:
        self.contents = dict(contents)


def _bare(meta: Mapping[str, Any]) -> Bare:
    """In place of EDM's reconstruction, which runs ``meta["module_src"]``."""
    bare = Bare()
    bare.name, bare.contents = str(meta["class_name"]), dict(meta["state"])
    return bare


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _scalar(dtype: np.dtype, data: bytes) -> float:
    if dtype.kind not in "fiub" or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("a NumPy scalar that is not a number")
    return np.frombuffer(data, dtype)[0].item()


ALLOWED: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _bare,
    "dnnlib.util.EasyDict": dict,
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "_codecs.encode": lambda text, coding: str(text).encode("latin1"),
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": tuple,
    "torch.device": lambda *_: "cpu",
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Loads EDM's pickles; ConversionError names the first global outside the list."""

    def find_class(self, module: str, name: str) -> Any:
        """A harmless stand-in for a global of the list."""
        full = f"{module}.{name}"
        if full in ALLOWED:
            return ALLOWED[full]
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return Bare
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise ConversionError(
            f"this pickle asks for {full}, which no EDM network needs; loading it could run "
            "foreign code. Nothing of it was executed."
        )

    def persistent_load(self, pid: Any) -> Any:
        """Nothing is stored outside the pickle."""
        raise ConversionError("this pickle refers to data outside of it; it is not EDM's.")


def load_pickle(path: Path) -> tuple[str, dict[str, Any], State]:
    """Class of the network, its arguments and its tensors; nothing in the file is executed."""
    with reading(path, "a readable EDM pickle", ConversionError):
        data = path.read_bytes()
        check_pickle(data)
        found = RestrictedUnpickler(io.BytesIO(data)).load()
    net = found.get("ema") if isinstance(found, dict) else found
    if not isinstance(net, Bare) or "_modules" not in net.contents:
        raise ConversionError(f"{path.name} is a pickle without a network under 'ema'.")
    tensors: State = {}
    _collect(net, "", tensors)
    with reading(path, "a readable EDM pickle", ConversionError):
        check_tensors(tensors, len(data))
    return net.name, dict(net.contents.get("_init_kwargs") or {}), tensors


def _collect(module: Bare, prefix: str, tensors: State) -> None:
    for kind in ("_parameters", "_buffers"):
        for name, value in (module.contents.get(kind) or {}).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
    for name, child in (module.contents.get("_modules") or {}).items():
        if isinstance(child, Bare):
            _collect(child, f"{prefix}{name}.", tensors)
