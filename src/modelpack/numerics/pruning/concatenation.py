"""Concatenated channels: which of them came from which layer, where torch-pruning takes all to be the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from torch_pruning.ops import OPTYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHANNELS = 1
"""The dimension of channels."""

_BEHIND = 1
"""The slot of a dependency's index mappings that concatenations use."""


@dataclass(frozen=True)
class Shift:
    """Moves indices into the place that one input has in a concatenation, or back out of it.

    Attributes:
        first: Where the input begins in the concatenation.
        end: Where it ends.
        back: Whether indices of the concatenation become those of the input; those of other inputs go.
    """

    first: int
    end: int
    back: bool

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """Move indices with their roots."""
        if self.back:
            return [item._replace(idx=item.idx - self.first) for item in indices if self.first <= item.idx < self.end]
        return [item._replace(idx=item.idx + self.first) for item in indices]


def mend(graph: Any) -> None:
    """Say where each input lies in the concatenations for which torch-pruning's dependency graph does not say it.

    It gives up where the next layer reads another number of features than are concatenated, as one does behind
    ``flatten``.
    """
    for node in graph.module2node.values():
        if node.type == OPTYPE.CONCAT and getattr(node.grad_fn, "_saved_dim", None) == _CHANNELS:
            links = [link for link in node.dependencies if link.target in node.inputs]
            sizes = node.module.concat_sizes
            if sizes and None not in sizes and all(link.index_mapping[_BEHIND] is None for link in links):
                _place(node, list(pairwise(accumulate(sizes, initial=0))))


def _place(node: Any, places: Sequence[tuple[int, int]]) -> None:
    done: list[Any] = []
    for source, (first, end) in zip(node.inputs, places, strict=True):
        for owner, target, back in ((node, source, True), (source, node, False)):
            # The same input may stand in several places; each has a dependency of its own.
            free = (link for link in owner.dependencies if link.target is target and not any(link is x for x in done))
            link = next(free, None)
            if link is not None:
                link.index_mapping[_BEHIND] = Shift(first, end, back)
                done.append(link)
