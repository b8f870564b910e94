"""A graph run piece by piece: from the values that are kept to the next layer, then on from there.

Each piece is a graph of its own, so that no prefix is computed twice, and weights further on may change meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from modelpack.numerics import onnxfile, runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelpack.numerics.rows import Feed

BUDGET = 256 * 2**20
"""Bytes of values that are kept between pieces; where more would be needed, the next piece begins further back."""


def opened(model: ModelProto, device: str = "cpu") -> runtime.ort.InferenceSession:
    """Open a graph that runs between other work: its threads do not burn the processor's time while they wait."""
    with onnxfile.loadable(model) as content:
        return runtime.session(content, device, entries=runtime.AT_REST)


class Walk:
    """The values of one graph on some rows, as far as it was computed."""

    def __init__(self, model: ModelProto, feeds: Iterable[Feed], device: str = "cpu", budget: int = BUDGET) -> None:
        """Begin at the graph's inputs; `model` may change as long as only constants of later nodes do."""
        self.model, self.device, self.budget = model, device, budget
        self.held = [dict(feed) for feed in feeds]
        self.makers = onnxfile.producers(model.graph)
        self.varying = _varying(model, set(self.held[0]) if self.held else set())

    def reach(self, place: int, names: Sequence[str]) -> Iterator[Feed]:
        """Give values, kept batch by kept batch, then keep what nodes from number `place` on read.

        Args:
            place: Position in the graph's nodes; every name is made before it.
            names: Values to give.
        """
        needed = self._needed(place)
        wanted = dict.fromkeys([*names, *needed])
        missing = [name for name in wanted if name not in self.held[0]]
        piece = self._piece(missing) if missing else None
        session, fits = None if piece is None else opened(piece, self.device), False
        for number, feed in enumerate(self.held):
            found = dict(feed)
            if session is not None and piece is not None:
                found |= runtime.execute(session, {item.name: feed[item.name] for item in piece.graph.input}, missing)
            if number == 0:
                fits = sum(found[name].nbytes for name in needed) * len(self.held) <= self.budget
            if fits:
                self.held[number] = {name: found[name] for name in needed}
            yield {name: found[name] for name in names}

    def _needed(self, place: int) -> list[str]:
        """List the values that cross a position, bytes rather than the floats that they stand for."""
        nodes = self.model.graph.node
        ahead = {name for node in nodes[:place] for name in node.output} | {i.name for i in self.model.graph.input}
        crossing = {name for node in nodes[place:] for name in _read(node) if name in ahead and name in self.varying}
        return sorted({self.rounded(name) for name in crossing})

    def rounded(self, name: str) -> str:
        """Give the bytes behind a value that a ``DequantizeLinear`` makes, else the value itself."""
        node = self.makers.get(name)
        return str(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else name

    def _piece(self, wanted: Sequence[str]) -> ModelProto:
        """Cut out the nodes between the kept values and the wanted ones."""
        graph = self.model.graph
        reached, pending = set[str](), [name for name in wanted if name not in self.held[0]]
        while pending:
            name = pending.pop()
            node = self.makers.get(name)
            if node is None or name in reached:
                continue
            reached |= set(node.output)
            pending += [item for item in _read(node) if item not in self.held[0]]
        nodes = [node for node in graph.node if any(name in reached for name in node.output)]
        read = {name for node in nodes for name in _read(node)}
        piece = ModelProto(ir_version=self.model.ir_version)
        piece.opset_import.extend(self.model.opset_import)
        piece.graph.name = graph.name
        piece.graph.node.extend(nodes)
        piece.graph.initializer.extend(item for item in graph.initializer if item.name in read)
        piece.graph.input.extend(self._described(name) for name in self.held[0] if name in read)
        piece.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
        return piece

    def _described(self, name: str) -> ValueInfoProto:
        """Describe a kept value: a dimension that differs between batches is free."""
        values = [feed[name] for feed in self.held]
        sizes = [{value.shape[axis] for value in values} for axis in range(values[0].ndim)]
        shape = [next(iter(size)) if len(size) == 1 else None for size in sizes]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[0].dtype), shape)


def _read(node: NodeProto) -> set[str]:
    """Name what a node reads, graphs inside it included."""
    inner = [item.g for item in node.attribute if item.g.node]
    inner += [graph for item in node.attribute for graph in item.graphs]
    within = {name for graph in inner for deep in onnxfile.graphs(graph) for part in deep.node for name in part.input}
    passed = {item.name for graph in inner for item in graph.output}
    return {name for name in node.input if name} | within | passed


def _varying(model: ModelProto, inputs: set[str]) -> set[str]:
    """Name the values that depend on the inputs."""
    found = set(inputs)
    for node in model.graph.node:
        if _read(node) & found:
            found |= set(node.output)
    return found
