"""In which order the numbers of images lie in memory: kernels of convolutions read channels last at their fastest.

On a processor a training of convolutions takes 1.2 to 1.5 times as long with channels first. Results are the same but
for rounding. A model that cannot compute so stays as it was made: ``view`` of what a convolution gave fails then.
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
    """Let a module be trained with its convolutions' weights channels last while this is open; gives whether they are.

    They are on the CPU, unless the module cannot be trained so.

    Args:
        module: Its parameters stay the same objects.
        example: Two or more rows of its inputs, on its device.
    """
    fits = _fits(module, example, trains=True)
    if fits:
        _arrange(module, torch.channels_last)
    try:
        yield fits
    finally:
        if fits:
            _arrange(module, torch.contiguous_format)


def settle(module: nn.Module, example: Mapping[str, Tensor]) -> bool:
    """Lay the weights of a module that is only asked channels last for good, where `channels_last` would.

    Args:
        module: In evaluation mode; its parameters stay the same objects.
        example: Rows of its inputs, on its device.
    """
    fits = _fits(module, example, trains=False)
    if fits:
        _arrange(module, torch.channels_last)
    return fits


def _fits(module: nn.Module, example: Mapping[str, Tensor], *, trains: bool) -> bool:
    images = any(isinstance(layer, _IMAGES) for layer in module.modules())
    return images and _on_cpu(module) and _works(module, example, trains)


def _arrange(module: nn.Module, order: torch.memory_format) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            # A clone, for `contiguous` leaves a tensor with one channel as it is, and kernels then take the slow way.
            parameter.data = parameter.data.clone(memory_format=order)


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in module.parameters())


def _works(module: nn.Module, example: Mapping[str, Tensor], trains: bool) -> bool:
    """Ask a copy about an example, or train it on that, as a test."""
    # Whatever a user's forward() raises, the module computes as it was made; what it prints would be there twice.
    with contextlib.suppress(Exception), quiet(), torch.set_grad_enabled(trains):
        trial = copy.deepcopy(module).train(trains)
        _arrange(trial, torch.channels_last)
        outputs = call(trial, {name: value.clone() for name, value in example.items()})
        graded = [value.float().sum() for value in outputs.values() if value.requires_grad]
        if trains:
            torch.autograd.backward(torch.stack(graded).sum())
        return True
    return False
