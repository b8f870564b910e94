"""Weights become zero and the others make up for it (SparseGPT, Frantar & Alistarh 2023, arXiv 2301.00774).

Optimal brain surgery on the squared error of a layer's outputs: removing weight ``j`` costs ``w_j² / [H⁻¹]_jj``, and
its best repair by the inputs not yet visited is a multiple of a row of ``H⁻¹``, with ``H`` the second moment of the
inputs. Walking over the inputs once, the rows that are needed are those of the upper Cholesky factor of ``H⁻¹``. What
goes is chosen for a block of inputs at a time, or for a pattern's few, when the walk reaches it; repairs beyond the
block wait until its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelpack.errors import StageError
from modelpack.numerics.sparsity.pattern import Pattern, chosen, smallest

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""Inputs of a block, rounded up to a multiple of a pattern's length."""


def solved(weight: Tensor, moment: Tensor, ratio: float, pattern: Pattern | None, damping: float) -> Tensor:
    """Give a layer's weights with zeros, the others repaired.

    Args:
        weight: ``(g, n, k)``, float64.
        moment: Second moment of the inputs, ``(g, k, k)``, float64: the sum of ``x xᵀ`` over rows.
        ratio: Fraction of the weights of each group, where there is no pattern.
        pattern: Of consecutive inputs.
        damping: Share of the mean diagonal that is added to the moment's diagonal.

    Raises:
        StageError: When the damped moment has no inverse.
    """
    roots = _roots(moment, damping)
    work = weight.clone()
    count = weight.shape[-1]
    size = BLOCK if pattern is None else -(-BLOCK // pattern.of) * pattern.of
    gone = 0
    for start in range(0, count, size):
        end = min(start + size, count)
        part, inner = work[..., start:end], roots[:, start:end, start:end]
        if pattern is None:
            due = round(ratio * weight.shape[1] * end)
            zero = smallest(_cost(part, inner).flatten(1), due - gone).view(part.shape)
            gone = due
        else:
            zero = torch.zeros_like(part, dtype=torch.bool)
        errors = _walk(part, inner, zero, pattern)
        work[..., end:] -= errors @ roots[:, start:end, end:]
    return work


def _roots(moment: Tensor, damping: float) -> Tensor:
    """Give the upper Cholesky factor of the inverse of the damped moment."""
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    # Inputs that are all zero leave nothing to invert; any multiple of the identity then serves.
    extra = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    lower, failed = torch.linalg.cholesky_ex(moment + torch.diag_embed(extra.expand_as(diagonal)))
    roots, unsound = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if bool(failed.any()) or bool(unsound.any()):
        raise StageError(
            "the second moment of a layer's inputs cannot be inverted", then="raise `damping`, or read more `rows`"
        )
    return torch.as_tensor(roots)


def _cost(weight: Tensor, roots: Tensor) -> Tensor:
    return (weight / roots.diagonal(dim1=-2, dim2=-1)[:, None, :]) ** 2


def _walk(part: Tensor, roots: Tensor, zero: Tensor, pattern: Pattern | None) -> Tensor:
    """Put zeros into a block, in place, repairing the inputs behind; give the errors that later blocks repair."""
    errors = torch.zeros_like(part)
    for column in range(part.shape[-1]):
        if pattern is not None and column % pattern.of == 0:
            ahead = slice(column, column + pattern.of)
            zero[..., ahead] = chosen(_cost(part[..., ahead], roots[:, ahead, ahead]), 0.0, pattern)
        errors[..., column] = part[..., column] * zero[..., column] / roots[:, column, column, None]
        part[..., column:] -= errors[..., column, None] * roots[:, None, column, column:]
        part[..., column].masked_fill_(zero[..., column], 0)
    return errors
