"""Fashion-MNIST as Debian's ``dataset-fashion-mnist`` installs it: four gzipped IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
NEEDS = "apt-get install dataset-fashion-mnist"
VALIDATION_ROWS = 5000


def _idx(path: Path, needs: str) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, the type 8, the number of axes, big-endian sizes, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: {needs}") from error
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    axes = content[3]
    sizes = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes)


def rows(part: str, chosen: slice, folder: Path = FOLDER, needs: str = NEEDS) -> dict[str, np.ndarray]:
    """Give some rows of a folder's ``train`` or ``t10k``; `needs` is the command that brings its files."""
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", needs)[chosen, None]
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", needs)[chosen]
    return {"image": images.astype(np.float32) / 255, "label": labels.astype(np.int64)}


def train() -> dict[str, np.ndarray]:
    """Give 55,000 training rows: `image` (rows, 1, 28, 28) float32 from 0 to 1, and `label` (rows,) int64."""
    return rows("train", slice(None, -VALIDATION_ROWS))


def validation() -> dict[str, np.ndarray]:
    """Give the last 5,000 rows of the training file, on which epochs are compared."""
    return rows("train", slice(-VALIDATION_ROWS, None))


def test() -> dict[str, np.ndarray]:
    """Give the 10,000 test rows, on which nothing is chosen."""
    return rows("t10k", slice(None))
