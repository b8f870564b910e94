"""A smaller model, and how it came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack.numerics.pruning.surgery import MATRICES, channels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


@dataclass(frozen=True)
class Pruned:
    """A smaller model and how it came about.

    Attributes:
        module: The model without the removed channels.
        fraction: What stayed of the target's quantity, measured on the smaller model.
        layers: By changed layer: path, type, channels in and out before and after.
        left: Layer → why its channels were left alone.
        heads: Removed and all attention heads.
        rounding: Group → what its channels are a multiple of.
        refitted: Layers that were fitted to what they gave before.
        unfitted: Layer that lost inputs, but was not → why; empty where none was to be.
    """

    module: nn.Module
    fraction: float
    layers: list[dict[str, Any]]
    left: Mapping[str, str]
    heads: tuple[int, int]
    rounding: Mapping[str, int]
    refitted: tuple[str, ...] = ()
    unfitted: Mapping[str, str] = field(default_factory=dict)


def changes(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """List the layers whose widths differ: path, type, channels in and out before and after."""
    smaller = dict(after.named_modules())
    rows = []
    for path, layer in before.named_modules():
        if isinstance(layer, MATRICES):
            old, new = _widths(layer), _widths(smaller[path])
            if old != new:
                rows.append({"layer": path, "type": type(layer).__name__, "before": old, "after": new})
    return rows


def _widths(layer: nn.Module) -> list[int]:
    return [channels_of(layer, "in"), channels_of(layer, "out")]
