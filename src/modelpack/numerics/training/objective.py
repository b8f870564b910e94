"""What a training asks of the loop's student: losses to learn from, and a score to be judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORE = "score"
"""Name of what decides between epochs."""


class Objective(Protocol):
    """What a student is asked for."""

    @property
    def learned(self) -> nn.Module | None:
        """Modules that are trained with the student and thrown away afterwards, such as projections."""

    def losses(self, student: nn.Module, inputs: dict[str, Tensor], beside: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the scalar to minimise, averaged over the rows, as ``loss``, and by name the parts it is made of.

        Args:
            student: In training mode; called here.
            inputs: Its inputs, on its device.
            beside: The columns beside them: the truth as `batches.TRUTH`, where there is one, or all.

        Raises:
            StageError: When what it needs is not there.
        """

    def judge(
        self, student: nn.Module, inputs: dict[str, Tensor], beside: dict[str, Tensor]
    ) -> dict[str, tuple[float, int]]:
        """Give totals by name, each with the number of things that it is a total of.

        The mean of `SCORE` decides between epochs, higher being better; means of other names are told as they are.

        Args:
            student: In evaluation mode; called here.
            inputs: Its inputs, on its device.
            beside: The columns beside them: the truth as `batches.TRUTH`, where there is one, or all.

        Raises:
            StageError: When what it needs is not there.
        """

    def figure(self, score: float) -> tuple[str, float]:
        """Give the name of the score, and its value as people read it."""
