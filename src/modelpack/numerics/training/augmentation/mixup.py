"""Rows mixed with other rows (Zhang et al. 2018, mixup); the teacher says what a mixture is.

The other rows come from a pool of the data's first ones, so that a mixture depends on nothing but its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from modelpack.numerics.training.augmentation.draws import Draws

    Arrays = dict[str, NDArray[np.generic]]
    Floats = NDArray[Any]

_ROWS, _BYTES = 512, 64 * 2**20


def pool(batches: Iterable[Arrays], names: Iterable[str]) -> Arrays:
    """Gather the first rows of the data.

    Raises:
        StageError: When their shapes differ.
    """
    held: dict[str, list[NDArray[np.generic]]] = {name: [] for name in names}
    rows = size = 0
    for batch in batches:
        for name, column in held.items():
            column.append(batch[name])
            size += batch[name].nbytes
            if column[0].shape[1:] != column[-1].shape[1:]:
                raise _unlike(name)
        rows += len(next(iter(batch.values())))
        if rows >= _ROWS or size >= _BYTES:
            break
    return {name: np.concatenate(column)[:_ROWS] for name, column in held.items()}


def mixed(batch: Mapping[str, Floats], others: Mapping[str, Floats], draws: Draws, most: float) -> dict[str, Floats]:
    """Mix every row with another one, all inputs alike.

    Args:
        batch: The inputs that are mixed, of floats.
        others: The pool.
        draws: The rows' numbers.
        most: The other row's part, at most.

    Raises:
        StageError: When rows have another shape than those of the pool.
    """
    size = len(next(iter(others.values())))
    chosen = (draws.uniform("partner")[:, 0] * size).astype(np.int64)
    part = draws.uniform("mixup", 0, most)[:, 0]
    found: dict[str, Floats] = {}
    for name, column in batch.items():
        if others[name].shape[1:] != column.shape[1:]:
            raise _unlike(name)
        other = others[name][chosen]
        weight = part.reshape(-1, *[1] * (column.ndim - 1)).astype(column.dtype)
        # A rounding may lead out of the range between the two.
        found[name] = np.clip(column + weight * (other - column), np.minimum(column, other), np.maximum(column, other))
    return found


def _unlike(name: str) -> StageError:
    return StageError(f"mixup needs rows of one shape, and those of '{name}' differ", then="leave mixup out")
