"""The moving average of weights along their training (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics.training import crew, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator


class Average:
    """Follows a module's parameters and buffers; those that hold integers are taken as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.named(module)}

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Take in the module's values after its update number `updates`; early ones weigh more than the decay says."""
        decay = min(self._decay, updates / (updates + 9))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for name, tensor in tensors.named(self._module):
            if tensor.is_floating_point():
                averaged.append(crew.part(self.values[name]))
                current.append(crew.part(tensor.detach()))
            else:
                self.values[name].copy_(tensor)
        torch._foreach_lerp_(averaged, current, 1 - decay)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Give the module the averaged values for as long as this is open."""
        live = {name: tensor.detach().clone() for name, tensor in tensors.named(self._module)}
        tensors.restore(self._module, self.values)
        try:
            yield
        finally:
            tensors.restore(self._module, live)
