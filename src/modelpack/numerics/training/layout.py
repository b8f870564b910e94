"""In which order the numbers of images lie in memory: kernels of convolutions read channels last at their fastest.

On a processor a training of convolutions takes 1.2 to 1.5 times as long with channels first.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics.calling import call
from modelpack.numerics.silence import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_IMAGES = (nn.Conv2d, nn.ConvTranspose2d)


@contextlib.contextmanager
def channels_last(module: nn.Module, example: Mapping[str, Tensor]) -> Iterator[bool]:
    """Let the weights of a module's convolutions lie channels last for as long as this is open; gives whether they do.

    They do on the CPU, unless the module cannot be trained so: ``view`` of what a convolution gave fails then. Its
    results are the same but for rounding.

    Args:
        module: Its parameters stay the same objects.
        example: Two or more rows of its inputs, on its device.
    """
    fits = _on_cpu(module) and any(isinstance(layer, _IMAGES) for layer in module.modules()) and _works(module, example)
    if fits:
        _arrange(module, torch.channels_last)
    try:
        yield fits
    finally:
        if fits:
            _arrange(module, torch.contiguous_format)


def _arrange(module: nn.Module, order: torch.memory_format) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            # A clone, for `contiguous` leaves a tensor with one channel as it is, and kernels then take the slow way.
            parameter.data = parameter.data.clone(memory_format=order)


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in module.parameters())


def _works(module: nn.Module, example: Mapping[str, Tensor]) -> bool:
    """Train a copy on an example, as a test."""
    # Whatever a user's forward() raises, the module is trained as it was made; what it prints would be there twice.
    with contextlib.suppress(Exception), quiet():
        trial = copy.deepcopy(module).train()
        _arrange(trial, torch.channels_last)
        outputs = call(trial, {name: value.clone() for name, value in example.items()})
        graded = [value.float().sum() for value in outputs.values() if value.requires_grad]
        torch.autograd.backward(torch.stack(graded).sum())
        return True
    return False
