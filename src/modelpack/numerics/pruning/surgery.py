"""Taking channels out of layers: tensors lose indices, attributes follow, ties stay."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MATRICES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
"""Layers that multiply by a weight; they have an input and an output side."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.modules.batchnorm._NormBase,)  # noqa: SLF001  the common class of batch and instance norms

Side = Literal["in", "out", "both", "tensor"]


@dataclass(frozen=True)
class Member:
    """One layer's part in a group.

    Attributes:
        path: The module, or the parameter where `side` is ``tensor``.
        side: Which of its dimensions; ``both`` for a layer that passes channels through.
        places: Root index → the indices in this layer that go with it.
        dimension: Dimension of the tensor, where `side` is ``tensor``.
    """

    path: str
    side: Side
    places: tuple[tuple[int, ...], ...]
    dimension: int = 0


class UncutError(ValueError):
    """A layer cannot lose these channels."""


def twin(module: nn.Module) -> nn.Module:
    """Copy a module.

    Raises:
        StageError: When Python cannot copy it.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise StageError(f"the model cannot be copied: {type(error).__name__}: {error}") from error


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a convolution treats every channel alone."""
    return isinstance(layer, MATRICES) and not isinstance(layer, nn.Linear) and layer.groups == layer.out_channels > 1


def parts_of(layer: nn.Module) -> int:
    """Give the number of parts of a grouped convolution; 1 for every other layer."""
    return int(getattr(layer, "groups", 1))


def channels_of(layer: Any, side: Side) -> int:
    """Give how many channels or features one of `MATRICES` reads (side ``in``), or makes."""
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    return int(getattr(layer, f"{'in' if side == 'in' else 'out'}_{kind}"))


def remove(module: nn.Module, drops: Mapping[tuple[str, Side, int], Iterable[int]]) -> None:
    """Remove indices from layers, in place.

    Args:
        module: The model.
        drops: (path, side, dimension) → indices in the layer's present numbering.

    Raises:
        UncutError: When a layer cannot lose them, or weights that were tied no longer fit each other.
    """
    modules = dict(module.named_modules())
    ties = _ties(module)
    cuts = _Cuts()
    for (path, side, dimension), indices in drops.items():
        dropped = sorted(set(indices))
        if not dropped:
            continue
        if side == "tensor":
            owner, _, name = path.rpartition(".")
            cuts.tensor(modules[owner], name, dimension, dropped)
        elif isinstance(modules[path], MATRICES):
            cuts.matrix(modules[path], side, dropped)
        else:
            cuts.channels(modules[path], dropped)
    for slots in ties:
        if len({id(getattr(modules[owner], name)) for owner, name in slots}) > 1:
            raise UncutError("weights that two layers share would no longer be the same")


def _ties(module: nn.Module) -> list[list[tuple[str, str]]]:
    slots: dict[int, list[tuple[str, str]]] = {}
    for path, child in module.named_modules():
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
            slots.setdefault(id(parameter), []).append((path, name))
    return [places for places in slots.values() if len(places) > 1]


