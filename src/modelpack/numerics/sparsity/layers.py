"""The layers of a model that can be sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from modelpack.errors import StageError
from modelpack.numerics import matrices
from modelpack.numerics.fitting import READABLE, Layer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from modelpack.numerics.sparsity.pattern import Pattern

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OTHERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.RNNBase, nn.MultiheadAttention)


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
    if seen and not isinstance(layer, READABLE):
        return f"the inputs of a {type(layer).__name__} cannot be looked at: use `method: magnitude`"
    if pattern is not None and width % pattern.of:
        return f"its {width} inputs are no multiple of {pattern.of}"
    return ""
