"""What a model costs, as a sum of products of widths: found once, then known for every choice of channels.

A layer's multiply-accumulates and its weights are in proportion to the channels it reads times those it makes, so
that a search over choices needs no model. What is in proportion to nothing known, such as products of activations,
counts as constant; whoever needs the truth counts the pruned model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from modelpack.numerics import macs
from modelpack.numerics.pruning.surgery import MATRICES, channels_of, is_depthwise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from modelpack.numerics.pruning.groups import Counts, Group


@dataclass(frozen=True)
class Width:
    """One dimension of a layer.

    Attributes:
        size: Its indices in the whole model.
        lost: By number of a group: the indices that go with each of its units.
    """

    size: int
    lost: Mapping[int, float]


@dataclass(frozen=True)
class Term:
    """A cost in proportion to some widths; constant where there are none."""

    cost: float
    widths: tuple[Width, ...] = ()


class Formula:
    """The fraction of a cost that stays, for how many units each group loses.

    Args:
        terms: What the cost is the sum of.
        groups: How many groups there are.

    Attributes:
        whole: The cost of all.

    >>> half = Width(8, {0: 1.0})
    >>> formula = Formula([Term(30.0, (half,)), Term(10.0)], 1)
    >>> formula((0,)), formula((4,))
    (1.0, 0.625)
    """

    def __init__(self, terms: Iterable[Term], groups: int) -> None:
        kept = [term for term in terms if term.cost > 0]
        widths = [width for term in kept for width in term.widths]
        self._costs = np.array([term.cost for term in kept], np.float64)
        self.whole = float(self._costs.sum()) or 1.0
        self._owner = np.array([number for number, term in enumerate(kept) for _ in term.widths], np.intp)
        self._lost = np.zeros((len(widths), groups))
        for row, width in enumerate(widths):
            for group, lost in width.lost.items():
                self._lost[row, group] = lost / width.size

    def __call__(self, counts: Counts) -> float:
        """Give the fraction that stays."""
        stays = np.ones(len(self._costs))
        np.multiply.at(stays, self._owner, 1 - self._lost @ np.asarray(counts, np.float64))
        return float(stays @ self._costs / self.whole)


def multiply_accumulates(module: nn.Module, feed: Mapping[str, Tensor], groups: Sequence[Group]) -> Formula:
    """Write the multiply-accumulates of one pass over `feed` as a formula."""
    modules = dict(module.named_modules())
    widths = _Widths(groups, modules)

    def terms() -> Iterator[Term]:
        for path, count in _own(macs.count_by_module(module, feed)).items():
            if isinstance(modules[path], MATRICES):
                yield Term(count, widths.of_matrix(path))
            else:
                yield Term(count, widths.of_heads(path))

    return Formula(terms(), len(groups))


def _own(counts: Mapping[str, int]) -> dict[str, int]:
    """Take from each module's count those of the modules inside it."""
    own = dict(counts)
    for path, count in counts.items():
        above = path
        while above:
            above = above.rpartition(".")[0]
            if above in own:  # lists of modules are never called
                own[above] -= count
                break
    return own


def layers(
    module: nn.Module, groups: Sequence[Group], products: Mapping[str, float], outputs: Mapping[str, float], rest: float
) -> Formula:
    """Write a cost that is known by layer as a formula.

    Args:
        module: The whole module.
        groups: What may be removed from it.
        products: Path of a layer with weights → what is in proportion to the channels it reads times those it makes.
        outputs: Path of such a layer → what is in proportion to those it makes.
        rest: What is in proportion to nothing.
    """
    widths = _Widths(groups, dict(module.named_modules()))

    def terms() -> Iterator[Term]:
        yield from (Term(cost, widths.of_matrix(path)) for path, cost in products.items())
        yield from (Term(cost, widths.of_outputs(path)) for path, cost in outputs.items())
        yield Term(rest)

    return Formula(terms(), len(groups))


def tensors(module: nn.Module, groups: Sequence[Group], weigh: Callable[[Tensor], float]) -> Formula:
    """Write what a module's tensors weigh as a formula; shared ones count once.

    Args:
        module: The whole module.
        groups: What may be removed from it.
        weigh: What one tensor counts for.
    """
    widths = _Widths(groups, dict(module.named_modules()))
    return Formula(
        (Term(weigh(tensor), widths.of_tensor(name, tensor)) for name, tensor in each_tensor(module)), len(groups)
    )


def each_tensor(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give a module's parameters and those of its buffers that are saved, shared ones once."""
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


class _Widths:
    """Which dimensions of which layers shrink with which groups."""

    def __init__(self, groups: Sequence[Group], modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._lost: dict[tuple[str, str, int], dict[int, float]] = {}
        self._heads: dict[str, Width] = {}
        for number, group in enumerate(groups):
            for member in group.members:
                share = sum(map(len, member.places)) / group.units
                self._lost.setdefault((member.path, member.side, member.dimension), {})[number] = share
            for counter in group.counters:
                self._heads.setdefault(counter.path, Width(group.units, {number: 1.0}))

    def _width(self, size: int, path: str, side: str, dimension: int = 0) -> tuple[Width, ...]:
        lost = self._lost.get((path, side, dimension))
        return (Width(size, lost),) if lost else ()

    def of_matrix(self, path: str) -> tuple[Width, ...]:
        return (*self.of_outputs(path), *self._inputs(path))

    def of_heads(self, path: str) -> tuple[Width, ...]:
        """What an attention module computes outside its layers goes with its heads."""
        return (self._heads[path],) if path in self._heads else ()

    def of_tensor(self, name: str, tensor: Tensor) -> tuple[Width, ...]:
        path, _, slot = name.rpartition(".")
        layer = self._modules[path]
        direct = [
            width
            for dimension in range(tensor.ndim)
            for width in self._width(tensor.shape[dimension], name, "tensor", dimension)
        ]
        if direct:
            return tuple(direct)
        if isinstance(layer, MATRICES):
            return {"weight": self.of_matrix, "bias": self.of_outputs}.get(slot, lambda _path: ())(path)
        # Of the layers that pass channels through, only an embedding's channels are not the first dimension.
        dimension = 1 if isinstance(layer, nn.Embedding) else 0
        return self._width(tensor.shape[dimension], path, "both") if tensor.numel() > 1 else ()

    def of_outputs(self, path: str) -> tuple[Width, ...]:
        layer = self._modules[path]
        return self._width(channels_of(layer, "out"), path, "both" if is_depthwise(layer) else "out")

    def _inputs(self, path: str) -> tuple[Width, ...]:
        return self._width(channels_of(self._modules[path], "in"), path, "in")
