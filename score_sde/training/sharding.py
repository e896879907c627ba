"""A network divided over the processes, of which each keeps an equal part (FSDP, 2304.11277).

The part of a tensor is a block of its rows (axis 0). The rows of the others come before a layer
group runs, forward or backward, and are dropped after it; its gradients are averaged and each
process keeps those of its rows. Optimisers and averages then need the parts alone:

    one process       4 bytes x (weights + gradients + 2 moments + averages)
    each of N         1/N of that, and the group that is running

Whole tensors exist one at a time, to be written to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from score_sde import distributed
from score_sde.distributed import DistributedError

# A layer group has at most this fraction of a network, if it can be divided further, and at most
# half of a process's part: it is whole, with its gradients, while it runs.
GROUPS = 8


def shard(net: nn.Module, device: torch.device) -> None:
    """Divide the parameters of a network, all processes the same one, in place; all call it.

    The parts go to ``device``; the network may be on the CPU, and only a group at a time is whole
    on the device. All processes must then call it equally often. Raises DistributedError where
    this PyTorch cannot.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise DistributedError(
            f"training.sharding=full needs PyTorch 2.6 or newer, with FSDP (this is "
            f"{torch.__version__}). Use training.sharding=none, or another PyTorch."
        ) from error
    if device.type == "cuda" and "nccl" not in torch.distributed.get_backend():
        raise DistributedError(
            "training.sharding=full needs NCCL to connect GPUs, which this PyTorch lacks. "
            "Use training.sharding=none."
        )
    mesh = init_device_mesh(device.type, (distributed.size(),))
    _lay_out(net)
    size = sum(p.numel() for p in net.parameters())
    most = size // max(GROUPS, 2 * distributed.size())
    for group in [*_groups(net, most), net]:
        # By default the outermost weights would stay whole after a call without gradients.
        fully_shard(group, mesh=mesh, reshard_after_forward=True)


def _groups(module: nn.Module, most: int) -> Iterator[nn.Module]:
    """The outermost modules within that are called by themselves and have not too many parameters.

    Lists, and others without a forward of their own, are never called, and a row of modules may be
    called in pieces.
    """
    for child in module.children():
        size = sum(p.numel() for p in child.parameters())
        alone = type(child).forward not in (nn.Module.forward, nn.Sequential.forward)
        if alone and size and (size <= most or not any(child.children())):
            yield child
        elif size:
            yield from _groups(child, most)


def _lay_out(net: nn.Module) -> None:
    """Weights row by row, as FSDP wants them; where they were channels_last, the features are."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_contiguous():
            module.register_forward_pre_hook(_channels_last)
    with torch.no_grad():
        for p in net.parameters():
            p.data = p.data.contiguous()


def _channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].to(memory_format=torch.channels_last),)


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes have parts of it (a DTensor, whose module is slow to import)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory: rows (n, ...) of a sharded tensor, or all of it."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one all processes call it, and all receive a new tensor."""
    if not is_sharded(tensor):
        return tensor
    with distributed.exchange():
        return cast(Any, tensor).full_tensor()


def rows_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor the rows that are this process's of ``like``, which has its shape."""
    if not is_sharded(like):
        return tensor
    parts = tensor.chunk(distributed.size())
    return parts[distributed.rank()] if distributed.rank() < len(parts) else tensor[:0]


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor divided as ``like`` is, of its shape and on its device; one that is stays."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    return as_part(rows_of(tensor, like).to(like.device, copy=True), like)


def as_part(rows: Tensor, like: Tensor) -> Tensor:
    """The tensor of the shape of ``like`` of which this process has these rows."""
    if not is_sharded(like):
        return rows
    from torch.distributed.tensor import DTensor

    own = cast(DTensor, like)
    return DTensor.from_local(
        rows, own.device_mesh, own.placements, shape=own.shape, stride=own.stride()
    )


def load_net(net: nn.Module, state: dict[str, Tensor]) -> None:
    """`net.load_state_dict` of whole tensors, into a network that may be sharded."""
    own = net.state_dict()
    net.load_state_dict(
        {name: divided_like(value, own.get(name, value)) for name, value in state.items()}
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of whole tensors, for parameters that may be sharded."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def divided(value: Any, p: Tensor) -> Any:
        alike = isinstance(value, Tensor) and value.shape == p.shape
        return divided_like(value, p) if alike else value

    states = {
        i: {name: divided(value, params[i]) for name, value in values.items()}
        for i, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})


def take_part(value: Any) -> None:
    """Give the parts of all sharded tensors in nested dicts and lists to the process that writes.

    For the processes that do not, while that one takes `whole` of each, in this order.
    """
    if isinstance(value, Tensor):
        whole(value)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            take_part(item)
