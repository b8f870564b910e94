"""Static quantization: weights as signed bytes per channel, activations as unsigned bytes with calibrated ranges.

The graph stays float on paper: ``QuantizeLinear`` and ``DequantizeLinear`` pairs mark what is rounded (QDQ), and
onnxruntime fuses each marked layer into one integer kernel. What must be marked for that:

1. the input of every chosen layer;
2. its weights, along the axis of output channels; its bias, as 32-bit integers on the grid of the products;
3. the output of a convolution, after a ReLU or clip that the rounding absorbs, and that of a matrix product before a
   ReLU or clip: otherwise there is no integer kernel, or the float one takes the ReLU and wins;
4. operators between marked tensors that work on bytes as well (`NEIGHBOURS`), where a marked layer reads them.

Any other matrix product gives floats unless something in 1 or 4 reads them: that costs no speed and loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from modelpack.numerics import onnxfile
from modelpack.numerics.quantization import grid
from modelpack.numerics.quantization.layers import channel_axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.quantization.grid import Grid
    from modelpack.numerics.quantization.ranges import Extent

NEIGHBOURS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})
"""Operators that onnxruntime computes on bytes when all of their inputs and their output are marked."""

CARRIERS = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""Operators that only move values: their output is on the grid of their first input."""

_ABSORBED = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class Marks:
    """Which activations are rounded, and for whom.

    Attributes:
        measured: Tensors with a grid of their own, which need calibration.
        carried: Tensors that take the grid of another one.
        made: Those that an integer kernel gives: whoever reads them reads the rounded values.
        readers: Names of the nodes that compute on bytes; other nodes read float values where there are some.
    """

    measured: tuple[str, ...]
    carried: Mapping[str, str]
    made: frozenset[str]
    readers: frozenset[str]


def marks(model: ModelProto, chosen: Iterable[str], *, neighbours: bool = True) -> Marks:
    """Decide which activations are rounded.

    Args:
        model: A prepared graph.
        chosen: Names of the layers to quantize.
        neighbours: Whether bytes flow on through other operators; not beside attention.
    """
    graph = model.graph
    layers = frozenset(chosen)
    readers = onnxfile.consumers(graph)
    fixed = onnxfile.constants(graph)
    given = {item.name for item in graph.output}
    ready: dict[str, str] = {}  # tensor → the tensor whose grid it takes, itself when measured
    wanted: dict[str, str] = {}
    made: set[str] = set()
    flowing: list[NodeProto] = []
    for node in graph.node:
        if node.name in layers:
            wanted[node.input[0]] = ready.setdefault(node.input[0], node.input[0])
            output = _absorbed(node, readers, fixed, given)
            if node.op_type == "Conv" or output != node.output[0]:
                ready[output] = wanted[output] = output
                made.add(output)
        elif neighbours and _passes_bytes(node, ready, fixed):
            output = _absorbed(node, readers, fixed, given)
            ready[output] = ready[node.input[0]] if node.op_type in CARRIERS else output
            flowing.append(node)
    needed, names = dict(wanted), set(layers)
    for node in reversed(flowing):
        output = _absorbed(node, readers, fixed, given)
        if output in needed:
            needed |= {name: ready[name] for name in _values(node)}
            names.add(node.name)
            made.add(output)
    carried = {name: source for name, source in sorted(needed.items()) if name != source}
    return Marks(tuple(sorted(set(needed.values()))), carried, frozenset(made), frozenset(names))


def _passes_bytes(node: NodeProto, ready: Mapping[str, str], fixed: Mapping[str, object]) -> bool:
    if node.op_type in CARRIERS:
        return node.input[0] in ready and len([name for name in node.output if name]) == 1
    if node.op_type not in NEIGHBOURS:
        return False
    return all(name in ready and name not in fixed for name in node.input)


def _absorbed(
    node: NodeProto, readers: Mapping[str, list[NodeProto]], fixed: Mapping[str, object], given: set[str]
) -> str:
    """Give the tensor to round after a node: behind the ReLU or clip that alone reads it, else its own output."""
    output = str(node.output[0])
    after = readers.get(output, [])
    if len(after) != 1 or output in given or node.op_type in CARRIERS or after[0].op_type not in _ABSORBED:
        return output
    bounds_known = all(not name or name in fixed for name in after[0].input[1:])
    return str(after[0].output[0]) if bounds_known and after[0].input[0] == output else output


def _values(node: NodeProto) -> list[str]:
    """List the inputs of a neighbour or carrier that hold activations."""
    return list(node.input[:1] if node.op_type in CARRIERS else node.input)


