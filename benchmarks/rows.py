"""Rows of recipes' data entries as whole arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from modelpack.recipe import Recipe

Feed = dict[str, np.ndarray]


def columns(whole: Recipe, name: str, limit: int | None = None) -> Feed:
    """Read one of a recipe's data entries as whole arrays; sequences are padded to the longest."""
    batches = list(whole.data[name].open(whole.inputs).batches())
    found = {}
    for key in batches[0]:
        width = max(batch[key].shape[1] for batch in batches) if batches[0][key].ndim == 2 else 0
        rows = [np.pad(batch[key], ((0, 0), (0, width - batch[key].shape[1]))) if width else batch[key]
                for batch in batches]  # fmt: skip
        found[key] = np.concatenate(rows)[:limit]
    return found
