"""Many processes: who am I, which items are mine, and what do all of us have together.

Under `torchrun --nproc_per_node=N main.py ...` N processes run the same program; each takes its
`share` of every batch or list of items, and results are put together by `gather` and `total`.
Without torchrun there is one process, every item is its own, and nothing is set up.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from score_sde.checks import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOIN_SECONDS = 60.0  # for all processes to start
PATIENCE = timedelta(minutes=30)  # for the slowest process to arrive at an exchange

# A group ends by waiting for its threads, and a thread of gloo may wait for Python's lock to drop
# the tensors of the last exchange. Whoever has the group last ends it: a wrapped network, in C++,
# does so with the lock held, and both wait for ever. Python does so without: it keeps them longer.
_groups: list[dist.ProcessGroup] = []


@atexit.register
def _end() -> None:
    gc.collect()  # networks in cycles
    _groups.clear()


class DistributedError(UserError):
    """Processes that cannot work together; the message says why and what to do."""


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_writer() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def say(text: str) -> None:
    """Print once, however many processes there are."""
    if is_writer():
        print(text, flush=True)


def share(n: int) -> range:
    """The items out of n that are this process's: contiguous, as equal as can be, in order."""
    return range(rank() * n // size(), (rank() + 1) * n // size())


def wait() -> None:
    """Return when all processes have come here."""
    if size() > 1:
        total([0.0])


@contextmanager
def writer_first() -> Iterator[None]:
    """The writer runs the block alone, then all others do: for what is made once and then found."""
    if not is_writer():
        wait()
    yield
    if is_writer():
        wait()


def group_of_hosts() -> Any:
    """A group of all processes for what goes on in the background, apart from all other exchange.

    All of them call it.
    """
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def total(values: Sequence[float]) -> list[float]:
    """Sums over the processes, in float64; the same on all of them. No GPU is waited for."""
    if size() == 1:
        return list(values)
    summed = torch.tensor(list(values), dtype=torch.float64)
    with exchange():
        dist.all_reduce(summed)
    return summed.tolist()


def gather(mine: Tensor, n: int) -> Tensor:
    """Results (n, ...) of all items on the CPU, from each process's (len(share(n)), ...).

    All processes call it and all receive the result, in the order of the items.
    """
    if len(mine) != len(share(n)):
        raise UserError(f"{len(share(n))} of {n} items are this process's; got {len(mine)}.")
    if size() == 1:
        return mine.cpu()
    most = -(-n // size())
    padded = mine.new_zeros((most, *mine.shape[1:]), device="cpu")
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(size())]
    with exchange():
        dist.all_gather(parts, padded)
    counts = [(r + 1) * n // size() - r * n // size() for r in range(size())]
    return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])


def wrap(net: nn.Module) -> nn.Module:
    """The network as training calls it: gradients are averaged over the processes."""
    if size() == 1:
        return net
    device = next(net.parameters()).device
    return DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)


def without_exchange(net: nn.Module, when: bool) -> AbstractContextManager[None]:
    """While in use, backward passes add to the gradients of this process alone."""
    return net.no_sync() if when and isinstance(net, DistributedDataParallel) else nullcontext()


@contextmanager
def exchange() -> Iterator[None]:
    """While in use, what torch says of lost processes becomes a DistributedError."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: RuntimeError) -> DistributedError:
    """The sentence for an exchange that failed."""
    first = str(error).strip().splitlines()[0]
    return DistributedError(
        f"process {rank()} of {size()} lost the others ({first[:120]}): one of them has died, its "
        "own message is above. What was saved is whole; go on with --resume."
    )


def _variables() -> dict[str, str] | None:
    """What torchrun has set; None for a process on its own."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if "RANK" not in found and found.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in VARIABLES if name not in found]
    if missing:
        raise DistributedError(
            f"{', '.join(found)} are set but {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not. Start with `torchrun --nproc_per_node=N "
            f"main.py ...`, or unset them for one process."
        )
    return found


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, if there are any, for as long as the context lasts.

    device: what each would use alone; yields this process's own (cuda:LOCAL_RANK). NCCL connects
    GPUs where torch has it, gloo all else. Raises DistributedError if the processes do not meet.
    """
    found = None if dist.is_initialized() else _variables()
    if found is None:
        yield device
        return
    here, count = int(found["RANK"]), int(found["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", here))
    if device.type == "mps" and count > 1:
        raise DistributedError("one process can use mps. Drop torchrun, or give --device cpu.")
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if local >= there:
            raise DistributedError(
                f"process {local} has no GPU: this machine has {there}. Use torchrun "
                f"--nproc_per_node={there}, or --device cpu."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    nccl = device.type == "cuda" and dist.is_nccl_available()
    if device.type == "cuda" and not nccl and here == 0:
        print("NCCL is not in this build of torch: gloo connects the GPUs, which is slower")
    # Imported later, by DTensor, its default arguments would keep the group and its threads alive.
    importlib.import_module("torch.distributed.nn.functional")
    store = _meet(here, count, found)
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"  # what hosts tell each other goes by gloo
    dist.init_process_group(backend, store=store, rank=here, world_size=count, timeout=PATIENCE)
    assert dist.group.WORLD is not None
    _groups.append(dist.group.WORLD)
    yield device
    wait()
    dist.destroy_process_group()


def _meet(here: int, count: int, found: dict[str, str]) -> dist.Store:
    """The store in which all processes have signed; DistributedError names those that have not."""
    address = f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}"
    limit = timedelta(seconds=JOIN_SECONDS)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=limit))
    except (RuntimeError, ValueError) as error:
        taken = "address already in use" in str(error).lower() or "EADDRINUSE" in str(error)
        why = (
            "the port is in use: set another MASTER_PORT, or use torchrun --standalone"
            if taken
            else f"{count} processes did not join in {JOIN_SECONDS:.0f} s: {error}".splitlines()[0]
        )
        raise DistributedError(f"process {here} cannot meet the others at {address}; {why}.") from (
            error
        )
    store.set(f"score_sde/joined/{here}", "yes")
    names = {r: f"score_sde/joined/{r}" for r in range(count)}
    try:
        store.wait(list(names.values()), limit)
    except RuntimeError as error:
        absent = [str(r) for r, name in names.items() if not store.check([name])]
        raise DistributedError(
            f"process{'es' if len(absent) > 1 else ''} {', '.join(absent)} of {count} did not join "
            f"in {JOIN_SECONDS:.0f} s at {address}. Start all of them, with the same address."
        ) from error
    return dist.PrefixStore("score_sde", store)
