"""What in a trace is what in the ONNX graph: values by name and numbers, weights by who multiplies with them.

The exporter keeps the names of values that it translates one by one. Where it rewrites (a fused batch norm, a
transposed matrix), names may go or stand for something else, so that numbers decide: a value is the same when both
give the same on a few rows, weights are a parameter when they are equal to it, as they are or transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from modelpack.numerics import differences, export, onnxfile, runtime
from modelpack.numerics.quantization.layers import channel_axis
from modelpack.numerics.tracing import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto
    from torch import nn

    from modelpack.numerics.export import Exported
    from modelpack.numerics.quantization.layers import Layer
    from modelpack.numerics.rows import Feed

_SAME = differences.Tolerance(1e-5, 1e-3)

_IDLE = frozenset(
    {
        torch.ops.aten.clone.default,
        torch.ops.aten.alias.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten.pad.default,
        torch.ops.aten.constant_pad_nd.default,
    }
)
"""Operators that only pass their input on, or pad it with zeros, which ONNX leaves to the layer behind them."""


@dataclass(frozen=True)
class Weights:
    """A layer's weights as a parameter.

    Attributes:
        input: The value that is multiplied, by its name in the graph.
        path: The parameter.
        axis: Its axis of output channels.
        bias: The parameter that is added channel by channel; None where nothing is, or no parameter.
    """

    input: str
    path: str
    axis: int
    bias: str | None = None


@dataclass(frozen=True)
class Correspondence:
    """A module, its trace, and the prepared graph that was translated from it."""

    module: nn.Module
    exported: Exported
    model: ModelProto

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """Value of the graph → the node of the trace that has its name."""
        program = self.exported.program
        named = {node.name: node for node in program.graph.nodes}
        found = {name: node for name, node in named.items() if node.op == "call_function"}
        inputs = zip(self.exported.model.graph.input, program.graph_signature.user_inputs, strict=True)
        found |= {item.name: named[str(name)] for item, name in inputs}
        last = next(node for node in program.graph.nodes if node.op == "output")
        given = zip(self.exported.model.graph.output, last.args[0], strict=True)
        return found | {item.name: node for item, node in given if isinstance(node, fx.Node)}

    @cached_property
    def parameters(self) -> dict[str, str]:
        """Placeholder of the trace → its parameter; tied ones by their first name."""
        first = {id(value): name for name, value in self.module.named_parameters()}
        named = self.exported.program.graph_signature.inputs_to_parameters
        return {place: first[id(self.module.get_parameter(path.removeprefix(PREFIX)))] for place, path in named.items()}

    def weights(self, known: Iterable[Layer]) -> dict[str, Weights]:
        """Find the parameters that quantized layers multiply with or look up in, by the layers' names."""
        makers = {node.name: node for node in self.model.graph.node}
        tensors = onnxfile.constants(self.model.graph)
        found = {}
        for layer in known:
            if layer.quantized and layer.weights in tensors:
                node = makers[layer.name]
                lookup = layer.operator == "Gather"
                read = str(node.input[1] if lookup else node.input[0])
                axis = 0 if lookup else channel_axis(node)
                held = self._held(read, onnxfile.array(tensors[layer.weights]), likely=layer.name.rpartition("/")[0])
                if held is not None:
                    path, turned = held
                    place = 1 - axis if turned else axis
                    found[layer.name] = Weights(read, path, place, self._added(node, path, place))
        return found

    def _added(self, node: NodeProto, path: str, axis: int) -> str | None:
        """Find the parameter that a layer adds, channel by channel, among those that are read beside its weights."""
        tensors = onnxfile.constants(self.model.graph)
        if len(node.input) < 3 or node.input[2] not in tensors:
            return None
        values = onnxfile.array(tensors[node.input[2]])
        if values.shape != (self.module.get_parameter(path).shape[axis],):
            return None
        users = _users(self.nodes[node.input[0]])
        beside = [{self.parameters.get(name, "") for name in _sources(user)} for user in users]
        paths = {item for names in beside if path in names for item in names - {path, ""}}
        same = (
            item for item in paths if np.array_equal(self.module.get_parameter(item).detach().cpu().numpy(), values)
        )
        return min(same, default=None)

    def _held(self, read: str, values: NDArray[np.generic], *, likely: str) -> tuple[str, bool] | None:
        """Find the parameter with these values among those that a value's readers read, the likely one first."""
        if read not in self.nodes:
            return None
        paths = {self.parameters[name] for name in _origins(self.nodes[read]) if name in self.parameters}
        for path in sorted(paths, key=lambda path: (path != f"{likely}.weight", path)):
            turned = _turned(self.module.get_parameter(path).detach().cpu().numpy(), values)
            if turned is not None:
                return path, turned
        return None

    def readers(self, value: str, given: set[str], paths: set[str]) -> tuple[str, ...]:
        """Name the nodes of the trace that read a value and give one of some others, or multiply by a parameter."""

        def reads(user: fx.Node) -> bool:
            if user.target in _IDLE and user.users:
                return all(reads(item) for item in user.users)
            return user.name in given or any(self.parameters.get(name) in paths for name in _sources(user))

        return tuple(user.name for user in self.nodes[value].users if reads(user))

    def differing(self, names: Iterable[str], feed: Feed) -> set[str]:
        """Name the values that torch has not, or in another form, or with other numbers."""
        inputs = {item.name for item in self.model.graph.input}
        read = sorted(set(names) - inputs)
        lost = {name for name in read if name not in self.nodes}
        read = [name for name in read if name not in lost]
        if not read:
            return lost
        seen = export.values(self.exported, feed)
        with onnxfile.loadable(differences.tapped(self.model, read)) as place:
            got = runtime.execute(runtime.session(place, threads=1, level="disabled"), feed, read)
        return lost | {name for name in read if not _same(seen.get(self.nodes[name].name), got[name])}


def _same(one: NDArray[np.generic] | None, other: NDArray[np.generic]) -> bool:
    if one is None or one.shape != other.shape:
        return False
    return differences.difference(one, other) <= _SAME.limit(other)


def _turned(parameter: NDArray[np.generic], values: NDArray[np.generic]) -> bool | None:
    """Say whether weights are a parameter as it is (False) or transposed (True); None when they are not."""
    if parameter.shape == values.shape and np.array_equal(parameter, values):
        return False
    return True if parameter.ndim == 2 and np.array_equal(parameter.T, values) else None


def _origins(node: fx.Node) -> set[str]:
    """Name the placeholders that a value's readers read beside it."""
    return {name for user in _users(node) for name in _sources(user)}


def _users(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        yield from _users(user) if user.target in _IDLE else [user]


def _sources(node: fx.Node) -> set[str]:
    """Name the placeholders that a node reads, directly or through nodes of one input, such as a transposition."""
    found = set()
    pending = list(node.all_input_nodes)
    for source in pending:
        if source.op == "placeholder":
            found.add(source.name)
        elif len(source.all_input_nodes) == 1:
            pending += source.all_input_nodes
    return found
