"""One graph that is float, quantized, or any mixture: flags say at every run which layers are which.

Each value that a mixture may round is read through an ``If``: rounded as the quantized graph rounds it where its flag
is set, as it is where it is not. One session thereby serves all mixtures, and what is off costs a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from modelpack.numerics import onnxfile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from modelpack.numerics.quantization.qdq import Marks

FLAGS = "modelpack.flags"
"""Name of the input that holds one boolean per edge."""


@dataclass(frozen=True)
class Edge:
    """Where a value is read.

    Attributes:
        value: The value's name.
        reader: Name of the node that reads it; empty for an output of the graph.
        position: Which of its inputs it is.
        constant: Whether it is a constant of the layer that reads it.
    """

    value: str
    reader: str
    position: int = 0
    constant: bool = False

    @property
    def name(self) -> str:
        """A name of its own in the graph."""
        return f"modelpack.edge.{self.reader}.{self.position}.{self.value}"


@dataclass(frozen=True)
class Switchboard:
    """A graph with switches.

    Attributes:
        model: The graph; `FLAGS` is its last input.
        edges: What each flag switches.
    """

    model: ModelProto
    edges: tuple[Edge, ...]

    def flags(self, layers: Iterable[str], marked: Marks) -> NDArray[np.bool_]:
        """Give the flags that make the graph what quantizing some layers makes of it.

        Args:
            layers: Names of the layers; none for the float graph.
            marked: What is rounded for them, from `qdq.marks`.
        """
        rounded, readers = {*marked.measured, *marked.carried}, {*layers, *marked.readers}
        return np.array([_is_on(edge, marked, rounded, readers) for edge in self.edges], dtype=np.bool_)


def _is_on(edge: Edge, marked: Marks, rounded: Collection[str], readers: Collection[str]) -> bool:
    reads = edge.reader in readers
    return reads if edge.constant else edge.value in rounded and (reads or edge.value in marked.made)


def build(model: ModelProto, quantized: ModelProto, marked: Marks) -> Switchboard:
    """Join a float graph and its quantized twin.

    Args:
        model: The float graph.
        quantized: What `qdq.quantize` made of it.
        marked: What is rounded there.
    """
    board = _Board(model, quantized, frozenset({*marked.measured, *marked.carried}))
    return Switchboard(board.model, tuple(board.edges))


class _Board:
    def __init__(self, model: ModelProto, quantized: ModelProto, rounded: frozenset[str]) -> None:
        self.model, self.rounded = onnxfile.copied(model), rounded
        self.fixed = onnxfile.constants(self.model.graph)
        self.makers = onnxfile.producers(quantized.graph)
        self.twins = {node.name: node for node in quantized.graph.node}
        self.constants = {item.name: item for item in quantized.graph.initializer}
        self.edges: list[Edge] = []
        del self.model.opset_import[:]
        self.model.opset_import.extend(quantized.opset_import)
        self._join(self.model.graph)

    def _join(self, graph: GraphProto) -> None:
        kept = {item.name for item in graph.initializer}
        given = {item.name: f"{item.name}:float" for item in graph.output if item.name in self.rounded}
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += self._switched(node, given)
            nodes.append(node)
        nodes += [
            self._either(Edge(value, ""), self._pair(value, source), source, value) for value, source in given.items()
        ]
        graph.initializer.extend(item for name, item in self.constants.items() if name not in kept)
        flags = [f"{edge.name}.flag" for edge in self.edges]
        sizes = numpy_helper.from_array(np.ones(len(flags), np.int64), f"{FLAGS}.sizes")
        graph.initializer.append(sizes)
        onnxfile.replace_nodes(graph, [helper.make_node("Split", [FLAGS, sizes.name], flags, name=FLAGS), *nodes])
        graph.input.append(helper.make_tensor_value_info(FLAGS, TensorProto.BOOL, [len(flags)]))
        del graph.value_info[:]

    def _switched(self, node: NodeProto, given: dict[str, str]) -> list[NodeProto]:
        """Let a node read through switches; gives them. Changes `node`."""
        switches = []
        for place, value in enumerate(node.output):
            node.output[place] = given.get(value, value)
        for place, value in enumerate(node.input):
            source, constant = given.get(value, value), value in self.fixed
            then = self._constant(node, place) if constant else self._pair(value, source)
            edge = Edge(value, node.name, place, constant)
            if then:
                switches.append(self._either(edge, then, source, edge.name))
            node.input[place] = edge.name if then else source
        return switches

    def _constant(self, node: NodeProto, place: int) -> list[NodeProto]:
        """Give what makes the rounded form of a constant that a node reads; nothing when it is not rounded."""
        twin = self.twins.get(node.name)
        maker = self.makers.get(twin.input[place]) if twin is not None and place < len(twin.input) else None
        return [maker] if maker is not None and maker.op_type == "DequantizeLinear" else []

    def _pair(self, value: str, source: str) -> list[NodeProto]:
        """Give what rounds an activation; nothing when it is not rounded."""
        if value not in self.rounded:
            return []
        last = self.makers.get(f"{value}:dequantized") or self.makers[value]
        first = _copied(self.makers[last.input[0]])
        # The quantizing half may read a value on another scale, from parts that replace an operator.
        first.input[:] = [source, *last.input[1:]]
        return [first, last]

    def _either(self, edge: Edge, then: Sequence[NodeProto], source: str, output: str) -> NodeProto:
        """Give a node that gives `then` where its flag is set, else `source`."""
        self.edges.append(edge)
        inner = [_copied(node) for node in then]
        for number, node in enumerate(inner):
            node.name = node.output[0] = f"{edge.name}.{number}"
            if number:
                node.input[0] = f"{edge.name}.{number - 1}"
        as_it_is = helper.make_node("Identity", [source], [f"{edge.name}.float"])
        return helper.make_node(
            "If",
            [f"{edge.name}.flag"],
            [output],
            name=edge.name,
            then_branch=_branch("rounded", inner),
            else_branch=_branch("float", [as_it_is]),
        )


def _branch(name: str, nodes: Sequence[NodeProto]) -> GraphProto:
    return helper.make_graph(nodes, name, [], [ValueInfoProto(name=nodes[-1].output[0])])


def _copied(node: NodeProto) -> NodeProto:
    twin = NodeProto()
    twin.CopyFrom(node)
    return twin
