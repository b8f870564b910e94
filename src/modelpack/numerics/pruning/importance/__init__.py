"""How much a channel matters: one measure a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modelpack.numerics.pruning.importance.bn_scale import bn_scale
from modelpack.numerics.pruning.importance.fisher import fisher
from modelpack.numerics.pruning.importance.fpgm import fpgm
from modelpack.numerics.pruning.importance.gradients import Evidence
from modelpack.numerics.pruning.importance.l1 import l1
from modelpack.numerics.pruning.importance.l2 import l2
from modelpack.numerics.pruning.importance.lamp import lamp
from modelpack.numerics.pruning.importance.random import random
from modelpack.numerics.pruning.importance.taylor import taylor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from modelpack.numerics.pruning.groups import Group

Importance = Literal["l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "fisher", "random"]

_WEIGHTS: Mapping[str, Callable[[nn.Module, Sequence[Group]], list[list[float]]]] = {
    "l1": l1, "l2": l2, "bn_scale": bn_scale, "fpgm": fpgm, "lamp": lamp
}  # fmt: skip

_LOSSES: Mapping[str, Callable[[nn.Module, Sequence[Group], Evidence], list[list[float]]]] = {
    "taylor": taylor, "fisher": fisher
}  # fmt: skip


def scores(
    method: Importance, module: nn.Module, groups: Sequence[Group], evidence: Evidence | None, seed: int
) -> list[list[float]]:
    """Score the blocks of every group; less matters less.

    Args:
        method: Which measure.
        module: In evaluation mode.
        groups: What may be removed.
        evidence: Rows and loss, for `taylor` and `fisher`.
        seed: For `random`.

    Raises:
        StageError: When the method does not fit the model or the rows.
    """
    if method == "random":
        return random(groups, seed)
    if method in _WEIGHTS:
        return _WEIGHTS[method](module, groups)
    assert evidence is not None, f"importance {method} comes with data"
    return _LOSSES[method](module, groups, evidence)


def in_units_of_loss(method: Importance) -> bool:
    """Tell whether scores are changes of a loss, so that they can be set against what a channel costs."""
    return method in _LOSSES


__all__ = ["Evidence", "Importance", "in_units_of_loss", "scores"]
