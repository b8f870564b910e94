"""Hidden features should be the teacher's, as far as the student has room for them (Romero et al. 2015, FitNets)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError, listed
from modelpack.numerics.distillation import projections
from modelpack.numerics.distillation.distances import relative_error
from modelpack.numerics.distillation.projections import Projections
from modelpack.numerics.distillation.taps import Tap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.taps import Seen

Pair = tuple[str, str]
"""Path in the student, path in the teacher."""


@dataclass(frozen=True)
class Features:
    """Pairs of values inside the two models, compared by their relative error.

    Attributes:
        pairs: What is compared with what.
        projections: By place in `pairs`, what brings a student's features to the width of the teacher's.
    """

    pairs: Sequence[Pair]
    projections: Projections | None = None

    def loss(self, student: Seen, teacher: Seen, question: Question) -> Tensor:
        """Average over pairs.

        Raises:
            StageError: When the shapes of a pair do not fit each other.
        """
        axes = self.projections.axes if self.projections is not None else {}
        narrow = {name: student.inner[Tap(self.pairs[int(name)][0])] for name in axes}
        narrow = {name: question.kept_along(value, axes[name]) for name, value in narrow.items()}
        wide = self.projections(narrow) if self.projections is not None else {}
        found = []
        for place, pair in enumerate(self.pairs):
            name, mine, theirs = str(place), student.inner[Tap(pair[0])], teacher.inner[Tap(pair[1])]
            given = wide[name] if name in wide else question.kept(mine)
            wanted = question.kept_along(theirs, axes[name]) if name in wide else question.kept(theirs)
            if given.shape != wanted.shape:
                raise unfit(pair, mine, theirs)
            found.append(relative_error(given, wanted))
        return torch.stack(found).mean()

    def remarks(self) -> list[str]:
        """Name the pairs, and count the projections."""
        told = listed(mine if mine == theirs else f"{mine} with {theirs}" for mine, theirs in self.pairs)
        through = f", {len(self.projections.axes)} of them through learned projections" if self.projections else ""
        count = len(self.pairs)
        return [f"compares the features of {count} pair{'s' * (count > 1)} of modules{through}: {told}"]


def planned(pairs: Sequence[Pair], student: Seen, teacher: Seen, question: Question) -> Features:
    """Find out which pairs need a projection, and make it.

    Raises:
        StageError: When the shapes of a pair differ in more than one dimension.
    """
    made, axes = {}, {}
    for place, (mine, theirs) in enumerate(pairs):
        given, wanted = student.inner[Tap(mine)], teacher.inner[Tap(theirs)]
        if given.shape == wanted.shape:
            continue
        axis = projections.width_axis(given, wanted)
        if axis is None:
            raise unfit((mine, theirs), given, wanted)
        made[str(place)] = projections.fitted(given, wanted, axis, question)
        axes[str(place)] = axis
    return Features(tuple(pairs), Projections(made, axes) if made else None)


def unfit(pair: Pair, student: Tensor, teacher: Tensor) -> StageError:
    """Say that no projection brings one shape to the other."""
    return StageError(
        f"the student gives {list(student.shape)} at '{pair[0]}', the teacher {list(teacher.shape)} at '{pair[1]}': "
        "a projection can only change one dimension, that of channels or features",
        where="features",
        then="name pairs of equal resolution or length in `features:`",
    )
