"""One model trained by several processes: a replica each (DDP), or a part each (FSDP2)."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modelpack.errors import StageError
from modelpack.numerics.silence import quiet
from modelpack.numerics.training import crew, norms, sharing, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from modelpack.numerics.training.objective import Objective
    from modelpack.numerics.training.schedule import Parallel
    from modelpack.numerics.training.sharing import Share

_LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Pupil:
    """A student as this process trains it.

    Attributes:
        student: What to call, and whose parameters to optimize: the student itself, or a copy in parts.
        called: Computes the losses, and has gradients averaged over the processes.
    """

    student: nn.Module
    called: nn.Module

    def losses(self, inputs: dict[str, Tensor], beside: dict[str, Tensor], share: Share) -> dict[str, Tensor]:
        """Give the losses of this process's rows, each weighed by its share of the batch."""
        with sharing.taking(share):
            parts: dict[str, Tensor] = self.called(inputs, beside)
        return {name: value * share.weight for name, value in parts.items()}

    def adding(self) -> contextlib.AbstractContextManager[None]:
        """Let a replica's gradients add up in this process for as long as this is open; the next one averages them all.

        Where parameters lie in parts, that is done each time: whole gradients would take the memory that parts save.
        """
        return self.called.no_sync() if isinstance(self.called, DistributedDataParallel) else contextlib.nullcontext()


class _Asked(nn.Module):
    """A student and an objective as one module, so that what wraps it sees every tensor that a step trains."""

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.student, self.learned = student, objective.learned
        self.ask = objective.losses

    def forward(self, inputs: dict[str, Tensor], beside: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = self.ask(self.student, inputs, beside)
        return {name: value if name == "loss" else value.detach() for name, value in parts.items()}


@contextlib.contextmanager
def spread(student: nn.Module, objective: Objective, parallel: Parallel, device: torch.device) -> Iterator[Pupil]:
    """Spread a student over the crew for a training; alone, it is trained as it is.

    Args:
        student: A plain module on the device; it has the trained tensors at the end, in every process.
        objective: What it is asked for.
        parallel: ``ddp``: every process holds all of it; ``fsdp``: parameters, gradients and the optimizer's state lie
            in parts with the processes, and each block is put together while it computes.
        device: Where it computes.
    """
    if crew.size() == 1:
        yield Pupil(student, _Asked(student, objective))
    elif parallel == "ddp":
        with norms.synchronized(student), warnings.catch_warnings():
            # Of weights of one pixel, which lie alike in both orders of memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # Not all parameters of a user's model need take part in every output, or in any.
            called = DistributedDataParallel(
                _Asked(student, objective), forward_sync_buffers=False, find_unused_parameters=True
            )
            yield Pupil(student, called)
    else:
        crew.align(student)
        with quiet():  # of what torch keeps of a trace
            parts = copy.deepcopy(student)
        student.cpu()
        with norms.synchronized(parts):
            _shard(parts, device)
            if objective.learned is not None:
                crew.align(objective.learned)
                _shard(objective.learned, device)
            yield Pupil(parts, _Asked(parts, objective))
        tensors.restore(student.to(device), tensors.copied(parts))


def _shard(module: nn.Module, device: torch.device) -> None:
    """Deal a module's parameters out, block by block where it has a list of blocks.

    That is FSDP2, after Zhao et al. 2023 (arXiv 2304.11277).

    Raises:
        StageError: When a parameter is a single number, which has no parts.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise StageError(
                f"`parallel: fsdp` cannot deal out '{name}', which is a single number", then="take `parallel: ddp`"
            )
        parameter.data = parameter.data.contiguous()  # parts are cut from rows; convolutions may lie otherwise
    mesh = init_device_mesh(device.type, (crew.size(),))
    for block in _blocks(module):
        fully_shard(block, mesh=mesh)
    # Left whole after a forward pass, as torch would, its values could be neither read nor set between passes.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Find the outermost members of lists of modules that hold parameters and share none with the rest of the model."""
    owners: dict[int, set[nn.Module]] = {}
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(layer)
    found = []
    for member in _members(module):
        inside = set(member.modules())
        held = [id(parameter) for parameter in member.parameters()]
        if held and all(owners[key] <= inside for key in held):
            found.append(member)
    return found


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, _LISTS) and not isinstance(child, _LISTS):
            yield child
        else:
            yield from _members(child)
