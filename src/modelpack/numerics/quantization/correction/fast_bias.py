"""Fast bias correction: every layer's own shift, from one pass over the float graph.

After Nagel et al. 2019 (arXiv 1906.04721, section 4.2), with means of real activations: rounding the weights shifts a
layer's mean output by ``E[W' x] - E[W x]``. Inputs are put onto the layer's grid first, so that what rounding and
clipping them shifts is taken back too. All layers before it count as float: cheap, and enough where shifts are small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from modelpack.numerics.quantization.correction.subject import Subject
    from modelpack.numerics.quantization.correction.walk import Walk


def pairs(subject: Subject, floats: Walk) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """Give, batch by batch, a layer's input as bytes and the float layer's output, from the float graph alone."""
    for found in floats.reach(subject.float_place + 1, [subject.float_source, subject.goal]):
        yield on_grid(found[subject.float_source], subject.input_scale, subject.zero), found[subject.goal]


def on_grid(values: NDArray[np.generic], scale: float, zero: int) -> NDArray[np.uint8]:
    """Round real values to unsigned bytes, as ``QuantizeLinear`` does.

    >>> on_grid(np.array([-1.0, 0.0, 0.26, 999.0], np.float32), 0.5, 1).tolist()
    [0, 1, 2, 255]
    """
    steps = np.rint(values.astype(np.float32, copy=False) / np.float32(scale))
    return np.asarray(np.clip(steps + np.float32(zero), 0, 255), dtype=np.uint8)
