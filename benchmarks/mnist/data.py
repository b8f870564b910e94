"""MNIST, which ``prepare.py`` fetches, divided as the recipe divides Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fashion import VALIDATION_ROWS, rows

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).with_name("data")
NEEDS = "python benchmarks/mnist/prepare.py"


def train() -> dict[str, np.ndarray]:
    """Give 55,000 training rows."""
    return rows("train", slice(None, -VALIDATION_ROWS), FOLDER, NEEDS)


def validation() -> dict[str, np.ndarray]:
    """Give the last 5,000 rows of the training file, on which epochs are compared."""
    return rows("train", slice(-VALIDATION_ROWS, None), FOLDER, NEEDS)


def test() -> dict[str, np.ndarray]:
    """Give the 10,000 test rows, on which nothing is chosen."""
    return rows("t10k", slice(None), FOLDER, NEEDS)
