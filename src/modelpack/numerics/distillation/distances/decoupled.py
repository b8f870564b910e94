"""Decoupled distillation (Zhao, Cui, Song, Qiu and Liang 2022, arXiv 2203.08679)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from modelpack.errors import StageError
from modelpack.numerics.distillation import averages

if TYPE_CHECKING:
    from torch import Tensor

TARGET, OTHERS = 1 / 9, 8 / 9
"""Weights of the right class against all others, and of the others among themselves: as 1 to 8, like the paper's, and
together 1, so that the whole is about as large as the plain divergence."""


def decoupled(student: Tensor, teacher: Tensor, temperature: float, target: Tensor | None = None) -> Tensor:
    """Compare logits ``[places, classes]``, how the teacher doubts apart from how sure it is.

    The divergence of two-way distributions (the right class, or any other), and that of the distributions among the
    other classes, which plain distillation makes small where the teacher is sure.

    Args:
        student: Logits.
        teacher: Logits of the same shape.
        temperature: Softens both.
        target: ``[places]``, the right classes; those that the teacher prefers where there is no truth.

    Raises:
        StageError: When there are not two classes at least.
    """
    if student.shape[1] < 2:
        raise StageError("distance dkd compares classes, the output has only one", then="use distance: mse")
    right = teacher.argmax(1) if target is None else target
    is_right = functional.one_hot(right, student.shape[1]).bool()
    mine, theirs = _log_probabilities(student / temperature), _log_probabilities(teacher / temperature)
    sure = _apart(_two_way(mine, is_right), _two_way(theirs, is_right))
    doubt = _apart(_among_others(mine, is_right), _among_others(theirs, is_right))
    return (TARGET * sure + OTHERS * doubt) * temperature**2


def _log_probabilities(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits, 1)


def _two_way(logs: Tensor, is_right: Tensor) -> Tensor:
    others = logs.masked_fill(is_right, -math.inf).logsumexp(1)
    return torch.stack([logs[is_right], others], 1)


def _among_others(logs: Tensor, is_right: Tensor) -> Tensor:
    others = logs[~is_right].reshape(len(logs), -1)
    return functional.log_softmax(others, 1)


def _apart(student: Tensor, teacher: Tensor) -> Tensor:
    return averages.mean(functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1))
