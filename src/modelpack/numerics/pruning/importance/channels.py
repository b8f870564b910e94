"""Reading weights by channel: a value for each block of a group, from tensors of the shape of its layers' weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelpack.numerics.pruning.surgery import MATRICES, is_depthwise, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from modelpack.numerics.pruning.groups import Group
    from modelpack.numerics.pruning.surgery import Member, Side

WHOLE: tuple[Side, ...] = ("out", "in", "both")
"""All weights that go with a channel: those that make it, read it, or pass it on."""

READERS: tuple[Side, ...] = ("in",)
"""The weights that read a channel: without them it means nothing to the rest."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Slice:
    """The part that one layer's weight has in a group.

    Attributes:
        path: The layer.
        weight: Its weight.
        side: Which of its dimensions shrinks.
        parts: Parts of a grouped convolution.
        places: Indices of that dimension.
        blocks: For each of them, the block that it goes with.
        count: Number of blocks.
        leads: Whether that dimension is the first one.
    """

    path: str
    weight: Tensor
    side: Side
    parts: int
    places: Tensor
    blocks: Tensor
    count: int
    leads: bool

    def summed(self, values: Tensor) -> Tensor:
        """Sum values of the weight's shape by block, in float64."""
        by_place = self._by_place(values).sum(1, dtype=torch.float64)
        total = torch.zeros(self.count, dtype=torch.float64, device=values.device)
        return total.index_add_(0, self.blocks, by_place[self.places])

    def rows(self, values: Tensor) -> Tensor:
        """Give values of the weight's shape as one row per block, in float64; short ones end with zeros."""
        by_place = self._by_place(values).double()
        order = torch.argsort(self.blocks, stable=True)
        blocks = self.blocks[order]
        counts = torch.bincount(blocks, minlength=self.count)
        starts = counts.cumsum(0) - counts
        within = torch.arange(len(blocks), device=blocks.device) - starts[blocks]
        table = by_place.new_zeros(self.count, int(counts.max()), by_place.shape[1])
        table[blocks, within] = by_place[self.places[order]]
        return table.flatten(1)

    def _by_place(self, values: Tensor) -> Tensor:
        """Bring the dimension that shrinks to the front, and flatten the others."""
        if self.leads:
            return values.flatten(1)
        # Dimension 1 counts within one part of a grouped convolution.
        parts = values.reshape(self.parts, -1, values.shape[1], values[0, 0].numel())
        return parts.transpose(1, 2).reshape(self.parts * values.shape[1], -1)


def slices(module: nn.Module, group: Group, sides: Collection[Side]) -> list[Slice]:
    """List the weights of a group's matrices on some sides."""
    owner = torch.zeros(len(group.members[0].places), dtype=torch.long)
    for block, roots in enumerate(group.blocks):
        owner[list(roots)] = block
    return [_slice(module, member, owner, len(group.blocks)) for member in _matrices(module, group, sides)]


def by_block(module: nn.Module, group: Group, sides: Collection[Side], measure: Callable[[Slice], Tensor]) -> Tensor:
    """Sum a measure over all of a group's weights on some sides, by block; zeros where there are none."""
    return sum(
        (part.summed(measure(part)).cpu() for part in slices(module, group, sides)),
        start=torch.zeros(len(group.blocks), dtype=torch.float64),
    )


def relative(values: Tensor) -> list[float]:
    """Divide by the mean, so that groups of layers of different sizes can be compared; 1 is the group's mean."""
    return (values / (float(values.mean()) or 1.0)).tolist()


def _matrices(module: nn.Module, group: Group, sides: Collection[Side]) -> Iterator[Member]:
    for member in group.members:
        if member.side in sides:
            layer = module.get_submodule(member.path)
            if isinstance(layer, MATRICES) and (member.side != "both" or is_depthwise(layer)):
                yield member


def _slice(module: nn.Module, member: Member, owner: Tensor, count: int) -> Slice:
    layer = module.get_submodule(member.path)
    assert isinstance(layer, MATRICES)
    device = layer.weight.device
    pairs = [(place, root) for root, places in enumerate(member.places) for place in places]
    places, roots = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return Slice(
        member.path, layer.weight, member.side, parts_of(layer),
        places.to(device), owner[roots].to(device), count,
        leads=member.side == "both" or (member.side == "in") == isinstance(layer, _TRANSPOSED),
    )  # fmt: skip
