"""Layers that multiply by a weight: the weight as a matrix of outputs by inputs, and what the outputs are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

READABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers whose inputs can be looked at."""


@dataclass(frozen=True)
class Layer:
    """A weight, and the layers that multiply by it.

    Attributes:
        name: The weight's name in the weights file.
        users: At least one; more where they share the weight.
    """

    name: str
    users: tuple[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, ...]

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return self.users[0].weight

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a linear layer."""
        return getattr(self.users[0], "groups", 1)

    def matrix(self) -> Tensor:
        """Give a float64 copy, ``(groups, outputs, inputs)``; neighbouring inputs are neighbouring channels."""
        weight = self.weight.detach().double()
        return weight.movedim(1, -1).reshape(self.groups, len(weight) // self.groups, -1).clone()

    @torch.no_grad()
    def put(self, matrix: Tensor) -> None:
        """Take over the numbers of such a matrix, in place."""
        shape = self.weight.shape
        self.weight.copy_(matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1))


def inputs(layer: nn.Module, values: Tensor) -> Tensor:
    """Give what each output of a layer is a weighted sum of.

    Args:
        layer: Linear, or a convolution over one or two dimensions.
        values: Its input, with a batch dimension.

    Returns:
        ``(groups, rows, inputs)``, the inputs in the order of `Layer.matrix`.
    """
    if isinstance(layer, nn.Linear):
        return values.reshape(1, -1, values.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d)), "others are left alone"
    flat = isinstance(layer, nn.Conv1d)
    if layer.padding_mode == "zeros":
        padded = functional.pad(values, layer._reversed_padding_repeated_twice)  # noqa: SLF001  'same' is resolved there
    else:
        padded = functional.pad(values, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)  # noqa: SLF001
    image = padded.unsqueeze(-2) if flat else padded

    def both(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *sizes) if flat else sizes

    patches = functional.unfold(image, both(layer.kernel_size), both(layer.dilation), stride=both(layer.stride))
    channels = layer.in_channels // layer.groups
    cut = patches.reshape(len(values), layer.groups, channels, -1, patches.shape[-1])
    return cut.permute(1, 0, 4, 3, 2).reshape(layer.groups, -1, patches.shape[1] // layer.groups)
