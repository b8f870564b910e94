"""What a training asks of the loop's student: losses to learn from, and a score to be judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class Objective(Protocol):
    """What a student is asked for."""

    @property
    def learned(self) -> nn.Module | None:
        """Modules that are trained with the student and thrown away afterwards, such as projections."""

    def losses(self, student: nn.Module, inputs: dict[str, Tensor], truth: Tensor | None) -> dict[str, Tensor]:
        """Give the scalar to minimise, averaged over the rows, as ``loss``, and by name the parts it is made of.

        Args:
            student: In training mode; called here.
            inputs: Its inputs, on its device.
            truth: The column of the truth, where there is one.

        Raises:
            StageError: When what it needs is not there.
        """

    def judge(self, student: nn.Module, inputs: dict[str, Tensor], truth: Tensor | None) -> tuple[float, int]:
        """Give a total and the number of things it is a total of; higher means are better.

        Args:
            student: In evaluation mode; called here.
            inputs: Its inputs, on its device.
            truth: The column of the truth, where there is one.

        Raises:
            StageError: When what it needs is not there.
        """

    def figure(self, score: float) -> tuple[str, float]:
        """Give the name of a mean of `judge`, and its value as people read it."""
