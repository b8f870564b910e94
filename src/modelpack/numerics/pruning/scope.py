"""Among which units the least important are looked for.

* ``global``: all of them; importances of different groups are compared.
* ``layer``: those of one group; every group loses the same share.
* ``isomorphic``: those of groups of the same topology, whose importances are alike by construction; every such class
  loses the same share (Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from modelpack.numerics.pruning.surgery import MATRICES

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch import nn

    from modelpack.numerics.pruning.groups import Group
    from modelpack.numerics.pruning.surgery import Member

Scope = Literal["global", "layer", "isomorphic"]


def keys(
    scope: Scope, module: nn.Module, groups: Sequence[Group], scores: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Turn importances into one order over all units: the lowest key goes first.

    Args:
        scope: Among which units importances are compared.
        module: The model.
        groups: What may lose units.
        scores: By group: the importance of each unit, ascending; infinite for those that must stay.

    Returns:
        By group: a key for each unit, ascending; infinite where the importance is.
    """
    if scope == "global":
        return [list(values) for values in scores]
    modules = dict(module.named_modules())
    classes: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        classes.setdefault(number if scope == "layer" else topology(group, modules), []).append(number)
    result: list[list[float]] = [[] for _ in groups]
    for numbers in classes.values():
        order = sorted((score, number, unit) for number in numbers for unit, score in enumerate(scores[number]))
        for rank, (score, number, _unit) in enumerate(order):
            result[number].append((rank + 0.5) / len(order) if math.isfinite(score) else math.inf)
    return result


def topology(group: Group, modules: Mapping[str, nn.Module]) -> Hashable:
    """Describe a group by the kinds of its layers and of their sides, whatever their widths and places."""
    return tuple(sorted(_part(member, modules) for member in group.members))


def _part(member: Member, modules: Mapping[str, nn.Module]) -> tuple[str, str, str]:
    layer = modules.get(member.path)
    if layer is None:
        return ("parameter", member.side, str(member.dimension))
    kernel = getattr(layer, "kernel_size", "") if isinstance(layer, MATRICES) else ""
    return (type(layer).__name__, member.side, str(kernel))
