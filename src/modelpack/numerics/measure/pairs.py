"""How alike a model finds the two rows of each pair, beside how alike they are said to be.

The measure of sentence encoders (Cer et al. 2017, SemEval task 1: semantic textual similarity): Spearman's rank
correlation of cosine similarities with people's scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelpack.errors import StageError
from modelpack.numerics.measure.statistics import spearman

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PAIR = "pair"
"""Key of the data's numbers of pairs: two rows with the same number belong together and have the same label."""


class Similarities:
    """Collects the cosine similarity and the label of every pair; a row waits for its other half.

    Args:
        where: Names the output in errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.waiting: dict[int, NDArray[np.float64]] = {}
        self.found: list[float] = []
        self.said: list[float] = []

    def update(self, values: NDArray[Any], batch: Mapping[str, NDArray[Any]], label: NDArray[Any]) -> None:
        """Take in a batch.

        Args:
            values: Outputs, rows first.
            batch: The data, with `PAIR`.
            label: Scores, (rows,).

        Raises:
            StageError: When the data do not say which rows belong together, or labels are no scores of rows.
        """
        if PAIR not in batch:
            raise StageError(
                f"'similarity' needs rows in pairs under the key '{PAIR}', the data have {', '.join(batch)}",
                then="with the source `text`, name the second text as `pair:` and say `pairing: apart`",
            )
        if label.shape != (len(values),) or label.dtype.kind not in "iuf":
            raise StageError(f"'similarity' needs one score a row, the labels have shape {list(label.shape)}")
        rows = values.reshape(len(values), -1).astype(np.float64)
        for number, row, score in zip(batch[PAIR].tolist(), rows, label.tolist(), strict=True):
            other = self.waiting.pop(number, None)
            if other is None:
                self.waiting[number] = row
            else:
                lengths = float(np.linalg.norm(row) * np.linalg.norm(other))
                self.found.append(float(row @ other) / lengths if lengths else 0.0)
                self.said.append(float(score))

    def compute(self) -> float:
        """Correlate.

        Raises:
            StageError: With too few pairs, or where all are equally alike.
        """
        value = spearman(np.array(self.found), np.array(self.said)) if len(self.found) > 2 else None
        if value is None:
            raise StageError(f"'similarity' of {self.where} has no value: {len(self.found)} pairs do not differ")
        return value
