"""Regression: the truth is numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.distillation.tasks.chosen import chosen
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelpack.numerics.distillation.question import Question


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error.

    Attributes:
        output: The output that is compared; the first one when empty.
    """

    output: str = ""
    name: str = "mse"

    def loss(self, outputs: Mapping[str, Tensor], question: Question) -> Tensor:
        """Give the mean over all numbers.

        Raises:
            StageError: When there are more or fewer of them than of the truth.
        """
        output, truth = outputs[chosen(outputs, self.output)].float(), question.known
        if output.numel() != truth.numel():
            raise StageError(
                f"the truth has the shape {list(truth.shape)}, the output {list(output.shape)}",
                then="task mse compares number with number: name the right `output` or `target`, or use another task",
            )
        return functional.mse_loss(output.reshape(truth.shape), truth.float())

    def judge(self, outputs: Mapping[str, Tensor], question: Question) -> dict[str, tuple[float, int]]:
        """Add up the negative error."""
        count = question.known.numel()
        return {SCORE: (-float(self.loss(outputs, question)) * count, count)}

    def figure(self, score: float) -> tuple[str, float]:
        """The mean squared error."""
        return "eval_mse", -score
