"""One output of two models, compared batch by batch: agreement, cosine, signal-to-quantization-noise ratio."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics.measure.statistics import spearman

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_DECIBELS = 200.0
"""Stands for outputs that are equal bit by bit, whose ratio is infinite."""
PAIRED_ROWS = 1000
"""Rows whose pairwise similarities are compared: all pairs of them are half a million."""
_UNIT = 1e-3


def rows_first(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """View an output as one vector per row; an output that has no dimension of that size is a single row.

    >>> rows_first(np.zeros((2, 5, 3)), 5).shape
    (5, 6)
    """
    axis = next((axis for axis, size in enumerate(values.shape) if size == rows), None)
    if axis is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(rows, -1)


class Comparison:
    """How far a model's output lies from its reference's."""

    def __init__(self, name: str, *, classes: bool | None, pairs: bool = False) -> None:
        """Prepare to compare.

        Args:
            name: The output, for errors.
            classes: Whether its rows are scores of classes. None decides by the first batch: they are when the
                output has shape ``[rows, 2 or more]`` and its rows are not of unit length, as embeddings often are.
            pairs: Keep the first `PAIRED_ROWS` rows for `spearman_pairs`.
        """
        self.name, self.classes, self.pairs = name, classes, pairs
        self.class_axis: int | None = None
        self.rows = 0
        self._signal = self._noise = self._cosines = 0.0
        self._lowest_cosine, self._largest = math.inf, 0.0
        self._same = {0.0: 0, 0.5: 0}
        self._decided = 0
        self._low, self._high = math.inf, -math.inf
        self._kept: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def update(self, reference: NDArray[Any], subject: NDArray[Any], rows: int) -> None:
        """Compare one batch of `rows` rows.

        Raises:
            StageError: When the shapes differ.
        """
        if reference.shape != subject.shape:
            raise StageError(
                f"output '{self.name}' has shape {list(subject.shape)}, the reference's has {list(reference.shape)}"
            )
        one = rows_first(reference, rows).astype(np.float64)
        two = rows_first(subject, rows).astype(np.float64)
        if self.classes is None:
            self.classes = self._look_like_classes(reference, one, rows)
        self.rows += len(one)
        difference = np.abs(one - two)
        self._signal += float(np.square(one).sum())
        self._noise += float(np.square(difference).sum())
        self._largest = max(self._largest, float(difference.max(initial=0.0)))
        cosines = _cosines(one, two)
        self._cosines += float(cosines.sum())
        self._lowest_cosine = min(self._lowest_cosine, float(cosines.min()))
        if self.classes:
            self._count_agreement(reference, subject)
        if self.pairs and sum(len(kept) for kept, _ in self._kept) < PAIRED_ROWS:
            self._kept.append((one, two))

    def _look_like_classes(self, reference: NDArray[Any], one: NDArray[np.float64], rows: int) -> bool:
        if reference.dtype.kind in "biu":
            return True
        if reference.ndim != 2 or reference.shape[0] != rows or reference.shape[1] < 2:
            return False
        return bool(np.abs(np.linalg.norm(one, axis=1) - 1).max() > _UNIT)

    def _count_agreement(self, reference: NDArray[Any], subject: NDArray[Any]) -> None:
        if reference.dtype.kind in "biu":
            same = dict.fromkeys(self._same, reference == subject)
        elif reference.ndim < 2 or reference.shape[1:] == (1,):
            self._low, self._high = min(self._low, reference.min()), max(self._high, reference.max())
            same = {cut: (reference > cut) == (subject > cut) for cut in self._same}
        else:
            # Images keep their classes in the second dimension, sequences in the last.
            axis = self.class_axis if self.class_axis is not None else (1 if reference.ndim > 3 else -1)
            equal = reference.argmax(axis=axis) == subject.argmax(axis=axis)
            same = dict.fromkeys(self._same, equal)
        self._decided += next(iter(same.values())).size
        for cut, equal in same.items():
            self._same[cut] += int(equal.sum())

    def result(self) -> dict[str, float]:
        """Give agreement (for classes), cosine and its minimum over rows, SQNR in decibels, largest difference.

        Raises:
            StageError: When similarities of pairs were asked for and do not vary.
        """
        found: dict[str, float] = {}
        if self.classes and self._decided:
            cut = 0.5 if self._low >= 0 and self._high <= 1 else 0.0
            found["agreement"] = self._same[cut] / self._decided
        found |= {
            "cosine": self._cosines / self.rows,
            "cosine_min": self._lowest_cosine,
            "sqnr_db": decibels(self._signal, self._noise),
            "largest_difference": self._largest,
        }
        if self.pairs:
            found["spearman_pairs"] = self._pairs()
        return found

    def _pairs(self) -> float:
        one, two = (np.concatenate(parts)[:PAIRED_ROWS] for parts in zip(*self._kept, strict=True))
        upper = np.triu_indices(len(one), 1)
        correlation = spearman(_similarities(one)[upper], _similarities(two)[upper]) if len(one) > 2 else None
        if correlation is None:
            raise StageError(
                f"'spearman_pairs' of output '{self.name}' has no value: the similarities of its "
                f"{len(one)} rows do not vary",
                then="give it 3 rows or more that differ",
            )
        return correlation


def decibels(signal: float, noise: float) -> float:
    """Give 10·log10(signal / noise), held within ±`MOST_DECIBELS`.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0)
    (20.0, 200.0)
    """
    if noise == 0:
        return MOST_DECIBELS
    if signal == 0:
        return -MOST_DECIBELS
    return max(-MOST_DECIBELS, min(MOST_DECIBELS, 10 * math.log10(signal / noise)))


def _cosines(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the cosine of every row pair; two rows of zeros point the same way, one of them alone nowhere."""
    products = np.einsum("ij,ij->i", one, two)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    both_zero = ~one.any(axis=1) & ~two.any(axis=1)
    cosines = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), both_zero)
    return np.asarray(np.clip(cosines, -1, 1), dtype=np.float64)


def _similarities(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1)
    return np.asarray(unit @ unit.T, dtype=np.float64)
