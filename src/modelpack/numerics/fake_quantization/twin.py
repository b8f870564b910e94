"""A torch model that rounds where its ONNX graph will: the traced program with rounding modules put in.

Rounding must sit at the very values that the integer kernels round, or torch would measure another model than the
one that is shipped: behind the ReLU that a convolution absorbs, on the inputs of an addition, in front of a matrix
product but not of the residual that reads the same tensor. A user's module has no places for that, its trace has. The
trace is the one that the export translates, and ONNX keeps the names of its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from modelpack.errors import StageError
from modelpack.numerics.fake_quantization.rounding import (
    Channels,
    FixedBytes,
    LearnedBytes,
    LearnedChannels,
    ObservedBytes,
)
from modelpack.numerics.tracing import NORM, PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.export import ExportedProgram

    from modelpack.numerics.fake_quantization.quantizers import Places, Quantizers

Rounding = FixedBytes | ObservedBytes | LearnedBytes
Weighing = Channels | LearnedChannels


@dataclass(frozen=True)
class Traced:
    """A module and its trace.

    Attributes:
        module: The user's module.
        program: What the export translates, its tensors on the module's device.
        inputs: Names of its inputs, in the program's order.
        outputs: Names of its outputs, in the program's order.
    """

    module: nn.Module
    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Quantized(nn.Module):
    """A model that rounds; called with named tensors, it gives a dict of its outputs.

    Attributes:
        floating: The user's module, whose parameters this one computes with.
        program: Its trace with rounding modules.
        inputs: Names of the inputs, in the program's order.
        outputs: Names of the outputs.
        bytes: ONNX value → what rounds it.
        channels: Parameter → what rounds it.
    """

    def __init__(
        self,
        traced: Traced,
        program: fx.GraphModule,
        bytes_: Mapping[str, Rounding],
        channels: Mapping[str, Weighing],
        quantizers: Quantizers | None = None,
    ) -> None:
        super().__init__()
        self.floating, self.program = traced.module, program
        self.inputs, self.outputs = traced.inputs, traced.outputs
        self.bytes, self.channels = dict(bytes_), dict(channels)
        self._quantizers = quantizers

    def grids(self) -> Quantizers:
        """Give the grids of a model that was loaded; they no longer change."""
        assert self._quantizers is not None, "a model in training has no grids yet"
        return self._quantizers

    def forward(self, **feed: Tensor) -> dict[str, Tensor]:
        """Compute the outputs, in the order of the signature."""
        given = self.program(*(feed[name] for name in self.inputs))
        return dict(zip(self.outputs, given, strict=True))


def rounded(
    traced: Traced, places: Places, bytes_: Mapping[str, Rounding], channels: Mapping[str, Weighing]
) -> Quantized:
    """Put rounding modules into a trace.

    Args:
        traced: The module and its trace; the result shares the module's tensors.
        places: Where to round.
        bytes_: ONNX value with a grid of its own → what rounds it.
        channels: Parameter → what rounds it.

    Raises:
        StageError: When the program lacks a value that is to be rounded.
    """
    return Quantized(traced, _program(traced, places, bytes_, channels), bytes_, channels)


def restored(traced: Traced, quantizers: Quantizers) -> Quantized:
    """Rebuild a trained model with the grids that it ended with.

    Raises:
        StageError: When the program lacks a value that is to be rounded.
    """
    places = quantizers.places
    bytes_ = {name: FixedBytes(float(grid.scale), int(grid.zero_point)) for name, grid in quantizers.grids.items()}
    channels = {name: Channels(axis) for name, axis in places.weights.items()}
    return Quantized(traced, _program(traced, places, bytes_, channels), bytes_, channels, quantizers)


def _program(
    traced: Traced, places: Places, bytes_: Mapping[str, Rounding], channels: Mapping[str, Weighing]
) -> fx.GraphModule:
    source = traced.program.module(check_guards=False)
    assert isinstance(source, fx.GraphModule), "what torch makes of a program"
    graph = source.graph
    modules: dict[str, nn.Module] = {}
    nodes = {node.name: node for node in graph.nodes}
    for spot in places.activations.values():
        if spot.node not in nodes:
            raise StageError(
                f"torch no longer traces the value '{spot.node}' that the model rounds",
                then="use the version of torch that trained it",
            )
        node, name = nodes[spot.node], f"rounded.{spot.node}"
        modules[name] = bytes_[spot.grid]
        _insert(graph, node, name, [user for user in node.users if spot.readers is None or user.name in spot.readers])
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        parameter = _parameter(traced.module, str(node.target), places.weights)
        if parameter is not None:
            modules[f"rounded.{node.name}"] = channels[parameter]
            _insert(graph, node, f"rounded.{node.name}", list(node.users))
    _drop_neutral_norms(graph)
    tensors = {str(node.target): _held(traced.module, source, node) for node in graph.nodes if node.op == "get_attr"}
    program = fx.GraphModule({**tensors, **modules}, graph)
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def _insert(graph: fx.Graph, node: fx.Node, module: str, readers: Sequence[fx.Node]) -> None:
    place = node
    while place.op == "placeholder" and place.next.op == "placeholder":
        place = place.next
    with graph.inserting_after(place):
        made = graph.create_node("call_module", module, (node,))
    for reader in readers:
        reader.replace_input_with(node, made)


def _drop_neutral_norms(graph: fx.Graph) -> None:
    """Take out the batch norms that folding left without effect: only it sets their epsilon to zero."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is NORM and node.args[6] == 0.0:
            for picked in list(node.users):
                picked.replace_all_uses_with(node.args[0])
                graph.erase_node(picked)
            graph.erase_node(node)


def _parameter(floating: nn.Module, target: str, wanted: Mapping[str, int]) -> str | None:
    """Give the wanted parameter that an attribute of the program is, under whichever of its names."""
    held = _attribute(floating, target.removeprefix(PREFIX))
    return next((name for name in wanted if held is not None and _attribute(floating, name) is held), None)


def _held(floating: nn.Module, source: nn.Module, node: fx.Node) -> Any:
    """Give the user's own tensor rather than the trace's copy; a constant is the trace's."""
    target = str(node.target)
    found = _attribute(floating, target.removeprefix(PREFIX)) if target.startswith(PREFIX) else None
    return found if found is not None else _attribute(source, target)


def _attribute(owner: object, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner
