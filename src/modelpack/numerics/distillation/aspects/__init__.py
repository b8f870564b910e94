"""Aspects of a teacher that a student imitates: its outputs, and what it computes on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.taps import Seen

Name = Literal["outputs", "features", "relations", "similarity"]


class Aspect(Protocol):
    """One thing that is imitated."""

    def loss(self, student: Seen, teacher: Seen, question: Question) -> Tensor:
        """Give a scalar, 0 for a perfect imitation.

        Raises:
            StageError: When the two do not fit each other.
        """

    def remarks(self) -> list[str]:
        """Say what a user should know about it."""
