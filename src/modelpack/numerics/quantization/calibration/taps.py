"""Where a graph is tapped: for each tensor, what is known of its values beforehand and which of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization.calibration import hidden

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto, NodeProto, TensorProto


@dataclass(frozen=True)
class Tap:
    """A tensor to look at.

    Attributes:
        name: Its name.
        positive: Whether the operator that makes it never gives less than 0.
        axes: How many of its leading axes count positions that a padding mask may leave out; 0 where none does.
        rank: How many axes it has, where that matters; else 0.
        floor: Values down to here are numbers; those below come from constants that hide positions from attention.
    """

    name: str
    positive: bool = False
    axes: int = 0
    rank: int = 0
    floor: float | None = None

    @property
    def whole(self) -> bool:
        """Whether all of its values count."""
        return self.axes == 0 and self.floor is None


def taps(model: ModelProto, names: Sequence[str], padded: Mapping[str, tuple[int, int]]) -> list[Tap]:
    """Describe the tensors to look at.

    Args:
        model: A prepared graph.
        names: Tensors.
        padded: Those with padded positions, from `hidden.aligned`.
    """
    makers, fixed = onnxfile.producers(model.graph), onnxfile.constants(model.graph)
    floors = hidden.floors(model)
    return [
        Tap(name, name in makers and _positive(makers[name], fixed), *padded.get(name, (0, 0)), floors.get(name))
        for name in names
    ]


def _positive(node: NodeProto, fixed: Mapping[str, TensorProto]) -> bool:
    if node.op_type in ("Relu", "Sigmoid", "Softmax"):
        return True
    if node.op_type != "Clip" or len(node.input) < 2 or node.input[1] not in fixed:
        return False
    return bool(np.all(onnxfile.array(fixed[node.input[1]]).astype(np.float64) >= 0))
