"""The values of a module: its parameters and buffers, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics.training import crew

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through a module's parameters and buffers."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Collect a module's values, each whole, as copies on the CPU."""
    return {name: copy(tensor) for name, tensor in named(module)}


def copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, whole where the processes of a crew hold parts of it."""
    return crew.whole(tensor.detach()).cpu().clone()


def restore(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put a module's collected values back, in place."""
    fill(dict(named(module)), values)


def fill(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Put values into the tensors of the same names."""
    for name, tensor in places.items():
        crew.fill(tensor, values[name])


def not_finite(module: nn.Module) -> list[str]:
    """Name the trained parameters that hold NaN or infinity, as far as this process has them."""
    trained = {name: crew.part(value.detach()) for name, value in module.named_parameters() if value.requires_grad}
    largest = [norm.float() for norm in torch._foreach_norm(list(trained.values()), torch.inf)]  # noqa: SLF001
    if bool(torch.stack(largest).isfinite().all()):
        return []
    return [name for name, value in trained.items() if not bool(value.isfinite().all())]
