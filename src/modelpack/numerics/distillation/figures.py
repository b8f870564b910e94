"""How alike two models' outputs are, in words that people know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from modelpack.numerics.distillation.distances import axis_of

if TYPE_CHECKING:
    from torch import Tensor

    from modelpack.numerics.distillation.question import Question

_UNIT = 1e-3
"""How far the lengths of rows may be from 1 for an embedding that is brought to length 1."""


def alike(student: Tensor, teacher: Tensor, question: Question, *, classes: bool) -> dict[str, tuple[float, int]]:
    """Compare one output: the cosine of its rows, and how often the same class scores highest.

    Args:
        student: The output.
        teacher: The output.
        question: Says which positions are real.
        classes: Whether it is known to hold scores of classes; else it is taken to where it is a matrix of several
            columns whose rows have not all the length 1, as an embedding's have.

    Returns:
        Totals and how many things they are totals of; nothing for an output that has no width.
    """
    if teacher.ndim < 2 or not teacher.is_floating_point():
        return {}
    axis = axis_of(teacher)
    mine, theirs = (question.kept_along(value.float(), axis).flatten(0, -2) for value in (student, teacher))
    found = {"eval_cosine": (float(functional.cosine_similarity(mine, theirs, dim=1).sum()), len(mine))}
    if theirs.shape[1] > 1 and (classes or _look_like_classes(teacher.ndim, theirs)):
        found["eval_agreement"] = (float((mine.argmax(1) == theirs.argmax(1)).sum()), len(mine))
    return found


def _look_like_classes(dimensions: int, rows: Tensor) -> bool:
    lengths = rows.norm(dim=1)
    return dimensions == 2 and not torch.allclose(lengths, torch.ones_like(lengths), atol=_UNIT, rtol=0)
