"""The layers of a model that can be sparse, and their weights as matrices of outputs by inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics import matrices

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from modelpack.numerics.sparsity.pattern import Pattern

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_UNFOLDED = (nn.Conv1d, nn.Conv2d)
_OTHERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Layer:
    """A weight that can be sparse, and the layers that multiply by it.

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


@dataclass(frozen=True)
class Found:
    """What can be sparse.

    Attributes:
        layers: In the order of the model.
        left: Layer → why it stays dense.
    """

    layers: tuple[Layer, ...]
    left: dict[str, str]


def find(
    module: nn.Module, exclude: Iterable[str], heads: Collection[str], pattern: Pattern | None, *, seen: bool
) -> Found:
    """Find the layers that can be sparse.

    Args:
        module: The model.
        exclude: Glob patterns of module paths that stay dense, with all that is in them.
        heads: Paths of layers that stay dense since they give outputs of the model.
        pattern: How zeros are to lie, where that matters.
        seen: Whether the inputs of the layers must be looked at.

    Raises:
        StageError: When a pattern matches no module, or no layer is left.
    """
    excluded, embeddings = matrices.named(module, exclude, "exclude"), matrices.shared(module)
    users: dict[int, list[nn.Module]] = {}
    names: dict[int, str] = {}
    left: dict[str, str] = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS, *_OTHERS)):
            continue
        reason = _reason(layer, embeddings, pattern, seen=seen) if path not in excluded else "excluded"
        if not reason and path in heads:
            reason = "it gives an output of the model"
        if reason:
            left[path] = reason
            continue
        users.setdefault(id(layer.weight), []).append(layer)
        names.setdefault(id(layer.weight), f"{path}.weight" if path else "weight")
    if not users:
        told = "; ".join(f"{path or 'the model'}: {reason}" for path, reason in list(left.items())[:5])
        raise StageError("the model has no layer that can be sparse", then=told or "it has no layer with weights")
    return Found(tuple(Layer(names[key], tuple(users[key])) for key in users), left)  # type: ignore[arg-type]


def _reason(layer: nn.Module, embeddings: set[int], pattern: Pattern | None, *, seen: bool) -> str:
    if isinstance(layer, _OTHERS):
        return f"a {type(layer).__name__} is left alone"
    foreign = matrices.foreign(layer, embeddings)
    if foreign:
        return foreign
    width = layer.get_parameter("weight").shape[1]
    if getattr(layer, "groups", 1) > 1 and width == 1:
        return "depthwise, so that it has few weights and needs them all"
    if seen and not isinstance(layer, (nn.Linear, *_UNFOLDED)):
        return f"the inputs of a {type(layer).__name__} cannot be looked at: use `method: magnitude`"
    if pattern is not None and width % pattern.of:
        return f"its {width} inputs are no multiple of {pattern.of}"
    return ""


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
    assert isinstance(layer, _UNFOLDED), "others are left alone"
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
