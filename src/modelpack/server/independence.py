"""What can be relied on in a model: that rows know nothing of each other, that equal shapes take equally long."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Tensors = Mapping[str, np.ndarray]
    Ranges = Mapping[str, tuple[float, float] | None]

# Operators that scale a whole tensor by its own extremes: one client's values would round another's.
_ENTANGLING = (b"DynamicQuantize",)  # …Linear, …MatMul, …LSTM
_REPEATING = (b"Loop", b"Scan")
_TOLERANCE = 0.02


def entangling(path: Path) -> bool:
    """Say whether a model names an operator that mixes rows in a way too small for `independent` to see."""
    return _names(path, _ENTANGLING)


def repeating(path: Path) -> bool:
    """Say whether a model names an operator that runs as long as its values tell it to."""
    return _names(path, _REPEATING)


def _names(path: Path, operators: tuple[bytes, ...]) -> bool:
    """Search the file: operators are named in plain text; weights that happen to spell one only make us careful."""
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            return False
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(name) >= 0 for name in operators)


def independent(run: Callable[[Tensors], Tensors], feed: Tensors, ranges: Ranges) -> bool:
    """Run one row alone and beside a very different one, and compare its answers.

    Whole numbers must agree, others within 2 % of the largest: kernels round differently for other sizes.

    Args:
        run: Runs the model.
        feed: Inputs of one row that the model takes.
        ranges: Which whole numbers an input may hold; where that is not known, those of `feed` stay.
    """
    first, second = (
        {name: _noise(array, scale, ranges.get(name)) for name, array in feed.items()} for scale in (1.0, 100.0)
    )
    try:
        alone = run(first)
        together = run({name: np.concatenate([first[name], second[name]]) for name in feed})
    except Exception:  # noqa: BLE001 - values that the model refuses prove nothing, so its runs are not shared
        return False
    return all(_same(array, together[name]) for name, array in alone.items())


def _noise(array: np.ndarray, scale: float, limits: tuple[float, float] | None) -> np.ndarray:
    """Give values without a pattern; importing a generator of random numbers would take longer than the trial."""
    spread = np.sin(12.9898 * np.arange(1, array.size + 1) + scale).reshape(array.shape) * 43758.5453 % 1.0
    noise: np.ndarray = array  # where a whole number may point beyond a table
    if array.dtype.kind == "f":
        noise = scale * (2 * spread - 1)
    elif array.dtype.kind in "iu" and limits is not None:
        noise = (limits[0] + spread * (limits[1] - limits[0] + 1)).clip(*limits)
    return noise.astype(array.dtype)


def _same(alone: np.ndarray, together: np.ndarray) -> bool:
    if together.shape[:1] != (2,) or together.shape[1:] != alone.shape[1:]:
        return False
    row = together[:1]
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, row))
    largest = float(np.max(np.abs(alone), initial=0.0, where=np.isfinite(alone)))
    return bool(np.allclose(alone, row, rtol=0.0, atol=_TOLERANCE * largest + 1e-6, equal_nan=True))
