"""Weights become zero that are small by what they meet (Wanda, Sun et al. 2023, arXiv 2306.11695).

A weight is judged by its size times the norm of its input, against the others of the same output. Nothing is solved
for: the weights that stay keep their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.sparsity.pattern import Pattern, chosen

if TYPE_CHECKING:
    from torch import Tensor


def zeros(weight: Tensor, power: Tensor, ratio: float, pattern: Pattern | None) -> Tensor:
    """Mark what becomes zero of one layer.

    Args:
        weight: ``(g, n, k)``.
        power: Sum of squares of each input, ``(g, k)``.
        ratio: Fraction of each output's weights, where there is no pattern.
        pattern: Of consecutive inputs.
    """
    return chosen(weight.abs() * power.sqrt()[:, None, :], ratio, pattern)
