"""Sparsity: single weights become exactly zero, in layers that keep their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modelpack.errors import StageError
from modelpack.numerics.fitting import moments, refit
from modelpack.numerics.sparsity import heads, layers, magnitude, sparsegpt, wanda
from modelpack.numerics.sparsity.layers import Found
from modelpack.numerics.sparsity.pattern import Pattern
from modelpack.numerics.zeros import Sparsity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from modelpack.numerics.fitting import Layer, Reading

Method = Literal["magnitude", "wanda", "sparsegpt"]

__all__ = ["Found", "Method", "Pattern", "Way", "heads", "layers", "sparsify"]


@dataclass(frozen=True)
class Way:
    """How zeros are chosen.

    Attributes:
        method: ``magnitude``, ``wanda`` or ``sparsegpt``.
        ratio: Fraction of zeros, 0 < ratio < 1; what the pattern says, where there is one.
        pattern: Where they may be; None for anywhere.
        together: With ``magnitude`` and no pattern, judge the weights of all layers together.
        refit: Fit the weights that stay to what the layer gave before.
        damping: Share of the mean square of a layer's inputs that is added to each, where weights change.
    """

    method: Method
    ratio: float
    pattern: Pattern | None = None
    together: bool = False
    refit: bool = False
    damping: float = 0.01

    @property
    def solves(self) -> bool:
        """Whether weights that stay change, which takes whole moments of what layers read."""
        return self.refit or self.method == "sparsegpt"

    @property
    def reads(self) -> bool:
        """Whether rows are needed."""
        return self.solves or self.method == "wanda"


def sparsify(
    module: nn.Module,
    found: Found,
    way: Way,
    reading: Reading | None = None,
    watch: Callable[[Sequence[Layer]], Iterable[Layer]] = lambda items: items,
) -> tuple[Sparsity, dict[str, str]]:
    """Make weights zero, in place.

    Args:
        module: In evaluation mode, on the device of the reading.
        found: Its layers.
        way: How zeros are chosen.
        reading: Rows, for a way that reads some.
        watch: Passes layers through while they are worked on, to show progress.

    Returns:
        What became zero, and the layers left dense with their reasons.

    Raises:
        StageError: When weights or inputs are not finite, or none of the layers is ever called.
    """
    for layer in found.layers:
        if not bool(layer.weight.isfinite().all()):
            raise StageError("the weights of this layer are not finite", where=layer.name.removesuffix(".weight"))
    done = []
    for layer, matrix in _made(module, found.layers, way, reading, watch):
        layer.put(matrix)
        done.append(layer)
    if not done:
        raise StageError("the model calls none of the layers that could be sparse", then="use `method: magnitude`")
    idle = {item.name.removesuffix(".weight"): "the model never calls it" for item in found.layers if item not in done}
    zeros = {layer.name: int((layer.weight == 0).sum()) for layer in done}
    return Sparsity(way.method, str(way.pattern or ""), zeros), {**found.left, **idle}


def _made(
    module: nn.Module,
    found: Sequence[Layer],
    way: Way,
    reading: Reading | None,
    watch: Callable[[Sequence[Layer]], Iterable[Layer]],
) -> Iterator[tuple[Layer, Tensor]]:
    """Give the new weights of each layer that the rows reach."""
    marked: dict[str, Tensor] = {}
    if way.together:
        marks = magnitude.zeros_of_all([layer.matrix().float() for layer in found], way.ratio)
        marked = {layer.name: mark for layer, mark in zip(found, marks, strict=True)}
    for share in moments.shares(found) if way.solves else [found]:
        if not way.reads:
            yield from ((layer, _chosen(layer.matrix(), None, way, marked.get(layer.name))) for layer in watch(share))
            continue
        assert reading is not None, "the way needs rows"
        seen = moments.gather(module, share, reading, whole=way.solves)
        for layer in watch([layer for layer in share if layer.name in seen]):
            weight, moment = layer.matrix(), seen[layer.name][0]
            made = _chosen(weight, moment, way, marked.get(layer.name))
            yield layer, refit.refitted(weight, made, moment, way.damping) if way.refit else made


def _chosen(weight: Tensor, moment: Tensor | None, way: Way, zero: Tensor | None) -> Tensor:
    """Give one layer's weights with zeros, by the moment that the way needs, or where they are marked already."""
    if moment is not None and way.method == "sparsegpt":
        return sparsegpt.solved(weight, moment, way.ratio, way.pattern, way.damping)
    if moment is not None and way.method == "wanda":
        power = moment.diagonal(dim1=-2, dim2=-1) if way.solves else moment
        return weight.masked_fill(wanda.zeros(weight, power, way.ratio, way.pattern), 0)
    return weight.masked_fill(magnitude.zeros(weight, way.ratio, way.pattern) if zero is None else zero, 0)