class _Cuts:
    """Cuts of one operation; a tensor that two layers share is cut once and stays shared."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, int, tuple[int, ...], int], tuple[Tensor, Tensor]] = {}

    def matrix(self, layer: Any, side: Side, dropped: list[int]) -> None:
        """Cut a linear or convolutional layer on one side, or a depthwise one on both."""
        if side == "both":
            if not layer.groups == layer.in_channels == layer.out_channels:
                raise UncutError("a depthwise convolution with several outputs per channel")
            left = self.tensor(layer, "weight", 0, dropped)
            self.tensor(layer, "bias", 0, dropped)
            layer.groups = layer.in_channels = layer.out_channels = left
            return
        groups = parts_of(layer)
        leading = "in" if isinstance(layer, _TRANSPOSED) else "out"
        total = channels_of(layer, side)
        per_part = [sum(index // (total // groups) == part for index in dropped) for part in range(groups)]
        if len(set(per_part)) != 1:
            raise UncutError("the parts of a grouped convolution would differ in size")
        self.tensor(layer, "weight", 0 if side == leading else 1, dropped, parts=1 if side == leading else groups)
        if side == "out":
            self.tensor(layer, "bias", 0, dropped)
        kind = "features" if isinstance(layer, nn.Linear) else "channels"
        setattr(layer, f"{side}_{kind}", total - len(dropped))

    def channels(self, layer: Any, dropped: list[int]) -> None:
        """Cut a layer that passes channels through."""
        if isinstance(layer, _BATCH_NORMS):
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.tensor(layer, name, 0, dropped)
            layer.num_features -= len(dropped)
        elif isinstance(layer, nn.GroupNorm):
            for name in ("weight", "bias"):
                self.tensor(layer, name, 0, dropped)
            layer.num_channels -= len(dropped)
        elif isinstance(layer, nn.Embedding):
            layer.embedding_dim = self.tensor(layer, "weight", 1, dropped)
        elif isinstance(layer, nn.PReLU):
            if layer.num_parameters > 1:
                layer.num_parameters = self.tensor(layer, "weight", 0, dropped)
        elif any(True for _ in layer.parameters(recurse=False)):
            raise UncutError(f"a layer of the type {type(layer).__name__}")

    def tensor(self, owner: nn.Module, name: str, dimension: int, dropped: list[int], parts: int = 1) -> int:
        """Cut one tensor and give what is left of its dimension.

        With several `parts`, dimension 0 is divided into that many blocks, and each block loses its own share of
        dimension 1, as the filters of a grouped convolution do.
        """
        slots = {**dict(owner.named_parameters(recurse=False)), **dict(owner.named_buffers(recurse=False))}
        old = slots.get(name)
        if old is None:
            if name == "weight" and isinstance(owner, MATRICES):
                raise UncutError("a layer whose weight is computed")
            return 0
        key = (id(old), dimension, tuple(dropped), parts)
        if key not in self._done:
            cut = _blockwise(old.detach(), dropped, parts) if parts > 1 else _without(old.detach(), dimension, dropped)
            if isinstance(old, nn.Parameter):
                cut = nn.Parameter(cut, requires_grad=old.requires_grad)
            self._done[key] = (old, cut)  # the old tensor is kept alive, so that its id stays its own
        setattr(owner, name, self._done[key][1])
        return self._done[key][1].shape[dimension]


def _without(tensor: Tensor, dimension: int, dropped: list[int]) -> Tensor:
    gone = set(dropped)
    left = [index for index in range(tensor.shape[dimension]) if index not in gone]
    return tensor.index_select(dimension, torch.tensor(left, device=tensor.device, dtype=torch.long)).contiguous()


def _blockwise(weight: Tensor, dropped: list[int], parts: int) -> Tensor:
    width = weight.shape[1]
    blocks = weight.chunk(parts, dim=0)
    shares = [[index % width for index in dropped if index // width == part] for part in range(parts)]
    return torch.cat([_without(block, 1, share) for block, share in zip(blocks, shares, strict=True)])


@torch.no_grad()
def silence(module: nn.Module, members: Iterable[Member], roots: Iterable[int]) -> None:
    """Make the layers that read these channels ignore them, in place: what removing them should amount to."""
    modules = dict(module.named_modules())
    chosen = list(roots)
    for member in members:
        if member.side != "in":
            continue
        layer = modules[member.path]
        weight = layer.get_parameter("weight")
        indices = [index for root in chosen for index in member.places[root]]
        groups = parts_of(layer)
        if isinstance(layer, _TRANSPOSED):
            weight[indices] = 0
        else:
            rows, columns = weight.shape[0] // groups, weight.shape[1]
            for index in indices:
                part = index // columns
                weight[part * rows : (part + 1) * rows, index % columns] = 0
