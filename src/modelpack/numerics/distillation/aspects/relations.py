"""How positions relate to each other in the last attention (MiniLMv2: Wang et al. 2021, arXiv 2012.15828).

MiniLM (Wang et al. 2020, arXiv 2002.10957) compares the distributions of attention and the products of values; its
successor compares the products of queries, of keys and of values among themselves, cut into as many relation heads as
both widths allow, so that teacher and student need neither the same heads nor the same width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from modelpack.errors import StageError, listed
from modelpack.numerics.distillation import averages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelpack.numerics.distillation.attention import Taps
    from modelpack.numerics.distillation.question import Question
    from modelpack.numerics.distillation.taps import Seen

_NARROWEST = 16
"""Least features of a relation head, as in the paper's base models."""


@dataclass(frozen=True)
class Relations:
    """Self-relations of queries, keys and values.

    Attributes:
        pairs: Attention in the student, attention in the teacher.
    """

    pairs: Sequence[tuple[Taps, Taps]]

    def loss(self, student: Seen, teacher: Seen, question: Question) -> Tensor:
        """Average over queries, keys, values and pairs.

        Raises:
            StageError: When the two have other positions.
        """
        found = []
        for mine, theirs in self.pairs:
            for here, there in zip(mine, theirs, strict=True):
                given, wanted = student.inner[here], teacher.inner[there]
                if given.ndim != 3 or given.shape[:2] != wanted.shape[:2]:
                    raise StageError(
                        f"the student gives {list(given.shape)} at '{here.path}', the teacher {list(wanted.shape)} at "
                        f"'{there.path}': relations need [rows, positions, features] with equal rows and positions",
                        where="relations",
                        then="name other pairs, or leave `relations` out of `imitate`",
                    )
                found.append(apart(given, wanted, question.real))
        return torch.stack(found).mean()

    def remarks(self) -> list[str]:
        """Name the layers."""
        told = listed(f"{mine[0].path} with {theirs[0].path}" for mine, theirs in self.pairs)
        return [f"compares the relations of queries, keys and values: {told}"]


def apart(student: Tensor, teacher: Tensor, real: Tensor | None) -> Tensor:
    """Give the mean divergence between the relations of positions, over rows, heads and real positions.

    Args:
        student: ``[rows, positions, features]``.
        teacher: Likewise, perhaps with other features.
        real: ``[rows, positions]``, false at padded positions.
    """
    heads = relation_heads(student.shape[-1], teacher.shape[-1])
    if real is not None and real.shape != student.shape[:2]:
        real = None
    mine, theirs = _relations(student, heads, real), _relations(teacher, heads, real)
    each = functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1).mean(1)
    return averages.mean(each if real is None else each[real])


def relation_heads(student: int, teacher: int) -> int:
    """Give the most heads into which both widths can be cut, none narrower than the paper's.

    >>> relation_heads(384, 384), relation_heads(192, 384), relation_heads(8, 384)
    (24, 12, 1)
    """
    common = math.gcd(student, teacher)
    narrow = min(student, teacher)
    fitting = [heads for heads in range(2, common + 1) if common % heads == 0 and narrow // heads >= _NARROWEST]
    return max(fitting, default=1)


def _relations(value: Tensor, heads: int, real: Tensor | None) -> Tensor:
    """Give the logarithm of how each position relates to the others: ``[rows, heads, positions, positions]``."""
    cut = value.reshape(*value.shape[:2], heads, -1).transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) / cut.shape[-1] ** 0.5
    if real is not None:
        # The least float and not infinity, for hidden positions have a probability of 0, and 0 × ∞ is no number.
        scores = scores.masked_fill(~real[:, None, None, :], torch.finfo(scores.dtype).min)
    return functional.log_softmax(scores, -1)
