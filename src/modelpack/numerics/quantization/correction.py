"""Bias correction: what rounding shifts an output by on average is taken back in the bias.

After Nagel et al. 2019 (arXiv 1906.04721), with means over data instead of those that batch norms remember.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics.quantization.grid import BIAS_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]


def corrected(bias: NDArray[np.int32], steps: Reals, shift: Reals) -> NDArray[np.int32]:
    """Add the mean of *wanted minus got* to a quantized bias.

    Args:
        bias: One integer per channel.
        steps: What one of them is worth, per channel.
        shift: Mean of the wanted outputs minus the layer's, per channel.

    Returns:
        The new bias; a channel whose bias would leave 32 bits keeps the old one.
    """
    moved = np.rint(bias + shift / steps)
    return np.where(np.abs(moved) <= BIAS_LIMIT, moved, bias).astype(np.int32)


def better(old: Reals, new: Reals) -> NDArray[np.bool_]:
    """Say which channels to change: those whose measured error falls.

    >>> better(np.array([1.0, 1.0, 0.0]), np.array([0.5, 1.0, 0.0])).tolist()
    [True, False, False]
    """
    return np.asarray(new < old, dtype=np.bool_)
