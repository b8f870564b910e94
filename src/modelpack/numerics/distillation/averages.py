"""Means over what counts, wherever its rows are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.numerics.training import crew, sharing

if TYPE_CHECKING:
    from torch import Tensor


def mean(values: Tensor) -> Tensor:
    """Give the mean of values, each of which counts the same; 0 where there are none.

    Where several processes hold the rows of a batch, not every row need have as many values that count. What this
    gives then is the process's part, which by `Share.weight` becomes the mean over all.
    """
    share = sharing.current()
    if share is None:
        return values.sum() / max(1, values.numel())
    mine = values.numel() if share.rows else 0
    count = crew.stacked(values.detach().new_tensor([float(mine)])).sum().clamp_min(1)
    return values.sum() * share.of / (max(1, share.rows) * count)
