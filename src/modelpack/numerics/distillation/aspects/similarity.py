"""Rows that are alike for the teacher are alike for the student (Tung and Mori 2019, arXiv 1907.09682)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.distillation.aspects.outputs import compatible
from modelpack.numerics.training import sharing

if TYPE_CHECKING:
    from torch import Tensor

    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.taps import Seen


@dataclass(frozen=True)
class Similarity:
    """The similarities of all pairs of rows in a batch, by every output of floats."""

    def loss(self, student: Seen, teacher: Seen, question: Question) -> Tensor:
        """Give the squared difference of the two matrices of similarities, over the number of pairs and of outputs.

        Raises:
            StageError: When the two models do not give the same outputs, or nothing that could be compared.
        """
        compatible(student.outputs, teacher.outputs)
        found = [
            preserved(*(sharing.everyone(question.blanked(one.float())) for one in (student.outputs[name], value)))
            for name, value in teacher.outputs.items()
            if value.is_floating_point() and value.ndim > 1
        ]
        if not found:
            raise StageError("the teacher gives no vectors whose similarities a student could keep")
        return torch.stack(found).mean()

    def remarks(self) -> list[str]:
        """Nothing is chosen here."""
        return []


def preserved(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the similarities of rows ``[rows, …]``; the two may differ in all but the number of rows."""
    return functional.mse_loss(_similarities(student), _similarities(teacher))


def _similarities(value: Tensor) -> Tensor:
    """Give the products of all pairs of rows, each row of the matrix brought to length 1."""
    flat = value.flatten(1)
    return functional.normalize(flat @ flat.T, dim=1)
