"""The 1,797 handwritten digits that ship inside scikit-learn, always split in the same way."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

TEST_ROWS = 597
VALIDATION_ROWS = 200


def _split() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    pixels, labels = load_digits(return_X_y=True)
    rows = {
        "image": (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8),
        "label": labels.astype(np.int64),
    }
    order = np.random.default_rng(0).permutation(len(labels))
    parts = order[TEST_ROWS:], order[:TEST_ROWS]
    train_rows, test_rows = ({name: column[part] for name, column in rows.items()} for part in parts)
    return train_rows, test_rows


def train() -> dict[str, np.ndarray]:
    """Give 1,200 training rows: `image` (rows, 1, 8, 8) float32 from 0 to 1, and `label` (rows,) int64."""
    return _split()[0]


def lesson() -> dict[str, np.ndarray]:
    """Give the training rows that are not held back for `validation`."""
    return {name: column[VALIDATION_ROWS:] for name, column in train().items()}


def validation() -> dict[str, np.ndarray]:
    """Give 200 of the training rows, to choose the best epoch by; the original network has seen them."""
    return {name: column[:VALIDATION_ROWS] for name, column in train().items()}


def test() -> dict[str, np.ndarray]:
    """Give the 597 rows that training never saw, shaped like those of `train`."""
    return _split()[1]
