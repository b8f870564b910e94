"""A crew: the processes that train one model together, and what they tell each other.

Numbers, JSON and the bytes of tensors travel between them, never a pickle. A process that was not enrolled is a crew of
one: every function here then gives back what it was given, without waiting for anybody.
"""

from __future__ import annotations

import contextlib
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_PEER_GONE = re.compile(r"gloo|nccl|tcpstore|connection (closed|reset)|broken pipe", re.IGNORECASE)


@contextlib.contextmanager
def enrolled(
    rank: int, size: int, device: torch.device, meeting: tuple[str, int, bool], patience: float
) -> Iterator[None]:
    """Make this process one of a crew.

    Args:
        rank: Its number, from 0.
        size: How many they are.
        device: What it computes on; NCCL carries tensors between CUDA devices, gloo all others.
        meeting: Address and port where they find each other, and whether this process opens it.
        patience: Seconds that it waits for the others, each time; then they count as lost.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    address, port, opens = meeting
    wait = timedelta(seconds=patience)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, size, is_master=opens, timeout=wait
    )
    dist.init_process_group(_BACKENDS[device.type], store=store, rank=rank, world_size=size, timeout=wait)
    yield
    # Not after an error: leaving in good order would wait for those who are gone.
    dist.destroy_process_group()


def size() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Give this process's number; the first, 0, is the one that reads and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process is the first."""
    return rank() == 0


def apart() -> tuple[int, ...]:
    """Give what a seed is chained with so that no two processes draw the same; the first draws as one alone would."""
    return (rank(),) if rank() else ()


def told(value: Any = None) -> Any:
    """Give every process the JSON value that the first one passes."""
    if size() == 1:
        return value
    data = json.dumps(value).encode() if leads() else b""
    length = torch.tensor([len(data)])
    dist.broadcast(length, 0)
    carrier = torch.frombuffer(bytearray(data), dtype=torch.uint8) if leads() else _blank(int(length))
    dist.broadcast(carrier, 0)
    return json.loads(carrier.numpy().tobytes())


def shown(tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Give every process the tensors on the CPU that the first one passes."""
    if size() == 1:
        return dict(tensors or {})
    given = dict(tensors or {}) if leads() else {}
    found = {}
    for name, kind, shape in told([[name, str(value.dtype), list(value.shape)] for name, value in given.items()]):
        dtype = getattr(torch, kind.removeprefix("torch."))
        value = given[name].contiguous() if leads() else torch.empty(shape, dtype=dtype)
        if value.numel():
            dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
        found[name] = value
    return found


def compared(numbers: Sequence[int]) -> list[list[int]]:
    """Give the numbers that every process passes, in the order of their ranks; each passes as many."""
    if size() == 1:
        return [list(numbers)]
    mine = torch.tensor(numbers, dtype=torch.int64)
    return [row.tolist() for row in _all(mine)]


def summed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Add up the numbers of all processes by name; the first one has every name."""
    if size() == 1:
        return dict(numbers)
    names = told(list(numbers))
    total = torch.tensor([numbers.get(name, 0.0) for name in names], dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def stacked(row: Tensor) -> Tensor:
    """Stack the rows of all processes, of one length and without gradient: shape (processes, length)."""
    return torch.stack(_all(row)) if size() > 1 else row[None]


def total(tensor: Tensor) -> Tensor:
    """Add up the tensors of all processes, of one shape and without gradient."""
    added = tensor.contiguous().clone()
    if size() > 1:
        dist.all_reduce(added)
    return added


def _all(mine: Tensor) -> list[Tensor]:
    found = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(found, mine.contiguous())
    return found


def _blank(length: int) -> Tensor:
    return torch.empty(length, dtype=torch.uint8)


@torch.no_grad()
def align(module: nn.Module) -> None:
    """Put the first process's parameters and buffers into every process's module."""
    for tensor in (*module.parameters(), *module.buffers()) if size() > 1 else ():
        dist.broadcast(tensor.data, 0)


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together whose parts lie with the processes; all of them must ask at the same time."""
    return tensor.full_tensor() if _in_parts(tensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Put a value into a tensor, or this process's part of the value where parts lie with the processes."""
    part = dealt_like(value, tensor)
    if _in_parts(tensor) and _in_parts(part):
        tensor.to_local().copy_(part.to_local())
    else:
        tensor.copy_(part)


def dealt_like(value: Tensor, pattern: Tensor) -> Tensor:
    """Give a value the device of a pattern, and its parts to the processes as the pattern has them."""
    moved = value.to(pattern.device)
    if not _in_parts(pattern) or _in_parts(moved):
        return moved
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)


def part(tensor: Tensor) -> Tensor:
    """Give what this process holds of a tensor."""
    return tensor.to_local() if _in_parts(tensor) else tensor


def _in_parts(tensor: Tensor) -> TypeGuard[DTensor]:
    if size() == 1:
        return False  # and the half second that importing the next line takes is saved
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def lost(error: BaseException) -> bool:
    """Tell whether an error says that another process is gone, rather than that something is wrong in this one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, dist.DistError) or (isinstance(link, RuntimeError) and _PEER_GONE.search(str(link))):
            return True
        link = link.__cause__ or link.__context__
    return False
