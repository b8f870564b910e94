"""A task of the user's own: any scalar that a function makes of outputs and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modelpack.errors import ModelpackError, StageError
from modelpack.numerics.training.objective import SCORE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelpack.numerics.distillation.question import Question


@dataclass(frozen=True)
class Own:
    """What a function of the user's says.

    Attributes:
        function: Takes outputs by name and columns by name, those of the inputs and all others that hold numbers, and
            gives a scalar that is smaller for better students.
        where: How errors name the function.
    """

    function: Callable[..., Any]
    where: str
    name: str = "own"

    def loss(self, outputs: Mapping[str, Tensor], question: Question) -> Tensor:
        """Ask the function.

        Raises:
            StageError: When it fails, or gives anything but one number.
        """
        columns = question.columns
        try:
            value = self.function({name: _wide(value) for name, value in outputs.items()}, columns)
        except ModelpackError:
            raise
        except Exception as error:
            told = f"it has {', '.join(columns)} as columns and {', '.join(outputs)} as outputs"
            raise StageError(f"{type(error).__name__}: {error}", where=self.where, then=told) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            given = f"a tensor of the shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise StageError(
                f"it returned {given}, a scalar tensor of floats is expected", where=self.where, then="return its mean"
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise StageError("what it returned does not depend on the outputs", where=self.where)
        return value.reshape(())

    def judge(self, outputs: Mapping[str, Tensor], question: Question) -> dict[str, tuple[float, int]]:
        """Add up what the function says, negative, by rows."""
        rows = len(next(iter(question.inputs.values())))
        return {SCORE: (-float(self.loss(outputs, question)) * rows, rows)}

    def figure(self, score: float) -> tuple[str, float]:
        """What the function says."""
        return "eval_loss", -score


def _wide(value: Tensor) -> Tensor:
    """Give what mixed precision made narrow as the floats that the function may count on."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
