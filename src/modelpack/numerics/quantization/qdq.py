"""Marks of rounding in a graph that stays float on paper: ``QuantizeLinear`` and ``DequantizeLinear`` pairs (QDQ).

onnxruntime fuses each marked layer into one integer kernel. What must be marked for that:

1. the input of every chosen layer;
2. its weights, along the axis of output channels; its bias, as 32-bit integers on the grid of the products;
3. the output of a convolution, after a ReLU or clip that the rounding absorbs, and that of a matrix product before a
   ReLU or clip: otherwise there is no integer kernel, or the float one takes the ReLU and wins;
4. operators between marked tensors that work on bytes as well (`kernels`), where a marked layer reads them.

Any other matrix product gives floats unless something in 1 or 4 reads them: that costs no speed and loses nothing.
Layers without integer kernels get 8-bit weights and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from modelpack.numerics import grid, onnxfile
from modelpack.numerics.quantization import kernels
from modelpack.numerics.quantization.hardware import PROFILES
from modelpack.numerics.quantization.layers import channel_axis
from modelpack.numerics.quantization.rewriting.composites import COMPOSED
from modelpack.numerics.quantization.rewriting.prepare import raised
from modelpack.numerics.quantization.rewriting.shield import shield
from modelpack.numerics.quantization.saturation import narrowing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.grid import Grid
    from modelpack.numerics.quantization.extent import Extent
    from modelpack.numerics.quantization.hardware import Profile

WIDE_OPSET = 21
"""First opset whose ``QuantizeLinear`` gives 16 bits."""


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
    _, *inner = onnxfile.graphs(graph)
    given = {item.name for item in graph.output} | {name for deep in inner for node in deep.node for name in node.input}
    ready: dict[str, str] = {}  # tensor → the tensor whose grid it takes, itself when measured
    wanted: dict[str, str] = {}
    made: set[str] = set()
    names: set[str] = set()
    flowing: list[tuple[NodeProto, list[str]]] = []
    for node in graph.node:
        if node.name in layers and node.op_type in kernels.PRODUCTS:
            names.add(node.name)
            wanted[node.input[0]] = ready.setdefault(node.input[0], node.input[0])
            output = kernels.absorbed(node, readers, fixed, given)
            if node.op_type == "Conv" or output != node.output[0]:
                ready[output] = wanted[output] = output
                made.add(output)
        elif neighbours and kernels.passes_bytes(node, ready, fixed):
            outputs = [kernels.absorbed(node, readers, fixed, given), *node.output[1:]]
            ready |= {name: ready[node.input[0]] if node.op_type in kernels.CARRIERS else name for name in outputs}
            flowing.append((node, outputs))
    needed = dict(wanted)
    for node, outputs in reversed(flowing):
        if any(output in needed for output in outputs):
            needed |= {name: ready[name] for name in [*kernels.values(node), *outputs] if name in ready}
            names.add(node.name)
            made |= set(outputs)
    carried = {name: source for name, source in sorted(needed.items()) if name != source}
    return Marks(tuple(sorted(set(needed.values()))), carried, frozenset(made), frozenset(names))


def quantize(
    model: ModelProto,
    chosen: Iterable[str],
    marked: Marks,
    seen: Mapping[str, Extent],
    *,
    profile: Profile = PROFILES["vnni"],
    wide: Collection[str] = (),
    narrow: Collection[str] = (),
) -> ModelProto:
    """Insert the QDQ pairs.

    Args:
        model: A prepared graph.
        chosen: Names of the layers to quantize.
        marked: Activations to round, from `marks`.
        seen: Ranges of the measured ones.
        profile: The hardware it shall run on.
        wide: Names of layers that read 16-bit activations.
        narrow: Names of layers whose products must fit into 16 bits in pairs.

    Returns:
        A new model; the given one stays as it is.

    Raises:
        StageError: When `wide` needs a later opset that the graph cannot be converted to.
    """
    twin = raised(model, WIDE_OPSET) if wide else onnxfile.copied(model)
    layers = frozenset(chosen)
    read = {node.input[0] for node in twin.graph.node if node.name in wide and node.name in layers}
    broad = {marked.carried.get(name, name) for name in read}
    grids = {name: profile.grid(seen[name].low, seen[name].high, wide=name in broad) for name in marked.measured}
    grids |= {name: grids[source] for name, source in marked.carried.items()}
    writer = _Writer(twin.graph)
    for group in _by_weights(twin.graph, layers).values():
        writer.weights(group, grids, narrow)
    writer.operands(marked, profile)
    writer.activations(grids, marked)
    writer.finish()
    shield(twin.graph)
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
        self.worth: dict[str, float] = {}  # tensor → what a unit of it is worth, where that is not one

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        self.tensors[name] = self.graph.initializer[-1]
        return name

    def weights(self, nodes: Sequence[NodeProto], grids: Mapping[str, Grid], narrow: Collection[str]) -> None:
        """Round the weights that some layers share, and each layer's bias."""
        axis = channel_axis(nodes[0])
        name = nodes[0].input[1]
        values = onnxfile.array(self.tensors[name]).astype(np.float32)
        scales = grid.symmetric_scales(values, axis)
        biases = {node.name: self._bias(node, scales.size) for node in nodes}
        for node in nodes:
            bias = biases[node.name]
            if node.name in narrow:
                scales = np.maximum(scales, narrowing.scales(node, values))
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
        if node.op_type not in kernels.PRODUCTS or len(node.input) < 3 or node.input[2] not in self.tensors:
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

    def operands(self, marked: Marks, profile: Profile) -> None:
        """Write operators anew that have no integer kernel but parts that have, and put numbers on grids."""
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            if node.name not in marked.readers or node.op_type not in COMPOSED:
                nodes.append(node)
                continue
            parts, self.worth[node.output[0]] = COMPOSED[node.op_type](node, self.constant)
            nodes += parts
        onnxfile.replace_nodes(self.graph, nodes)
        numbers: dict[str, str] = {}
        for node in self.graph.node:
            if node.name not in marked.readers or node.op_type not in kernels.WITH_NUMBERS:
                continue
            for place, name in enumerate(node.input):
                if kernels.is_number(name, self.tensors):
                    numbers[name] = node.input[place] = numbers.get(name) or self._number(name, profile)

    def _number(self, name: str, profile: Profile) -> str:
        value = onnxfile.array(self.tensors[name]).astype(np.float32)
        spot = profile.grid(float(value.min()), float(value.max()))
        steps = np.rint(value / spot.scale).astype(np.int64) + int(spot.zero_point)
        inputs = [
            self.constant(f"{name}:quantized", steps.astype(spot.zero_point.dtype)),
            self.constant(f"{name}:scale", np.array(spot.scale)),
            self.constant(f"{name}:zero", np.array(spot.zero_point)),
        ]
        output = f"{name}:dequantized"
        self.before.append(helper.make_node("DequantizeLinear", inputs, [output], name=f"{name}/DequantizeLinear"))
        return output

    def activations(self, grids: Mapping[str, Grid], marked: Marks) -> None:
        """Put a pair behind every marked tensor, and let those read from it that compute on bytes."""
        given = {item.name for item in self.graph.output}
        for name, spot in grids.items():
            source, rounded = name, f"{name}:dequantized"
            if name in marked.made and name in given:
                # The graph's own output: the kernel is fused only when the pair alone reads the layer.
                source, rounded = f"{name}:float", name
            for node in (node for inner in onnxfile.graphs(self.graph) for node in inner.node):
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
        scale = step = self.constant(f"{name}:scale", np.array(spot.scale))
        zero = self.constant(f"{name}:zero", np.array(spot.zero_point))
        if name in self.worth:
            step = self.constant(f"{name}:step", np.array(spot.scale / self.worth[name], np.float32))
        middle = f"{name}:quantized"
        return [
            helper.make_node("QuantizeLinear", [source, step, zero], [middle], name=f"{name}/QuantizeLinear"),
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
