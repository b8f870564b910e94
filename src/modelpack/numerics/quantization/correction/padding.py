"""Which positions of a tensor are real, batch by batch: what a layer gives at padded ones need not be right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics import graph, masks
from modelpack.numerics.quantization.calibration import hidden
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from modelpack.numerics.rows import Feed


@dataclass(frozen=True)
class Padding:
    """A mask's values, and the tensors that it covers.

    Attributes:
        masks: The mask in each batch, true at real positions.
        axes: How many leading axes of a tensor the mask's axes are, apart or as one.
    """

    masks: Sequence[NDArray[np.bool_]] = ()
    axes: Mapping[str, int] = field(default_factory=dict)

    def real(self, name: str, batch: int, sizes: tuple[int, ...]) -> NDArray[np.bool_]:
        """Say which positions of a tensor are real.

        Args:
            name: The tensor.
            batch: Number of the batch.
            sizes: Sizes of its axes, or of as many leading ones as are wanted.

        Returns:
            Truth values of that shape; all true where the mask does not cover the tensor.
        """
        if name not in self.axes:
            return np.ones(sizes, np.bool_)
        axes = self.axes[name]
        shaped = self.masks[batch].reshape(*sizes[:axes], *[1] * (len(sizes) - axes))
        return np.broadcast_to(shaped, sizes)


def padding(model: ModelProto, names: Sequence[str], mask: str, feeds: Sequence[Feed], device: str = "cpu") -> Padding:
    """Find which of some tensors a mask covers.

    Args:
        model: The float graph.
        names: Its tensors.
        mask: The input that is 1 at real positions; empty when all are.
        feeds: The rows, in batches.
        device: Where the graph runs.

    Raises:
        StageError: When the mask holds anything but 0 and 1.
    """
    if not mask:
        return Padding()
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in graph.signature(model)["inputs"].items()}
    found = hidden.aligned(model, names, mask, inputs, feeds[0], device=device)
    return Padding([masks.real(mask, feed) for feed in feeds], {name: axes for name, (axes, _) in found.items()})
