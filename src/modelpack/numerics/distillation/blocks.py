"""The blocks that a network is made of, found by their repetition; and which of a student's belong to which."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import nn

from modelpack.errors import StageError
from modelpack.numerics.distillation.projections import width_axis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.aspects.features import Pair

_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(module: nn.Module) -> tuple[str, ...]:
    """List the paths of the largest parts that a network repeats, in the order of its tree.

    A part is a module with weights in modules of its own, of a type that occurs more than once; torch's plain
    containers are looked into first, and count as parts only in networks that repeat nothing else.
    """
    kinds = Counter(type(child) for child in module.modules() if _is_part(child))
    repeated = {kind for kind, count in kinds.items() if count > 1}
    for wanted in (repeated.difference(_PLAIN), repeated & {nn.Sequential}):
        found = tuple(_outermost(module, "", wanted))
        if found:
            return found
    return ()


def _is_part(module: nn.Module) -> bool:
    return any(child is not module and child._parameters for child in module.modules())  # noqa: SLF001


def _outermost(module: nn.Module, path: str, kinds: set[type[nn.Module]]) -> Iterator[str]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if type(child) in kinds and _is_part(child):
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
        f"no parts of the two models can be paired by themselves: of those that repeat, the student has {student}, the "
        f"teacher {teacher}",
        where="features",
        then="name pairs as `features: {student.path: teacher.path}`; `modelpack show` lists the paths",
    )
