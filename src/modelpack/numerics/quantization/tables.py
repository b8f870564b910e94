"""New constants of a graph that is being rewritten: each added once, and stored in fewer bytes where that is asked.

What is stored otherwise than it is read becomes float32 by ``Cast`` and ``Mul``, which onnxruntime computes once, while
it loads the graph: the file is smaller, memory and speed are those of float32. (``DequantizeLinear`` in their place
would be computed at every run.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from modelpack.numerics import grid, onnxfile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class Tables:
    """Adds constants to a graph, and the nodes that unpack them."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self._unpacking: list[NodeProto] = []
        self._known: set[str] = set()

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Add a constant unless it is there; gives its name."""
        if name not in self._known:
            self._known.add(name)
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def unpack(self, node: NodeProto) -> str:
        """Add a node that makes a constant, unless it is there; gives the constant's name."""
        if node.name not in self._known:
            self._known.add(node.name)
            self._unpacking.append(node)
        return str(node.output[0])

    def bfloat16(self, name: str, values: NDArray[np.floating]) -> str:
        """Add float32 values, stored as bfloat16, rounded to nearest; gives their name."""
        return self._cast(f"{name}:float", self.constant(f"{name}:bfloat16", values.astype(ml_dtypes.bfloat16)))

    def int8(self, name: str, values: NDArray[np.floating], axis: int) -> str:
        """Add float32 values, stored as signed bytes with a scale per slice along `axis`; gives their name."""
        scales = grid.symmetric_scales(values.astype(np.float32), axis)
        codes = grid.to_int8(values.astype(np.float32), scales, axis)
        shape = [-1 if place == axis else 1 for place in range(values.ndim)]
        whole = self._cast(f"{name}:whole", self.constant(f"{name}:quantized", codes))
        steps = self.constant(f"{name}:scale", scales.reshape(shape))
        return self.unpack(helper.make_node("Mul", [whole, steps], [f"{name}:float"], name=f"{name}:float"))

    def _cast(self, name: str, source: str) -> str:
        return self.unpack(helper.make_node("Cast", [source], [name], name=name, to=TensorProto.FLOAT))

    def finish(self, nodes: Iterable[NodeProto]) -> None:
        """Let the graph have these nodes, behind those that unpack constants; drop constants that nothing reads."""
        onnxfile.replace_nodes(self.graph, [*self._unpacking, *nodes])
        onnxfile.drop_unread(self.graph)
