"""Which parts of a student belong to which of its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.errors import StageError
from modelpack.numerics.distillation.projections import width_axis
from modelpack.numerics.training import depth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from modelpack.numerics.distillation.aspects.features import Pair


def blocks(student: nn.Module, teacher: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the paths of the blocks that the teacher repeats, and of those of its student.

    Where the student has blocks of the same kind, they need not repeat: one layer may be all that is left.
    """
    theirs = depth.blocks(teacher)
    mine = tuple(_outermost(student, "", {type(block) for block in theirs.values()}))
    return mine or tuple(depth.blocks(student)), tuple(theirs)


def _outermost(module: nn.Module, path: str, kinds: set[type[nn.Module]]) -> Iterator[str]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if type(child) in kinds:
            yield inner
        else:
            yield from _outermost(child, inner, kinds)


def matched(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> tuple[Pair, ...]:
    """Pair each block of a student with one of its teacher's: by depth, the last with the last.

    Where the shapes there differ in more than one dimension, the nearest block in depth is taken that fits; a block
    that nothing fits is left out.

    Args:
        student: Path → features, in order.
        teacher: Likewise.
    """
    theirs, pairs = list(teacher), []
    for place, (path, mine) in enumerate(student.items()):
        wanted = round((place + 1) * len(theirs) / len(student)) - 1
        fitting = [other for other, inner in enumerate(theirs) if _fits(mine, teacher[inner])]
        if fitting:
            _, nearest = min((abs(other - wanted), -other) for other in fitting)
            pairs.append((path, theirs[-nearest]))
    return tuple(pairs)


def _fits(student: Tensor, teacher: Tensor) -> bool:
    return student.shape == teacher.shape or width_axis(student, teacher) is not None


def none_found(student: int, teacher: int) -> StageError:
    """Say that there is nothing to pair."""
    return StageError(
        f"no blocks of the two models can be paired by themselves: the student has {student}, the teacher {teacher}",
        where="features",
        then="name pairs as `features: {student.path: teacher.path}`; names of tensors begin with such paths",
    )