def quantize(model: ModelProto, chosen: Iterable[str], marked: Marks, seen: Mapping[str, Extent]) -> ModelProto:
    """Insert the QDQ pairs.

    Args:
        model: A prepared graph.
        chosen: Names of the layers to quantize.
        marked: Activations to round, from `marks`.
        seen: Ranges of the measured ones.

    Returns:
        A new model; the given one stays as it is.
    """
    twin = onnxfile.copied(model)
    grids = {name: grid.asymmetric(seen[name].low, seen[name].high) for name in marked.measured}
    grids |= {name: grids[source] for name, source in marked.carried.items()}
    layers = frozenset(chosen)
    writer = _Writer(twin.graph)
    for group in _by_weights(twin.graph, layers).values():
        writer.weights(group, grids)
    writer.activations(grids, marked)
    writer.finish()
    return twin


def _by_weights(graph: GraphProto, layers: frozenset[str]) -> dict[tuple[str, int], list[NodeProto]]:
    groups: dict[tuple[str, int], list[NodeProto]] = {}
    for node in graph.node:
        if node.name in layers:
            groups.setdefault((node.input[1], channel_axis(node)), []).append(node)
    return groups


class _Writer:
    """Adds constants and nodes to a graph, then puts the nodes in order."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.tensors = onnxfile.constants(graph)
        self.before: list[NodeProto] = []
        self.after: dict[str, list[NodeProto]] = {}

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, nodes: Sequence[NodeProto], grids: Mapping[str, Grid]) -> None:
        """Round the weights that some layers share, and each layer's bias."""
        axis = channel_axis(nodes[0])
        name = nodes[0].input[1]
        values = onnxfile.array(self.tensors[name]).astype(np.float32)
        scales = grid.symmetric_scales(values, axis)
        biases = {node.name: self._bias(node, scales.size) for node in nodes}
        for node in nodes:
            bias = biases[node.name]
            if bias is not None:
                scales = grid.wide_enough(scales, bias, float(grids[node.input[0]].scale))
        stem = f"{name}:rows" if axis == 0 else f"{name}:columns"
        rounded = self._dequantized(stem, grid.to_int8(values, scales, axis), scales, axis)
        for node in nodes:
            node.input[1] = rounded
            bias = biases[node.name]
            if bias is not None:
                steps = scales * grids[node.input[0]].scale
                node.input[2] = self._dequantized(f"{node.name}:bias", grid.to_int32(bias, steps), steps, 0)

    def _bias(self, node: NodeProto, channels: int) -> NDArray[np.float32] | None:
        """Give a layer's bias with one value per channel; None when it has none or one that is left in float."""
        if len(node.input) < 3 or node.input[2] not in self.tensors:
            return None
        values = onnxfile.array(self.tensors[node.input[2]]).astype(np.float32)
        return np.broadcast_to(values.reshape(-1), channels) if values.size in (1, channels) else None

    def _dequantized(self, stem: str, values: NDArray[np.generic], scales: NDArray[np.generic], axis: int) -> str:
        inputs = [
            self.constant(f"{stem}:quantized", values),
            self.constant(f"{stem}:scale", scales),
            self.constant(f"{stem}:zero", np.zeros(scales.shape, values.dtype)),
        ]
        output = f"{stem}:dequantized"
        self.before.append(
            helper.make_node("DequantizeLinear", inputs, [output], name=f"{stem}/DequantizeLinear", axis=axis)
        )
        return output

    def activations(self, grids: Mapping[str, Grid], marked: Marks) -> None:
        """Put a pair behind every marked tensor, and let those read from it that compute on bytes."""
        given = {item.name for item in self.graph.output}
        for name, spot in grids.items():
            source, rounded = name, f"{name}:dequantized"
            if name in marked.made and name in given:
                # The graph's own output: the kernel is fused only when the pair alone reads the layer.
                source, rounded = f"{name}:float", name
            for node in self.graph.node:
                self._redirect(node, name, source, rounded, everyone=name in marked.made, readers=marked.readers)
            self.after[source] = self._pair(name, source, rounded, spot)

    @staticmethod
    def _redirect(
        node: NodeProto, name: str, source: str, rounded: str, *, everyone: bool, readers: frozenset[str]
    ) -> None:
        for place, value in enumerate(node.output):
            if value == name:
                node.output[place] = source
        for place, value in enumerate(node.input):
            if value == name and (everyone or node.name in readers):
                node.input[place] = rounded

    def _pair(self, name: str, source: str, rounded: str, spot: Grid) -> list[NodeProto]:
        scale = self.constant(f"{name}:scale", np.array(spot.scale))
        zero = self.constant(f"{name}:zero", np.array(spot.zero_point))
        middle = f"{name}:quantized"
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [middle], name=f"{name}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [middle, scale, zero], [rounded], name=f"{name}/DequantizeLinear"),
        ]

    def finish(self) -> None:
        """Write all nodes in an order in which every value is made before it is read; drop unread constants."""
        ordered = list(self.before)
        for item in self.graph.input:
            ordered += self.after.pop(item.name, [])
        for node in self.graph.node:
            ordered.append(node)
            for name in node.output:
                ordered += self.after.pop(name, [])
        onnxfile.replace_nodes(self.graph, ordered)
        onnxfile.drop_unread(self.graph)
